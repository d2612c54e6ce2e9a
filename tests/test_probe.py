"""Laws of the probe, an auxiliary loss: which weights it trains, and from which state it reads."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from deltamem_agents.lab.corpus.episodes import EpisodeShape
from deltamem_agents.lab.training.composing import Conversation, WriteWeights, compose_conversation, write_composed
from deltamem_agents.lab.training.objective import output_directions
from deltamem_agents.lab.training.probe import Probe
from deltamem_agents.lab.training.told_tokens import Pairs, draw_asked
from tiny_training import CONFIGS, activations_of, episodes_of, word_engine

ALONE = EpisodeShape(distractors=(0, 0))

pytestmark = pytest.mark.parametrize("name", ["replies alone read", "published preset", "every gate and head"])


def test_the_probes_gradient_reaches_all_projections_of_the_memory(name: str) -> None:
    engine = word_engine(replace(CONFIGS[name], gate_floor=0.0))
    found = activations_of(engine, episodes_of(9, ALONE), 6)
    pairs = Pairs.of(found)
    conversations = [compose_conversation(found, 3, 1, 1, random.Random(seed)) for seed in range(2)]
    written = write_composed(engine.adapter.config, WriteWeights.of(engine.adapter), found, conversations)
    probe = Probe(engine.adapter)
    probe.begin(engine.adapter)
    asked, rows = draw_asked(pairs, 4, random.Random(0)), output_directions(engine.model)
    loss, right = probe.loss(engine.adapter, found, conversations, pairs, asked, random.Random(0), written.state, rows)
    assert 0 <= right <= 1
    loss.backward()
    for at, parameter in engine.adapter.named_parameters():
        learns = "memory_" in at or "beta_" in at or "read_" in at or "lambda_" in at
        assert (parameter.grad is not None and float(parameter.grad.norm()) > 0) is learns, at
    assert all(parameter.grad is not None for parameter in probe.parameters())


def test_the_probe_reads_each_fact_from_its_own_conversation(name: str) -> None:
    engine = word_engine(CONFIGS[name])
    found = activations_of(engine, episodes_of(6, ALONE), 3)
    pairs = Pairs.of(found)
    conversations = [Conversation((telling,), (("tellings", telling),)) for telling in (4, 1)]
    probe, rows = Probe(engine.adapter), output_directions(engine.model)
    asked = draw_asked(pairs, 4, random.Random(0))
    torch.nn.init.normal_(probe.say, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = write_composed(engine.adapter.config, WriteWeights.of(engine.adapter), found, conversations).state
        both, _ = probe.loss(engine.adapter, found, conversations, pairs, asked, random.Random(0), state, rows)
        alone = [
            probe.loss(engine.adapter, found, [one], pairs, asked, random.Random(0), state[:, [n]], rows)[0]
            for n, one in enumerate(conversations)
        ]
    counts = [int((found.telling == one.tellings[0]).sum()) for one in conversations]
    expected = sum(count * float(loss) for count, loss in zip(counts, alone, strict=True)) / sum(counts)
    assert float(both) == pytest.approx(expected, rel=1e-4)
