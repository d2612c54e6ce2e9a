"""Laws of messages that leave a client's window: absorbed once, after everything else, in one commit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.chat.history import extend, known_ahead
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ForeignSnapshotError, InvalidAgentIdError, MessageError
from deltamem_agents.types import Message, Sampling, ThreadLog
from tiny_engine import tiny_engine

SHORT = Sampling(max_tokens=6)
U1, U2, U3 = (Message("user", text) for text in ("I live in Oslo.", "My cat is Miu.", "Where do I live?"))
A1, A2 = Message("assistant", "Nice."), Message("assistant", "Sweet.")


@pytest.fixture
def engine() -> DeltaMemEngine:
    return tiny_engine()


@pytest.mark.slow
def test_absorbed_messages_are_in_the_state_and_in_the_log(engine: DeltaMemEngine) -> None:
    at = engine.absorb_into("ada", [U1, A1])
    entry = engine.store.load("ada")
    assert at == entry.id and entry.snapshot.origin == "absorb"
    assert entry.snapshot.absorbed.count == entry.snapshot.counters.messages == 2
    assert entry.snapshot.counters.tokens == engine.count_tokens([U1, A1])
    assert torch.equal(entry.snapshot.state.matrices, engine.absorb(engine.new_state(), [U1, A1]).matrices)


@pytest.mark.slow
def test_a_turn_reads_what_was_absorbed_before(engine: DeltaMemEngine) -> None:
    engine.absorb_into("ada", [U1, A1])
    facts = engine.run_turn("ada", [U3], sampling=SHORT, memory="readonly").facts
    assert facts.state_norm == pytest.approx(engine.store.load("ada").snapshot.state.norm())
    assert facts.tokens_written == 0


@pytest.mark.slow
def test_nothing_is_absorbed_twice(engine: DeltaMemEngine) -> None:
    engine.absorb_into("ada", [U1, A1])
    assert engine.absorb_into("ada", [U1, A1]) is None
    engine.absorb_into("ada", [U1, A1, U2, A2])
    assert engine.store.load("ada").snapshot.absorbed.count == 4
    assert engine.absorb_into("ada", [U1, A1, U2]) is None
    assert engine.absorb_into("ada", []) is None and engine.absorb_into("nobody", []) is None
    assert engine.store.agents() == ["ada"]


@pytest.mark.slow
def test_messages_that_a_turn_wrote_are_known_when_they_leave_the_window(engine: DeltaMemEngine) -> None:
    first = engine.run_turn("ada", [U1], sampling=SHORT, thread="t").message
    engine.run_turn("ada", [U1, first, U2], sampling=SHORT, thread="t")
    before = engine.store.head("ada")
    assert engine.absorb_into("ada", [U1, first], thread="t") is None and engine.store.head("ada") == before
    assert engine.absorb_into("ada", [U1, first], thread="another") is not None


def test_other_threads_are_not_changed(engine: DeltaMemEngine) -> None:
    engine.run_turn("ada", [U1], sampling=SHORT, thread="t")
    engine.absorb_into("ada", [U2, A2], thread="flushed")
    head = engine.store.load("ada")
    assert head.threads().keys() == {"t", "flushed"}
    newest = head.newest("t")
    assert newest is not None and engine.store.load("ada", newest).snapshot.absorbed.count == 2


def test_writers_at_the_same_time_lose_nothing(engine: DeltaMemEngine) -> None:
    pairs = [[Message("user", f"Fact {n}."), Message("assistant", f"Noted {n}.")] for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: engine.absorb_into("ada", pair), pairs))
    assert engine.store.load("ada").snapshot.absorbed.count == 12
    assert len(list(engine.store.log("ada"))) == 6


def test_a_refused_absorption_changes_nothing(engine: DeltaMemEngine) -> None:
    engine.absorb_into("ada", [U1, A1])
    before = engine.store.head("ada")
    with pytest.raises(MessageError):
        engine.absorb_into("ada", [U2, {"role": "robot", "content": "x"}])
    with pytest.raises(InvalidAgentIdError):
        engine.absorb_into("", [U2])
    with pytest.raises(ForeignSnapshotError):
        tiny_engine(engine.store, seed=1).absorb_into("ada", [U2])
    assert engine.store.head("ada") == before


DIGESTS = st.lists(st.sampled_from(["u:1", "u:2", "a:1", "a:2"]), max_size=8)


@given(DIGESTS, DIGESTS, DIGESTS)
def test_messages_at_the_end_of_the_log_are_known_when_they_leave_the_window(
    log: list[str], shared: list[str], more: list[str]
) -> None:
    held = extend(ThreadLog(), log + shared)
    known = known_ahead(held, shared + more)
    assert len(shared) <= known <= len(shared + more)
    assert {message for message in (shared + more)[:known] if message.startswith("u")} <= {*log, *shared}


@given(DIGESTS)
def test_nothing_is_known_to_an_empty_log(leaving: list[str]) -> None:
    assert known_ahead(ThreadLog(), leaving) == 0


def test_a_greeting_said_before_is_not_known() -> None:
    held = extend(ThreadLog(), ["u:hello", "a:1", "u:2", "a:2"])
    assert known_ahead(held, ["u:hello"]) == 0
    assert known_ahead(held, ["u:hello", "a:3"]) == 0
    assert known_ahead(held, ["u:hello", "a:1"]) == 2
