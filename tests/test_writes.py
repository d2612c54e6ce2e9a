"""Laws of writes: scanning them gives the state, in one part or several, and rounding changes it little."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import StateError
from deltamem_agents.memory.attach import CALL_KEYWORD, attach
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import ScannedState, Writes, collected, scan_writes
from tiny_models import FULL, LAYERS, random_adapter, random_ids, random_state, tiny_model

FLOORED = replace(FULL, gate_floor=0.9)
KEEPING = {
    "no decay": replace(FLOORED, state_update_mode="no_lambda"),
    "scalar gates, votes, erase gate": replace(
        FLOORED,
        gate_floor=0.6,
        state_update_mode="no_lambda",
        rankwise_gates=False,
        gate_votes=True,
        erase_gate=True,
        key_shift=True,
    ),
    "parallel states": replace(FLOORED, state_update_mode="no_lambda", num_state_heads=2),
    "writes decay the state": FLOORED,
}
TOKENS = 24


def passed(
    config: AdapterConfig, *, batch: int = 2, applies: bool = True, start: MemoryState | None = None
) -> tuple[MemoryCall, MemoryState]:
    """Run a tiny model once, writing every token but the last two; returns the call and the new state."""
    model = tiny_model("llama")
    adapter = random_adapter(model, config)
    attachment = attach(model, adapter)
    ids = random_ids(batch, TOKENS)
    writes = torch.ones_like(ids, dtype=torch.bool)
    writes[:, -2:] = False
    state = adapter.zero_state(batch) if start is None else start
    call = MemoryCall(state, write_mask=writes, written={}, queries={}, applies=applies)
    with torch.no_grad():
        model(ids, **{CALL_KEYWORD: call})
    attachment.detach()
    return call, call.new_state()


@pytest.mark.parametrize("name", KEEPING)
def test_the_state_is_the_scan_of_the_writes(name: str) -> None:
    call, state = passed(KEEPING[name])
    for row, (places, writes) in enumerate(collected(call)):
        assert 0 < len(writes) < TOKENS - 2, "some tokens write and some do not"
        assert places.max() < TOKENS - 2
        found = scan_writes(KEEPING[name], writes)
        torch.testing.assert_close(found.matrices, state[row].matrices, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", KEEPING)
def test_scanning_in_two_parts_equals_scanning_at_once(name: str) -> None:
    call, _ = passed(KEEPING[name], batch=1)
    ((_, writes),) = collected(call)
    first = scan_writes(KEEPING[name], writes.select(slice(None, 3)))
    both = scan_writes(KEEPING[name], writes.select(slice(3, None)), first)
    torch.testing.assert_close(both.matrices, scan_writes(KEEPING[name], writes).matrices, atol=1e-6, rtol=1e-5)
    again = Writes.cat([writes.select(slice(None, 3)), writes.select(slice(3, None))])
    assert torch.equal(again.keys, writes.keys) and torch.equal(again.erase, writes.erase)


def test_stored_writes_give_the_same_state_to_two_digits() -> None:
    config = KEEPING["no decay"]
    call, state = passed(config, batch=1)
    ((_, writes),) = collected(call)
    distance = (scan_writes(config, writes.rounded()).matrices - state.matrices).norm() / state.matrices.norm()
    assert 0 < distance < 1e-2


def test_rounding_writes_twice_changes_nothing() -> None:
    call, _ = passed(KEEPING["no decay"], batch=1)
    ((_, writes),) = collected(call)
    once = writes.rounded()
    again = once.rounded()
    for name in ("keys", "write", "erase"):
        assert torch.equal(getattr(once, name), getattr(again, name))
    torch.testing.assert_close(once.values, again.values, atol=1e-6, rtol=1e-5)


def test_a_scanned_state_is_scanned_once_on_first_use() -> None:
    config, looks = KEEPING["no decay"], []
    nothing = MemoryState.zeros(1, LAYERS, 1, config.rank)

    def scan() -> MemoryState:
        looks.append(1)
        return nothing.random_like()

    state = ScannedState(nothing, scan)
    assert state.batch == 1 and state.geometry == nothing.geometry and state.nbytes == nothing.nbytes and not looks
    assert state.norm() == state.settled().norm() and len(looks) == 1


def test_a_pass_that_only_collects_reads_in_every_layer_and_does_not_change_the_state() -> None:
    config = KEEPING["no decay"]
    start = random_state(random_adapter(tiny_model("llama"), config), 2)
    call, after = passed(config, applies=False, start=start)
    assert torch.equal(after.matrices, start.matrices)
    assert all(len(writes) for _, writes in collected(call))
    assert call.queries is not None and len(call.queries) == LAYERS


def test_no_writes_give_a_zero_state() -> None:
    config = KEEPING["no decay"]
    nothing = Writes.none(LAYERS, 1, config.rank)
    assert len(nothing) == 0 and not scan_writes(config, nothing).matrices.any()


@pytest.mark.parametrize(
    "config",
    [FULL, replace(FLOORED, couple_lambda=False), replace(FLOORED, memory_write_granularity="message_mean")],
    ids=["no floor", "separate keep gate", "one write per message"],
)
def test_scanning_is_refused_if_the_state_is_more_than_the_scan_of_its_writes(config: AdapterConfig) -> None:
    assert not config.keeps_writes
    with pytest.raises(StateError, match="cannot be computed from this adapter's writes"):
        scan_writes(config, Writes.none(LAYERS, 1, config.rank))


def test_writes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(StateError, match="cannot join"):
        Writes.cat([Writes.none(2, 1, 4), Writes.none(2, 1, 8)])
    with pytest.raises(StateError, match="expected both"):
        Writes(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
    with pytest.raises(StateError, match="erase gates"):
        Writes(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 3))
