"""Laws of closing: an engine closes the engines made from it, not the reverse; a running turn changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import EngineClosedError, StoreError, UnsupportedModelError
from deltamem_agents.memory.attach import attach
from deltamem_agents.snapshots import InMemoryStore, SQLiteStore
from deltamem_agents.types import Message, Sampling
from tiny_engine import tiny_engine

SAID, SHORT = [Message("user", "Hi.")], Sampling(max_tokens=3)


def works(engine: DeltaMemEngine) -> bool:
    return engine.run_turn("ada", SAID, sampling=SHORT).snapshot is not None


def test_closing_a_second_engine_leaves_its_original_and_the_others_open(tmp_path: Path) -> None:
    engine = tiny_engine(SQLiteStore(tmp_path / "one.sqlite"))
    same, other = engine.with_store(engine.store), engine.with_store(SQLiteStore(tmp_path / "two.sqlite"))
    last = other.with_store(InMemoryStore())
    same.close()
    assert works(engine) and works(other) and works(last)
    other.close()
    with pytest.raises(StoreError, match="closed"):
        other.store.agents()
    assert works(engine)


def test_a_closed_engine_raises_an_error(tmp_path: Path) -> None:
    engine = tiny_engine(SQLiteStore(tmp_path / "one.sqlite"))
    twin = engine.with_store(InMemoryStore())
    grandchild = twin.with_store(InMemoryStore())
    engine.close()
    state = engine.adapter.zero_state()
    for closed in (engine, twin, grandchild):
        for call in (
            lambda one: one.run_turn("ada", SAID),
            lambda one: one.stream_turn(None, SAID),
            lambda one: one.absorb(state, SAID),
            lambda one: one.absorb_into("ada", SAID),
            lambda one: one.absorb_batch([state], [SAID]),
            lambda one: one.score(None, SAID, "a"),
            lambda one: one.greedy_replies(None, [SAID], max_tokens=1),
            lambda one: one.count_tokens(SAID),
            lambda one: one.with_store(InMemoryStore()).run_turn("ada", SAID),
        ):
            with pytest.raises(EngineClosedError, match="closed"):
                call(closed)


def test_closing_twice_is_closing_once() -> None:
    engine = tiny_engine()
    model, adapter = engine.model, engine.adapter
    engine.close()
    attachment = attach(model, adapter)
    engine.close()
    with pytest.raises(UnsupportedModelError, match="carries a memory already"):
        attach(model, adapter)
    attachment.detach()


def test_a_turn_that_runs_when_its_engine_is_closed_changes_nothing() -> None:
    store = InMemoryStore()
    engine = tiny_engine(store)
    twin = engine.with_store(store)
    for one, closes in ((twin, twin), (engine, engine)):
        stream = one.stream_turn("ada", SAID, sampling=Sampling(max_tokens=20))
        next(stream)
        closes.close()
        with pytest.raises(EngineClosedError):
            list(stream)
        assert store.head("ada") is None


def test_an_engine_closed_between_the_reply_and_the_commit_commits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = InMemoryStore()
    engine = tiny_engine(store)
    chunks = engine.stream_turn("ada", SAID, sampling=Sampling(max_tokens=1))
    shown = [next(chunks)]
    engine.close()
    with pytest.raises(EngineClosedError):
        shown += list(chunks)
    assert store.head("ada") is None


def test_an_engine_closed_within_a_forward_pass_says_so() -> None:
    store = InMemoryStore()
    engine = tiny_engine(store)
    calls = 0

    def close(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            engine.close()

    engine.model.model.layers[0].register_forward_hook(close)
    with pytest.raises(EngineClosedError):
        engine.run_turn("ada", SAID, sampling=Sampling(max_tokens=20))
    assert store.head("ada") is None


def test_an_engine_closes_at_the_end_of_its_block() -> None:
    with tiny_engine() as engine:
        assert works(engine)
    with pytest.raises(EngineClosedError):
        works(engine)
