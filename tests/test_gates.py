"""Laws of the gate loss: write gates are trained on told tokens of all tellings against other tokens and filler."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.composing import WriteWeights
from deltamem_agents.lab.training.direct_path import gate_loss
from deltamem_agents.lab.training.told_tokens import Pairs
from deltamem_agents.memory.attach import Adapter
from test_rehearsal import fresh
from tiny_activations import KIND, TOLD, WORLD
from tiny_training import GATED

FOUND = WORLD.activations(60, seed=4)
PAIRS = Pairs.of(FOUND)
HIDDEN_GATES = replace(GATED, gate_hidden=4)


def opened_by(kind: int, config: AdapterConfig) -> Adapter:
    """An adapter whose gates open on tokens of this kind, directly or through a hidden unit."""
    adapter = fresh(config)
    for slot in range(len(adapter.indices)):
        memory = adapter.layer(slot)
        memory.beta_proj.zero_()
        memory.beta_bias.fill_(-15.0)
        if not config.gate_hidden:
            memory.beta_proj[:, KIND.start + kind] = 10.0
            continue
        memory.gate_hidden_proj.zero_()[0, KIND.start + kind] = 10.0
        memory.gate_hidden_bias.zero_()
        memory.beta_hidden_proj[:, 0] = 1.0
    return adapter


def loss_of(adapter: Adapter, seed: int = 0) -> float:
    return float(gate_loss(WriteWeights.of(adapter), PAIRS, FOUND.asides, random.Random(seed)))


def test_gates_that_open_only_on_told_tokens_have_a_low_loss() -> None:
    for config in (GATED, HIDDEN_GATES):
        right, wrong = (loss_of(opened_by(kind, config)) for kind in (TOLD, TOLD + 2))
        assert right < 0.05 < 1 < wrong


def test_the_gate_loss_is_determined_by_the_generator() -> None:
    adapter = fresh(HIDDEN_GATES)
    assert loss_of(adapter) == loss_of(adapter) != loss_of(adapter, seed=1)


def test_the_gate_loss_trains_every_gate_weight() -> None:
    adapter = fresh(HIDDEN_GATES).requires_grad_(True)
    with torch.no_grad():
        for slot in range(len(adapter.indices)):
            adapter.layer(slot).beta_hidden_proj.fill_(0.1)
    gate_loss(WriteWeights.of(adapter), PAIRS, FOUND.asides, random.Random(0)).backward()
    learning = {name.rsplit(".", 1)[-1] for name, weight in adapter.named_parameters() if weight.grad is not None}
    assert learning == {"beta_proj", "beta_bias", "gate_hidden_proj", "gate_hidden_bias", "beta_hidden_proj"}
