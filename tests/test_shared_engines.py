"""Laws of engines by name: each is opened once and shared, but every chat model has its own stores."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltamem_agents import InMemoryStore, SQLiteStore
from deltamem_agents.bridges import (
    EPHEMERAL,
    EngineSpec,
    Serving,
    bound,
    named_engines,
    shared_engine,
    shared_engines,
    use_agent,
)
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.snapshots import opening as opening_stores
from deltamem_agents.testing import ScriptedEngine


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were opened, in order."""
    names: list[str] = []

    def opening(spec: EngineSpec) -> DeltaMemEngine:
        names.append(spec.model)
        return ScriptedEngine(name=spec.model)

    monkeypatch.setattr(shared_engines, "_open", opening)
    monkeypatch.setattr(shared_engines, "_opened", {})
    return names


def test_a_model_is_opened_once_however_many_name_it(opened: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: shared_engine(EngineSpec("a")), range(16)))
    assert opened == ["a"] and len(set(map(id, engines))) == 1
    assert shared_engine(EngineSpec("a", window_tokens=100)) is not engines[0] and opened == ["a", "a"]


def test_a_name_can_refer_to_a_given_engine_inside_a_block(opened: list[str]) -> None:
    mine, inner = ScriptedEngine(), ScriptedEngine()
    with named_engines({"a": mine}):
        with named_engines({"a": inner, "b": inner}):
            assert shared_engine(EngineSpec("a")) is shared_engine(EngineSpec("b", window_tokens=9)) is inner
        assert shared_engine(EngineSpec("a")) is mine and opened == []
    assert shared_engine(EngineSpec("a")) is not mine and opened == ["a"]


def test_each_serving_has_stores_of_its_own_and_opens_them_once(opened: list[str]) -> None:
    one, two = Serving(), Serving()
    spec = EngineSpec("a")
    assert one.engine(spec, None, "memory:", "ada").store is one.engine(spec, None, "memory:", "bob").store
    assert one.engine(spec, None, "memory:", "ada").store is not two.engine(spec, None, "memory:", "ada").store
    store = InMemoryStore()
    assert one.engine(spec, None, store, "ada").store is store
    assert one.engine(spec, None, "memory:", "ada").model is two.engine(spec, None, store, "ada").model


def test_an_engine_that_is_given_serves_its_own_model_only(opened: list[str]) -> None:
    given = ScriptedEngine(name="mine")
    served = Serving().engine(EngineSpec("mine"), given, None, "ada")
    assert served.model is given.model and served.store is given.store and opened == []
    other = Serving().engine(EngineSpec("other"), given, None, "ada")
    assert other.model is not given.model and other.store is given.store and opened == ["other"]


def test_without_a_store_the_users_default_is_opened(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[object] = []

    def opening(store: object) -> InMemoryStore:
        named.append(store)
        return InMemoryStore()

    monkeypatch.setattr(opening_stores, "open_store", opening)
    serving = Serving()
    for agent in ("ada", "bob"):
        engine = serving.engine(EngineSpec("a"), None, None, agent)
        assert len(named) == (agent == "bob")
        assert engine.store is serving.engine(EngineSpec("a"), None, None, agent).store
    assert named == [None]


def test_a_path_names_a_store_as_its_text_does(opened: list[str], tmp_path: Path) -> None:
    serving, path = Serving(), tmp_path / "memory.sqlite"
    store = serving.engine(EngineSpec("a"), None, path, "ada").store
    assert isinstance(store, SQLiteStore) and store.path == path
    assert serving.engine(EngineSpec("a"), None, str(path), "ada").store is store
    with use_agent("ada", store=path):
        assert serving.engine(EngineSpec("a"), None, "memory:", "ada").store is store
    store.close()


def test_a_block_names_the_agent_inside_it_and_nowhere_else() -> None:
    assert bound() is None
    with use_agent("ada", thread="t", memory="readonly"):
        outer = bound()
        assert outer is not None and (outer.agent_id, outer.thread, outer.memory) == ("ada", "t", "readonly")
        with pytest.raises(KeyError), use_agent("bob"):
            raise KeyError
        assert bound() is outer
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(bound()))
        thread.start()
        thread.join()
        assert seen == [None]
    assert bound() is None


def test_a_block_may_name_the_store_of_its_agent(opened: list[str]) -> None:
    elsewhere, serving = InMemoryStore(), Serving()
    with use_agent("ada", store=elsewhere):
        assert serving.engine(EngineSpec("a"), None, "memory:", "ada").store is elsewhere
        for other in ("bob", EPHEMERAL):
            assert serving.engine(EngineSpec("a"), None, "memory:", other).store is not elsewhere
