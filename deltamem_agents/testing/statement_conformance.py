"""A conformance suite for stores that keep statements, in addition to `StoreConformance`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.errors import DamagedSnapshotError, StaleHeadError
from deltamem_agents.testing.conformance import refused

if TYPE_CHECKING:
    from deltamem_agents.snapshots import Snapshot, Statement, Store


def example_statement(text: str, place: int = 0) -> tuple[Statement, bytes]:
    """A statement with two random writes, and its encoded bytes."""
    import torch

    from deltamem_agents.memory.writes import StoredWrites, Writes
    from deltamem_agents.snapshots import Statement, address, encode_statement, utc_now

    keys = torch.nn.functional.normalize(torch.randn(2, 3, 1, 4), dim=-1)
    gates = torch.rand(2, 3, 1, 1)
    stored = StoredWrites.of(Writes(keys, torch.randn(2, 3, 1, 4), gates, gates))
    made = Statement("", "user", text, "", place, utc_now(), (5, 6, 7), (0, 2), stored)
    data = encode_statement(made)
    return replace(made, id=address(data)), data


def tell(store: Store, agent: str, texts: Sequence[str]) -> list[str]:
    """Commits an example statement for each text, in order. Returns their ids."""
    found = []
    for text in texts:
        statement, data = example_statement(text)
        snapshot = listing(store, agent, [statement.id])
        store.save(agent, snapshot, expected=store.head(agent), objects={statement.id: data})
        found.append(statement.id)
    return found


def listing(store: Store, agent: str, add: Sequence[str]) -> Snapshot:
    """A snapshot that follows the agent's head and adds these statements."""
    import torch

    from deltamem_agents.memory.state import MemoryState
    from deltamem_agents.snapshots import Fingerprint, Snapshot, StatementList

    head = store.head(agent)
    before = StatementList() if head is None else store.load(agent).snapshot.statements or StatementList()
    base = MemoryState(torch.zeros(1, 3, 1, 4, 4))
    return Snapshot(
        state=base,
        fingerprint=Fingerprint("model", "tokenizer", "adapter"),
        parent=head,
        statements=before.changed({}, add=add)[0],
        base=base,
    )


class StatementConformance:
    """The laws of stored statements. Subclass it in your tests and define `make_store` as for `StoreConformance`."""

    durable = True

    def make_store(self, folder: Path) -> Store:
        """A store in this folder, which may contain files of an earlier one."""
        raise NotImplementedError("define make_store so that it returns the store under test")

    def test_statements_are_read_as_they_were_saved(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            statement, data = example_statement("I live in Oslo. ☃ \0")
            store.save("a", listing(store, "a", [statement.id]), expected=None, objects={statement.id: data})
            (found,) = store.statements("a")
            assert (found.id, found.text, found.tokens, found.written) == (
                statement.id,
                statement.text,
                statement.tokens,
                statement.written,
            )
            assert found.stored is not None and statement.stored is not None
            for part in ("keys", "values", "scales", "write", "erase"):
                assert getattr(found.stored, part).equal(getattr(statement.stored, part))
            assert store.load("a").snapshot.state.norm() > 0

    def test_statements_outlive_the_process(self, tmp_path: Path) -> None:
        if not self.durable:
            return
        with self.make_store(tmp_path) as store:
            ids = tell(store, "a", ["one", "two"])
        with self.make_store(tmp_path) as store:
            assert [each.id for each in store.statements("a")] == ids

    def test_a_snapshot_lists_its_own_statements(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = tell(store, "a", ["one", "two", "three"])
            entries = list(store.log("a"))[::-1]
            for count, entry in enumerate(entries, 1):
                assert [each.id for each in store.statements("a", entry.id)] == ids[:count]

    def test_a_commit_that_came_too_late_leaves_no_statement(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            tell(store, "a", ["one"])
            statement, data = example_statement("late")
            with refused(StaleHeadError):
                store.save("a", listing(store, "a", [statement.id]), expected=None, objects={statement.id: data})
            assert store._objects("a", [statement.id]) == {}

    def test_forks_share_statements_and_lose_none(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = tell(store, "a", ["one", "two"])
            store.fork("a", "b")
            assert store.holders(ids, but="a") == ("b",)
            removed = store.erase_statements("a", ids[:1])
            assert removed.kept == (ids[0],) and not removed.removed
            assert [each.id for each in store.statements("a")] == ids[1:]
            assert [each.id for each in store.statements("b")] == ids
            store.forget("a")
            assert [each.text for each in store.statements("b")] == ["one", "two"]
            tell(store, "b", ["three"])
            assert [each.text for each in store.statements("b")] == ["one", "two", "three"]

    def test_a_fork_of_an_older_snapshot_holds_no_later_statement(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = tell(store, "a", ["one", "two"])
            store.fork("a", "b", list(store.log("a"))[1].id)
            assert store._objects("b", ids).keys() == {ids[0]}

    def test_erased_statements_leave_no_byte(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            texts = [f"secret number {number} is <XYZZY{number}>" for number in range(40)]
            ids = tell(store, "a", texts)
            removed = store.erase_statements("a", [ids[3], ids[17]])
            assert set(removed.removed) == {ids[3], ids[17]} and removed.nbytes > 0
            held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            for gone in (3, 17):
                assert f"<XYZZY{gone}>".encode() not in held
                assert not any(each.id == ids[gone] for each in store.statements("a"))
            assert len(store.statements("a")) == 38
            assert store.erase_statements("a", [ids[3]]).removed == ()

    def test_forgetting_an_agent_leaves_no_byte_of_its_statements(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            tell(store, "a", [f"secret XYZZY{number}" for number in range(5)])
            tell(store, "b", ["other"])
            store.forget("a")
            held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            assert b"XYZZY" not in held
            assert [each.text for each in store.statements("b")] == ["other"]

    def test_an_export_brings_statements_along(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = tell(store, "a", ["one", "two", "three"])
            store.erase_statements("a", ids[1:2])
            file = io.BytesIO()
            store.export("a", file)
            file.seek(0)
            store.import_(file, "b")
            assert [each.id for each in store.statements("b")] == [ids[0], ids[2]]
            file.seek(0)
            tell(store, "a", ["four"])
            store.import_(file, "a", replace=True)
            assert [each.id for each in store.statements("a")] == [ids[0], ids[2]]

    def test_a_changed_statement_is_refused(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            statement, data = example_statement("one")
            wrong = data[:-1] + bytes([data[-1] ^ 1])
            store.save("a", listing(store, "a", [statement.id]), expected=None, objects={statement.id: wrong})
            with refused(DamagedSnapshotError):
                store.statements("a")

    def test_pruning_drops_statements_that_nothing_lists(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = tell(store, "a", ["one", "two"])
            head = store.load("a")
            assert head.snapshot.statements is not None
            listed, _ = head.snapshot.statements.changed({}, drop=frozenset(ids[:1]))
            store.save("a", replace(head.snapshot, statements=listed, parent=head.id), expected=head.id)
            store.prune("a", keep_last=1)
            assert store._objects("a", ids).keys() == {ids[1]}
