"""Laws of read gates that see the reads: they distinguish told facts from facts never told."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.composing import WriteWeights, compose_conversation, never_told, write_composed
from deltamem_agents.lab.training.direct_path import ReadWeights, opening_loss
from test_rehearsal import fresh
from tiny_activations import WORLD
from tiny_training import GATED

FOUND = WORLD.activations(60, seed=4)
SEEING = replace(GATED, gate_on_reads=True)


def loss_of(config: AdapterConfig, opens: float = 0.0) -> torch.Tensor:
    adapter = fresh(config).requires_grad_(True)
    with torch.no_grad():
        for slot in range(len(adapter.indices)):
            adapter.layer(slot).read_bias.fill_(opens)
    conversations = [compose_conversation(FOUND, 2, 0, 0, random.Random(seed)) for seed in range(4)]
    state = write_composed(config, WriteWeights.of(adapter), FOUND, conversations).state
    told = [(row, telling) for row, one in enumerate(conversations) for telling in one.tellings]
    untold = never_told(FOUND, conversations, len(told), random.Random(0))
    loss = opening_loss(config, ReadWeights.of(adapter), state, FOUND, told, untold)
    if loss.requires_grad:
        loss.backward()
        assert all(bool(adapter.layer(slot).found_proj.grad.any()) for slot in range(len(adapter.indices)))
    return loss.detach()


def test_gates_that_do_not_distinguish_have_a_high_loss() -> None:
    assert min(float(loss_of(SEEING, opens)) for opens in (-9.0, 9.0)) > 2


def test_the_opening_loss_trains_on_every_layers_reads() -> None:
    assert 0 < float(loss_of(SEEING)) < 2


def test_gates_that_do_not_see_reads_have_no_opening_loss() -> None:
    assert float(loss_of(GATED)) == 0
