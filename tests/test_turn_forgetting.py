"""Laws of turns in progress: forgetting the agent cancels them, and nothing else does."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

from client_turns import SHORT, U1, U2, U3, head
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import (
    AgentForgottenError,
)
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.snapshots import FileStore, InMemoryStore, SQLiteStore, Store
from tiny_engine import tiny_engine


@pytest.fixture
def engine() -> DeltaMemEngine:
    return tiny_engine()


def another_turn(engine: DeltaMemEngine) -> None:
    engine.run_turn("ada", [U2], thread="other", sampling=SHORT)


def forgotten(engine: DeltaMemEngine) -> None:
    engine.store.forget("ada")


def forgotten_and_made_anew(engine: DeltaMemEngine) -> None:
    engine.store.forget("ada")
    another_turn(engine)


def replaced(engine: DeltaMemEngine) -> None:
    elsewhere, file = tiny_engine(), io.BytesIO()
    another_turn(elsewhere)
    elsewhere.store.export("ada", file)
    engine.store.import_(file, replace=True)


def restored(engine: DeltaMemEngine) -> None:
    file = io.BytesIO()
    engine.store.export("ada", file)
    another_turn(engine)
    engine.store.import_(file, replace=True)
    another_turn(engine)


def pruned(engine: DeltaMemEngine) -> None:
    another_turn(engine)
    another_turn(engine)
    engine.store.prune("ada", keep_last=1)


class PlainStore(InMemoryStore):
    """A third-party store without its own `_incarnation` method."""

    _incarnation = Store._incarnation


@pytest.fixture(params=[InMemoryStore, PlainStore, SQLiteStore, FileStore])
def stored(request: pytest.FixtureRequest, tmp_path: Any) -> DeltaMemEngine:
    kind = request.param
    return tiny_engine(kind() if issubclass(kind, InMemoryStore) else kind(tmp_path / "store"))


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", [forgotten, forgotten_and_made_anew, replaced, restored])
def test_forgetting_wins_over_a_turn_in_progress(stored: DeltaMemEngine, meanwhile: Any) -> None:
    stored.run_turn("ada", [U1], sampling=SHORT)
    stream = stored.stream_turn("ada", [U3], sampling=SHORT)
    text = next(stream).text
    time.sleep(0.002)  # this store's incarnations are times in milliseconds
    meanwhile(stored)
    left = stored.store.head("ada")
    with pytest.raises(AgentForgottenError, match=r"'ada' was forgotten, or replaced .* Nothing of the turn"):
        for chunk in stream:
            text += chunk.text
    assert text and stored.store.head("ada") == left


@pytest.mark.parametrize("meanwhile", [forgotten, forgotten_and_made_anew, replaced])
def test_forgetting_wins_over_absorbing_in_progress(
    stored: DeltaMemEngine, meanwhile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.absorb_into("ada", [U1])
    absorbing, left = MemoryModel.absorbing, []

    def slow(speaker: MemoryModel, *given: Any) -> Iterator[int]:
        if not left:
            left.append(None)
            time.sleep(0.002)
            meanwhile(stored)
            left[:] = [stored.store.head("ada")]
        return absorbing(speaker, *given)

    monkeypatch.setattr(MemoryModel, "absorbing", slow)
    with pytest.raises(AgentForgottenError):
        stored.absorb_into("ada", [U3])
    assert [stored.store.head("ada")] == left


@pytest.mark.parametrize("meanwhile", [another_turn, pruned])
def test_other_turns_and_pruning_do_not_cancel_a_turn_in_progress(stored: DeltaMemEngine, meanwhile: Any) -> None:
    stored.run_turn("ada", [U1], sampling=SHORT)
    stored.run_turn("ada", [U2], sampling=SHORT)
    stream = stored.stream_turn("ada", [U3], sampling=SHORT)
    next(stream)
    meanwhile(stored)
    turn = list(stream)[-1].turn
    assert turn is not None and turn.facts.attempts == 2
    assert turn.snapshot == stored.store.head("ada") and head(stored).absorbed.count == 6


def test_a_first_turn_continues_another_first_turn_that_came_before_it(engine: DeltaMemEngine) -> None:
    stream = engine.stream_turn("ada", [U1], sampling=SHORT)
    next(stream)
    another_turn(engine)
    assert list(stream)[-1].turn is not None and head(engine).counters.messages == 4
