"""Missing agents, snapshots and tags have their own errors, in every store."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltamem_agents import AgentNotFound, AgentNotFoundError, SnapshotNotFoundError, TagNotFoundError
from deltamem_agents.snapshots import FileStore, InMemoryStore, SQLiteStore, Store
from tiny_engine import tiny_engine


@pytest.fixture(params=["memory", "folder", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return InMemoryStore()
    return FileStore(tmp_path / "agents") if request.param == "folder" else SQLiteStore(tmp_path / "agents.sqlite")


def test_a_missing_agent_snapshot_and_tag_have_errors_of_their_own(store: Store) -> None:
    engine = tiny_engine(store)
    engine.absorb_into("ada", [{"role": "user", "content": "Hi."}])
    with pytest.raises(AgentNotFoundError) as nobody:
        store.load("bob")
    with pytest.raises(SnapshotNotFoundError) as nothing:
        store.load("ada", "0123456789")
    with pytest.raises(SnapshotNotFoundError):
        store.rewind("ada", "0" * 64)
    with pytest.raises(TagNotFoundError) as unnamed:
        store.untag("ada", "monday")
    assert type(nobody.value) is AgentNotFoundError
    assert isinstance(nothing.value, AgentNotFound) and isinstance(unnamed.value, AgentNotFound)
    assert "monday" in str(unnamed.value) and "0123456789" in str(nothing.value)
