"""Laws of gate tuning: write gates scale around the floor, the output is scaled, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import LayerMemory, MemoryCall
from deltamem_agents.memory.delta_rule import floored_gate
from deltamem_agents.memory.gate_tuning import tuned_gates
from tiny_engine import random_adapter, tiny_llama

CONFIG = AdapterConfig(
    rank=4, read_gate=True, erase_gate=True, gate_hidden=3, gate_floor=0.25, state_update_mode="no_lambda", readout=True
)
SHIFTS = st.floats(-3, 3)


def adapter(config: AdapterConfig = CONFIG) -> Adapter:
    return random_adapter(tiny_llama(), config)


def tuned(given: Adapter, **changes: float) -> dict[str, Tensor]:
    return tuned_gates(given.config, given.state_dict(), **changes)


def logits_of(weights: dict[str, Tensor], given: Adapter, x: Tensor) -> Tensor:
    memory = LayerMemory(given.config, given.layer(0).widths)
    index = given.indices[0]
    memory.load_state_dict({name: weights[f"layers.{index}.{name}"] for name in memory.state_dict()})
    return memory.write_gates(MemoryCall(given.zero_state()), 0, x).detach()


@given(sharper=st.floats(0.1, 8), write=SHIFTS, floor=st.sampled_from([0.0, 0.25, 0.6]))
def test_sharper_scales_a_write_gates_logit_around_the_floors(sharper: float, write: float, floor: float) -> None:
    given = adapter(replace(CONFIG, gate_floor=floor))
    pivot = torch.logit(torch.tensor(floor)) if floor else torch.zeros(())
    x = torch.randn(1, 6, given.layer(0).widths.hidden, generator=torch.Generator().manual_seed(1))
    before = logits_of(dict(given.state_dict()), given, x)
    after = logits_of(tuned(given, sharper=sharper, write=write), given, x)
    torch.testing.assert_close(after, pivot + (before - pivot) * sharper + write, atol=1e-4, rtol=1e-4)


def test_sharper_gates_keep_shut_tokens_shut_and_open_others_further() -> None:
    given = adapter()
    x = torch.randn(1, 200, given.layer(0).widths.hidden, generator=torch.Generator().manual_seed(1)) * 3
    before, after = (
        floored_gate(logits_of(weights, given, x), given.config.gate_floor)
        for weights in (dict(given.state_dict()), tuned(given, sharper=2))
    )
    assert bool(((before == 0) == (after == 0)).all()) and bool((before == 0).any())
    assert bool((after >= before).all()) and bool((after > before).any())


@given(read=SHIFTS, erase=SHIFTS, louder=st.floats(0.1, 8))
def test_only_the_requested_weights_change(read: float, erase: float, louder: float) -> None:
    given = adapter()
    before, after = given.state_dict(), tuned(given, sharper=1.5, write=0.5, erase=erase, read=read, louder=louder)
    assert before.keys() == after.keys()
    shifts = {"read_bias": read, "erase_bias": erase}
    factors = {"delta_o_proj": louder, "readout_proj": louder}
    assert shifts.keys() | factors.keys() <= {name.rsplit(".", 1)[-1] for name in before}
    for name in before:
        kind = name.rsplit(".", 1)[-1]
        if kind not in {"beta_proj", "beta_hidden_proj", "beta_bias"}:
            assert torch.equal(after[name], before[name] * factors.get(kind, 1.0) + shifts.get(kind, 0.0)), name
    untouched = tuned(given)
    assert all(torch.allclose(untouched[name], before[name], atol=1e-6) for name in before)


def test_weights_keep_their_dtype() -> None:
    weights = {name: value.bfloat16() for name, value in adapter().state_dict().items()}
    assert {value.dtype for value in tuned_gates(CONFIG, weights, sharper=2).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"sharper": 0.0}, "sharper is 0.0"),
        ({"sharper": float("nan")}, "sharper is nan"),
        ({"write": float("inf")}, "write is inf"),
        ({"erase": float("-inf")}, "erase is -inf"),
        ({"read": float("nan")}, "read is nan"),
        ({"louder": 0.0}, "louder is 0.0"),
        ({"louder": float("inf")}, "louder is inf"),
    ],
)
def test_invalid_shifts_and_factors_are_refused(changes: dict[str, float], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        tuned(adapter(), **changes)


@pytest.mark.parametrize("kind", ["erase", "read"])
def test_missing_gates_cannot_be_shifted(kind: str) -> None:
    without = adapter(replace(CONFIG, read_gate=False, erase_gate=False))
    with pytest.raises(ConfigError, match=f"no {kind} gates"):
        tuned(without, **{kind: -1.0})
    assert tuned(without, sharper=2.0).keys() == without.state_dict().keys()


def test_an_adapter_without_output_weights_cannot_be_made_louder() -> None:
    mute = adapter(replace(CONFIG, readout=False, delta_heads=("q",)))
    with pytest.raises(ConfigError, match="neither corrects o nor has a readout"):
        tuned(mute, louder=2.0)
