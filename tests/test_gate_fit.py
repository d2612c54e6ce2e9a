"""Laws of the gate fit: told tokens open write gates, filler closes them, and no other weight changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.training import gate_fit
from deltamem_agents.lab.training.composing import WriteWeights
from deltamem_agents.lab.training.gate_fit import fit_gates
from deltamem_agents.lab.training.recipe import GateFit
from deltamem_agents.lab.training.told_tokens import Pairs, SpokenValues
from deltamem_agents.lab.training.trainer import initialise
from deltamem_agents.memory.attach import Adapter
from test_rehearsal import fresh
from tiny_activations import WORLD
from tiny_training import GATED

FOUND = WORLD.activations(60, seed=4)
OTHER = WORLD.activations(60, seed=5)
PLAN = GateFit(steps=60)
HIDDEN_GATES = replace(GATED, gate_hidden=4)
NOTHING = SpokenValues(WORLD.activations(1, seed=6).replies[:, :0], torch.zeros(0, dtype=torch.long))


@pytest.fixture(autouse=True)
def _rates_for_few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates with so few weights need larger learning rates."""
    monkeypatch.setattr(gate_fit, "LINEAR_RATE", 0.05)
    monkeypatch.setattr(gate_fit, "HIDDEN_RATE", 0.12)


def fitted(
    config: AdapterConfig, plan: GateFit = PLAN, pairs: Pairs | None = None, introduced: SpokenValues = NOTHING
) -> Adapter:
    torch.manual_seed(0)
    adapter = fresh(config).requires_grad_(True)
    initialise(adapter)
    fit_gates(adapter, FOUND, pairs or Pairs.of(FOUND), plan, introduced, random.Random(0), lambda _: None)
    return adapter


@torch.no_grad()
def opened(adapter: Adapter, x: Tensor) -> float:
    floor = adapter.config.gate_floor
    gates = torch.sigmoid(WriteWeights.of(adapter).gates(x))
    return float(((gates - floor) / (1 - floor)).clamp_min(0).mean())


@pytest.mark.slow
@pytest.mark.parametrize("config", [HIDDEN_GATES, replace(HIDDEN_GATES, gate_floor=0.0)])
def test_fitted_gates_open_on_new_told_tokens_and_shut_on_new_filler(config: AdapterConfig) -> None:
    adapter = fitted(config)
    assert opened(adapter, OTHER.tellings.at(OTHER.told_at)) > 0.5
    for kind in (OTHER.asides, OTHER.questions):
        assert opened(adapter, kind.at(torch.cat(kind.contents))) < 0.1


def test_gates_without_hidden_units_are_fitted_too() -> None:
    x = OTHER.tellings.at(OTHER.told_at)
    assert opened(fitted(GATED), x) > opened(fitted(GATED, replace(PLAN, steps=1)), x) + 0.1


@pytest.mark.slow
def test_other_tokens_of_tellings_keep_their_gates() -> None:
    """Here they look like filler, so the weight on filler (`shut`) is set to 0."""
    free = replace(PLAN, shut=0.0, dropout=0.0)
    start = fitted(HIDDEN_GATES, replace(PLAN, steps=1))
    contents = torch.cat(OTHER.tellings.contents)
    plain = OTHER.tellings.at(contents[~OTHER.tellings.told[contents]])
    assert opened(fitted(HIDDEN_GATES, free), plain) == pytest.approx(opened(start, plain), abs=0.05)
    assert opened(fitted(HIDDEN_GATES, replace(free, beside=0)), plain) > opened(start, plain) + 0.1


@pytest.mark.slow
def test_nothing_but_the_write_gates_changes() -> None:
    start, adapter = fitted(HIDDEN_GATES, replace(PLAN, steps=1)), fitted(HIDDEN_GATES)
    before = dict(start.named_parameters())
    changed = {name.rsplit(".", 1)[-1] for name, value in adapter.named_parameters() if not value.equal(before[name])}
    assert changed == {"beta_proj", "beta_bias", "gate_hidden_proj", "gate_hidden_bias", "beta_hidden_proj"}


def test_a_gate_fit_is_deterministic() -> None:
    first, second = (fitted(HIDDEN_GATES, replace(PLAN, steps=5)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_spoken_words_and_introductions_open_gates_too() -> None:
    """With told tokens of a kind that no telling has."""
    x = WORLD.activations(40, seed=6).replies
    more = SpokenValues(x, torch.zeros(x.shape[1], dtype=torch.long))
    assert opened(fitted(HIDDEN_GATES), x) < 0.5
    assert opened(fitted(HIDDEN_GATES, pairs=replace(Pairs.of(FOUND), spoken=more)), x) > 0.5
    assert opened(fitted(HIDDEN_GATES, introduced=more), x) > 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"opened": 1.0}, "opened"),
        ({"dropout": -0.1}, "dropout"),
        ({"beside": -1}, "beside"),
    ],
)
def test_invalid_gate_fit_settings_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GateFit(**settings)  # type: ignore[arg-type]
