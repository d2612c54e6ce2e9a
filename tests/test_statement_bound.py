"""Laws of the bound on statements: how many are kept, which are dropped first, and what remains of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents import (
    ConfigError,
    DeltaMemEngine,
    FileStore,
    InMemoryStore,
    Recall,
    Sampling,
    SQLiteStore,
    StatementNotFoundError,
    Store,
    WritePolicy,
)
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import StoredWrites, Writes
from deltamem_agents.snapshots import Statement
from deltamem_agents.snapshots.codec import decode, encode
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.memories import AgentMemory, scan_statements
from deltamem_agents.turns.migrating import survey
from tiny_engine import tiny_engine

SHORT = Sampling(max_tokens=3)
STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: InMemoryStore(),
    "file": lambda folder: FileStore(folder / "store"),
    "sqlite": lambda folder: SQLiteStore(folder / "store.sqlite"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORES[request.param](tmp_path) as store:
        yield store


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bounded(store: Store | None = None, statements: int | None = 4) -> DeltaMemEngine:
    return tiny_engine(store, config=SELECTIVE, policy=WritePolicy(statements=statements))


def texts(engine: DeltaMemEngine, role: str = "user") -> list[str]:
    return [each.text for each in engine.store.statements("a") if each.role == role]


def state(engine: DeltaMemEngine) -> torch.Tensor:
    return engine.store.load("a").snapshot.state.matrices


def made(number: int, role: str, wrote: bool) -> Statement:
    generator = torch.Generator().manual_seed(number)
    count = 2 if wrote else 0
    keys = torch.nn.functional.normalize(torch.randn(count, 2, 1, 4, generator=generator), dim=-1)
    gates = torch.rand(count, 2, 1, 1, generator=generator)
    stored = StoredWrites.of(Writes(keys, torch.randn(count, 2, 1, 4, generator=generator), gates, gates / 2))
    return Statement(f"{number:032x}", role, "", "", number, "", stored=stored)  # type: ignore[arg-type]


def empty() -> AgentMemory:
    return AgentMemory(MemoryState(torch.zeros(1, 2, 1, 4, 4)))


spoken = st.tuples(st.sampled_from(("user", "assistant", "tool")), st.booleans())
turns_said = st.lists(st.lists(spoken, min_size=1, max_size=4), max_size=12)


def grown(
    turns: Sequence[Sequence[tuple[str, bool]]], most: int | None
) -> Iterator[tuple[AgentMemory, list[Statement]]]:
    """The memory after each turn, and all statements dropped so far, in that order."""
    memory, gone, number = empty(), [], 0
    for turn in turns:
        new = [made(number + place, role, wrote) for place, (role, wrote) in enumerate(turn)]
        number += len(new)
        memory, _, over = memory.changed(None, "", new, most=most)
        gone.extend(over)
        yield memory, list(gone)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(turns_said, st.integers(1, 40))
def test_the_bound_is_kept_and_the_full_state_loses_nothing(turns: list[list[tuple[str, bool]]], most: int) -> None:
    said = 0
    for turn, (memory, gone) in zip(turns, grown(turns, most), strict=True):
        said += len(turn)
        held = [each.id for each in memory.statements]
        assert len(held) <= most and memory.went == len(gone) and len(held) + len(gone) == said
        assert held == sorted(held)
        # The state is the scan of the remaining statements on top of the folded state, bit for bit.
        assert torch.equal(memory.state.matrices, scan_statements(memory.statements, memory.start, False).matrices)
        every = scan_statements([*gone, *memory.statements], memory.base, False)
        torch.testing.assert_close(memory.state.matrices, every.matrices)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 3), max_size=10), st.integers(1, 20))
def test_if_the_oldest_are_dropped_the_full_state_is_as_without_a_bound(counts: list[int], most: int) -> None:
    turns = [[("user", True)] * count for count in counts]
    for (memory, gone), (free, _) in zip(grown(turns, most), grown(turns, None), strict=True):
        assert [each.id for each in gone] == [each.id for each in free.statements][: len(gone)]
        torch.testing.assert_close(memory.state.matrices, free.state.matrices)


def test_dropped_first_are_empty_ones_then_the_assistants_then_the_oldest() -> None:
    said = [("user", True), ("assistant", True), ("user", False), ("tool", True), ("assistant", True), ("user", True)]
    memory, order = empty().changed(None, "", [made(place, *each) for place, each in enumerate(said)], most=None)[0], []
    for number in range(5):
        memory, _, gone = memory.changed(None, "", [made(100 + number, "user", True)], most=6)
        order += [each.place for each in gone]
    assert order == [2, 1, 4, 0, 3]
    # New statements are dropped last, even if they are empty or the assistant's.
    memory, _, gone = memory.changed(None, "", [made(200, "assistant", False)], most=6)
    assert [each.place for each in gone] == [5]


def test_with_a_large_bound_a_sixteenth_is_dropped_at_once() -> None:
    new = [made(place, "user", True) for place in range(161)]
    memory, _, gone = empty().changed(None, "", new[:160], most=160)
    assert not gone
    memory, _, gone = memory.changed(None, "", new[160:], most=160)
    assert [each.place for each in gone] == list(range(11)) and len(memory.statements) == 150


@pytest.mark.slow
def test_turns_absorbing_and_correcting_stay_within_the_bound(store: Store) -> None:
    engine, free = bounded(store), bounded(InMemoryStore(), None)
    for number in range(4):
        for each in (engine, free):
            each.run_turn("a", [user(f"Fact {number} is {number * 7}.")], sampling=SHORT)
            each.absorb_into("a", [user(f"Also {number * 3}.")])
        assert len(store.statements("a")) <= 4
    assert texts(engine) == ["Fact 2 is 14.", "Also 6.", "Fact 3 is 21.", "Also 9."]
    entry = store.load("a")
    assert entry.snapshot.went == len(free.store.statements("a")) - 4
    assert entry.snapshot.folded is not None and not entry.snapshot.base.matrices.any()  # type: ignore[union-attr]
    assert torch.equal(scan_statements(store.statements("a"), entry.snapshot.folded, False).matrices, state(engine))
    named = engine.statements("a")[0].id
    engine.correct_statement("a", named, "Fact 2 is 15.")
    assert len(store.statements("a")) == 4 and store.load("a").snapshot.went == entry.snapshot.went
    # Another engine reads the same, and so do the snapshot's own bytes.
    snapshot = store.load("a").snapshot
    again = decode(encode(snapshot))
    assert again.folded is not None and torch.equal(again.folded.matrices, snapshot.folded.matrices)  # type: ignore[union-attr]
    assert again.went == snapshot.went and encode(again) == encode(snapshot)
    assert [each.id for each in bounded(store).statements("a")] == [each.id for each in engine.statements("a")]


def test_an_import_with_more_is_brought_within_the_bound_by_the_next_commit(tmp_path: Path) -> None:
    free = bounded(InMemoryStore(), None)
    free.absorb_into("a", [user(f"Fact {number}.") for number in range(9)])
    free.store.export("a", tmp_path / "a")
    engine = bounded()
    engine.store.import_(tmp_path / "a")
    assert len(engine.statements("a")) == 9
    named = engine.statements("a")[8].id
    engine.correct_statement("a", named, "Fact 88.")
    assert texts(engine) == ["Fact 5.", "Fact 6.", "Fact 7.", "Fact 88."]
    free.correct_statement("a", named, "Fact 88.")
    torch.testing.assert_close(state(engine), state(free))
    # An export keeps the dropped statements' writes.
    engine.store.export("a", tmp_path / "b")
    other = bounded()
    other.store.import_(tmp_path / "b")
    assert torch.equal(state(other), state(engine)) and other.store.load("a").snapshot.went == 5


def test_a_single_message_within_the_bound_is_kept() -> None:
    engine = bounded(statements=1)
    engine.run_turn("a", [user("I live in Oslo.")], sampling=SHORT)
    assert texts(engine) == ["I live in Oslo."] and texts(engine, "assistant") == []


def test_a_selected_statement_is_read_without_dropped_ones() -> None:
    engine = bounded()
    engine.absorb_into("a", [user(f"Fact {number} is {number * 7}.") for number in range(9)])
    question = [user("Fact 8 is what?")]
    some = Sampling(max_tokens=20)
    turn = engine.run_turn("a", question, memory="readonly", sampling=some)
    chosen = [each for each in engine.statements("a") if each.id in {one.id for one in turn.facts.recalled}]
    zero = MemoryState(torch.zeros_like(state(engine)))
    assert turn.facts.state_norm == pytest.approx(scan_statements(chosen, zero, False).norm())
    silent = engine.run_turn("a", question, memory="readonly", sampling=some, recall=Recall(roles=()))
    assert silent.text == engine.run_turn("a", question, memory="off", sampling=some).text
    everything = engine.run_turn("a", question, memory="readonly", sampling=SHORT, recall=Recall("all"))
    assert everything.facts.state_norm == pytest.approx(MemoryState(state(engine)).norm())


def test_a_dropped_statement_cannot_be_forgotten_and_the_error_says_what_to_do(store: Store) -> None:
    engine = bounded(store)
    engine.absorb_into("a", [user(f"Fact {number}.") for number in range(4)])
    first = engine.statements("a")[0].id
    with pytest.raises(StatementNotFoundError) as none_went:
        engine.forget_statement("a", "0" * 32)
    assert "bound" not in str(none_went.value)
    engine.absorb_into("a", [user("Fact 4.")])
    head = store.head("a")
    for change in (lambda: engine.forget_statement("a", first), lambda: engine.correct_statement("a", first, "No.")):
        with pytest.raises(StatementNotFoundError, match=f"{first}.*1 that went over the bound.*memory migrate"):
            change()
    assert store.head("a") == head
    # Following the error's advice works.
    assert survey(store, "a").whole_state and survey(store, "a").statements == 4


def test_pruning_deletes_dropped_statements_unless_a_fork_holds_them(store: Store) -> None:
    engine = bounded(store)
    engine.absorb_into("a", [user(f"Fact {number}.") for number in range(4)])
    first = engine.statements("a")[0].id
    store.fork("a", "b")
    engine.absorb_into("a", [user("Fact 4.")])
    assert first in [each.id for each in store.statements("b")]
    before = state(engine)
    store.prune("a", keep_last=1)
    held = store._objects("a", [first])
    # The snapshot where the fork began is kept, and so are its statements.
    assert held
    store.forget("b")
    store.prune("a", keep_last=1)
    assert store._objects("a", [first]) == {}
    assert torch.equal(state(bounded(store)), before)


def test_edits_of_kept_statements_are_exact_and_of_dropped_ones_are_new() -> None:
    engine = bounded(statements=6)
    history: list[dict[str, str]] = []
    for text in ("I live in Oslo.", "My name is Ada.", "My dog is Rex.", "I like tea."):
        history.append(user(text))
        reply = engine.run_turn("a", history, thread="t", sampling=SHORT).text
        history.append({"role": "assistant", "content": reply})
    assert len(engine.store.statements("a")) <= 6
    edited = [*history[:4], user("My dog is Max."), *history[5:], user("And?")]
    turn = engine.run_turn("a", edited, thread="t", sampling=SHORT)
    assert turn.facts.alignment == "diverged"
    assert "My dog is Max." in texts(engine) and "My dog is Rex." not in texts(engine)
    entry = engine.store.load("a").snapshot
    assert entry.folded is not None
    assert torch.equal(scan_statements(engine.store.statements("a"), entry.folded, False).matrices, state(engine))


def test_a_memory_of_one_state_lists_no_more_than_the_bound_either() -> None:
    engine, free = (tiny_engine(policy=WritePolicy(statements=most)) for most in (3, None))
    for each in (engine, free):
        for number in range(4):
            each.absorb_into("a", [user(f"Fact {number}.")])
    assert texts(engine) == ["Fact 1.", "Fact 2.", "Fact 3."]
    assert torch.equal(state(engine), state(free)) and engine.store.load("a").snapshot.went == 1


def test_a_warning_is_logged_when_statements_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    engine = bounded()
    with caplog.at_level(logging.WARNING):
        engine.absorb_into("a", [user(f"Fact {number}.") for number in range(4)])
        assert not caplog.records
        engine.absorb_into("a", [user("Fact 4.")])
    assert "1 of them are now only in its full state" in caplog.text


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="statements is 0, expected 1 or more, or None"):
        WritePolicy(statements=0)
    assert replace(WritePolicy(), statements=None).statements is None
