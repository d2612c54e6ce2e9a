"""Statements that a process wrote but did not commit, because it died: no snapshot lists them; they are deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from children import killed_at
from deltamem_agents.snapshots import FileStore
from deltamem_agents.testing.statement_conformance import example_statement, listing, tell

pytest.importorskip("resource", reason="needs a Unix")

SYSTEM_CALLS = ("fsync", "replace")
SECRET = "My secret is XYZZY."


def files(store: FileStore) -> set[str]:
    return {path.name for path in store.path.rglob("statements/*")}


def bytes_of(store: FileStore) -> bytes:
    return b"".join(path.read_bytes() for path in store.path.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("sweeps", ["prune", "erase"])
def test_nothing_stays_of_a_commit_interrupted_at_any_moment(sweeps: str, tmp_path: Path) -> None:
    original = FileStore(tmp_path / "original")
    ids = tell(original, "a", ["one", "two", "three"])
    statement, data = example_statement(SECRET)
    left_something = False
    for count in range(1, 30):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(original.path, tmp_path / "killed")
        store = FileStore(tmp_path / "killed")
        snapshot, head = listing(store, "a", [statement.id]), store.head("a")

        def save() -> None:
            FileStore(store.path).save("a", snapshot, expected=head, objects={statement.id: data})  # noqa: B023

        if not killed_at(count, SYSTEM_CALLS, save):
            break
        committed = store.head("a") != head
        left_something |= not committed and b"XYZZY" in bytes_of(store)
        if sweeps == "prune":
            receipt = store.prune("a", keep_last=99)
            assert set(receipt.statements) <= {statement.id} and not receipt.removed
        else:
            store.erase_statements("a", ids[:1])
        assert files(store) == {*ids, *([statement.id] if committed else [])}
        assert (b"XYZZY" in bytes_of(store)) == committed
        listed = [each.text for each in store.statements("a")]
        told = ["one", "two", "three"][sweeps == "erase" :]
        assert listed == [*told, *([SECRET] if committed else [])]
    else:
        pytest.fail("the commit never came to its end")
    assert left_something


@pytest.mark.slow
def test_statements_of_older_snapshots_and_forks_are_kept(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    ids = tell(store, "a", [f"fact {number}" for number in range(70)])
    store.fork("a", "b")
    store.rewind("a", list(store.log("a"))[40].id)
    store.prune("a", keep_last=1000)
    assert {path.name for path in store._folder("a").glob("statements/*")} >= set(ids)
    store.prune("b", keep_last=1)
    assert [each.id for each in store.statements("b")] == ids
