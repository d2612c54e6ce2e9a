"""Every store passes the conformance suite and its own tests."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from deltamem_agents.errors import (
    AgentNotFoundError,
    DamagedSnapshotError,
    NewerFormatError,
    StaleHeadError,
    StoreError,
)
from deltamem_agents.snapshots import FileStore, InMemoryStore, SQLiteStore, Store
from deltamem_agents.testing.conformance import StoreConformance, example_snapshot, grow
from deltamem_agents.testing.statement_conformance import StatementConformance


class TestInMemoryStore(StoreConformance, StatementConformance):
    durable = False

    def make_store(self, folder: Path) -> Store:
        return InMemoryStore()


class TestAStoreThatTellsIncarnationsByItsJournal(TestInMemoryStore):
    """A third-party store that implements only the required methods."""

    def make_store(self, folder: Path) -> Store:
        class Plain(InMemoryStore):
            _incarnation = Store._incarnation

        return Plain()


class TestFileStore(StoreConformance, StatementConformance):
    def make_store(self, folder: Path) -> Store:
        return FileStore(folder / "memory")


class TestSQLiteStore(StoreConformance, StatementConformance):
    def make_store(self, folder: Path) -> Store:
        return SQLiteStore(folder / "memory.db")


class TestFileStoreWithoutHardLinks(TestFileStore):
    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def link(source: Path, target: Path) -> None:
            if not os.path.exists(source):
                raise FileNotFoundError(source)
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestSQLiteFile:
    def test_commits_are_durable_and_deletions_wiped(self, tmp_path: Path) -> None:
        with SQLiteStore(tmp_path / "memory.db") as store, store._reading() as db:
            pragmas = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")}
            assert pragmas == {"synchronous": 2, "journal_mode": "wal"}
            assert db.execute("PRAGMA secure_delete").fetchone()[0] == 1

    def test_creates_its_folders_and_nothing_else(self, tmp_path: Path) -> None:
        with SQLiteStore(tmp_path / "deep" / "down" / "memory.db") as store:
            grow(store, "a", 1)
        assert [path.name for path in (tmp_path / "deep" / "down").iterdir()] == ["memory.db"]

    @pytest.mark.parametrize(
        "data",
        [b"", b"notes, not a database", b"SQLite format 3\x00", b"\0" * 4096, b"PK\x03\x04" + b"\0" * 200],
        ids=["empty", "text", "header only", "zeros", "zip"],
    )
    def test_a_file_that_is_no_database_is_refused_and_not_changed(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"notes\.txt' .*expected a SQLite file.*left alone"):
            SQLiteStore(path)
        assert contents(tmp_path) == {"notes.txt": data}

    def test_another_programs_database_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "other.db"
        with sqlite3.connect(path) as db:
            db.executescript("CREATE TABLE cookies (name TEXT); PRAGMA journal_mode = WAL;")
        db.close()
        before = contents(tmp_path)
        with pytest.raises(StoreError, match="another program"):
            SQLiteStore(path)
        assert contents(tmp_path) == before

    def test_a_newer_schema_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.db"
        with SQLiteStore(path) as store, store._reading() as db:
            db.execute("PRAGMA user_version = 3")
        before = contents(tmp_path)
        with pytest.raises(NewerFormatError, match=r"schema 3, .* reads up to 2; upgrade"):
            SQLiteStore(path)
        assert contents(tmp_path) == before

    def test_a_truncated_file_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.db"
        with SQLiteStore(path) as store:
            grow(store, "a", 30)
        whole = path.read_bytes()
        for length in (50, 5000, len(whole) // 2, len(whole) - 1000):
            path.write_bytes(whole[:length])
            with pytest.raises((DamagedSnapshotError, StoreError)), SQLiteStore(path) as store:
                list(store.log("a"))
            assert path.read_bytes() == whole[:length]

    def test_a_log_without_its_database_is_not_replayed_into_a_new_one(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.db"
        (tmp_path / "memory.db-wal").write_bytes(b"frames")
        with pytest.raises(StoreError, match="is missing but its log"):
            SQLiteStore(path)
        assert contents(tmp_path) == {"memory.db-wal": b"frames"}

    def test_a_closed_store_raises_an_error(self, tmp_path: Path) -> None:
        store = SQLiteStore(tmp_path / "memory.db")
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.head("a")

    def test_an_interrupted_erasure_is_finished_at_the_next_opening(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.db"
        with SQLiteStore(path) as store:
            grow(store, "secret agent", 3)
            grow(store, "other", 3, seed=10)
            store._scrub = lambda: None  # type: ignore[method-assign]
            store.forget("secret agent")
            assert store._unfinished_erasure()
            assert b"secret agent" in b"".join(contents(tmp_path).values())
            with SQLiteStore(path) as second:
                assert not second._unfinished_erasure()
                assert b"secret agent" not in b"".join(contents(tmp_path).values())
                assert second.agents() == ["other"]

    def test_an_erasure_that_cannot_finish_says_what_is_left_to_do(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.db"
        with SQLiteStore(path, timeout=0.2) as store:
            grow(store, "secret agent", 3)
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM moves").fetchall()
            with store._reading() as db:
                db.execute("PRAGMA busy_timeout = 50")
            with pytest.raises(StoreError, match="was forgotten, but its bytes are not yet wiped"):
                store.forget("secret agent")
            assert store.agents() == []
            reader.close()
        SQLiteStore(path).close()
        assert b"secret agent" not in b"".join(contents(tmp_path).values())


class TestFileFolder:
    def agent_file(self, folder: Path, name: str) -> Path:
        (found,) = folder.glob(f"agents/*/{name}")
        return found

    def test_a_folder_that_is_no_store_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(b"jpeg")
        with pytest.raises(StoreError, match=r"holds 'photo\.jpg' and no store\.json"):
            FileStore(tmp_path)
        assert contents(tmp_path) == {"photo.jpg": b"jpeg"}
        with pytest.raises(StoreError, match=r"photo\.jpg' is a file, expected a folder"):
            FileStore(tmp_path / "photo.jpg")

    def test_a_newer_or_damaged_layout_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        with FileStore(tmp_path) as store:
            grow(store, "a", 1)
        marker = tmp_path / "store.json"
        for text, error in (
            ('{"deltamem_store": 2}', NewerFormatError),
            ('{"delta', DamagedSnapshotError),
            ("", DamagedSnapshotError),
        ):
            marker.write_text(text)
            before = contents(tmp_path)
            with pytest.raises(error, match=r"expected|reads up to 1; upgrade"):
                FileStore(tmp_path)
            assert contents(tmp_path) == before

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["ref", "journal-*"])
    def test_any_flipped_bit_or_truncation_of_ref_or_journal_is_refused(self, name: str, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        ids = grow(store, "a", 2)
        path = self.agent_file(tmp_path, name)
        whole = path.read_bytes()
        flips = [bytes([*whole[:at], whole[at] ^ 1 << at % 8, *whole[at + 1 :]]) for at in range(len(whole))]
        cuts = [whole[:length] for length in range(len(whole))]
        for data in flips + cuts:
            path.write_bytes(data)
            with pytest.raises(DamagedSnapshotError, match=path.name):
                store.moves("a")
            with pytest.raises(DamagedSnapshotError, match=path.name):
                store.rewind("a", ids[0])
            assert path.read_bytes() == data
        path.write_bytes(whole)
        assert [entry.id for entry in store.log("a")] == ids[::-1]

    def test_a_commit_on_a_truncated_journal_is_refused(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        ids = grow(store, "a", 2)
        path = self.agent_file(tmp_path, "journal-*")
        path.write_bytes(path.read_bytes()[:-3])
        before = contents(tmp_path)
        with pytest.raises(DamagedSnapshotError, match="journal"):
            store.save("a", example_snapshot(9), expected=ids[1])
        assert contents(tmp_path) == before

    def test_a_lost_ref_or_journal_is_damage_and_not_a_new_agent(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        grow(store, "a", 2)
        self.agent_file(tmp_path, "ref").unlink()
        for act in (store.head, store.load, store.moves):
            with pytest.raises(DamagedSnapshotError, match="ref"):
                act("a")
        with pytest.raises(DamagedSnapshotError):
            store.save("a", example_snapshot(9), expected=None)

    def test_an_agents_folder_under_another_name_is_damage(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        grow(store, "a", 1)
        grow(store, "b", 1)
        shutil.rmtree(store._folder("b"))
        os.rename(store._folder("a"), store._folder("b"))
        with pytest.raises(DamagedSnapshotError, match="agent 'a', expected 'b'"):
            store.load("b")

    def test_a_damaged_agent_can_be_forgotten(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        ids = grow(store, "a", 2)
        self.agent_file(tmp_path, "ref").write_bytes(b"?")
        assert sorted(store.forget("a").removed) == sorted(ids)
        assert list((tmp_path / "agents").iterdir()) == []

    @pytest.mark.parametrize("name", ["ref", "journal-*"])
    def test_an_import_repairs_a_damaged_ref_or_journal(self, name: str, tmp_path: Path) -> None:
        store = FileStore(tmp_path / "store")
        ids = grow(store, "a", 2)
        store.export("a", tmp_path / "backup")
        self.agent_file(tmp_path / "store", name).unlink()
        with pytest.raises(DamagedSnapshotError):
            store.moves("a")
        store.import_(tmp_path / "backup", replace=True)
        assert [entry.id for entry in store.log("a")] == ids[::-1]

    def test_leftovers_of_a_killed_writer_are_deleted_at_the_next_opening(self, tmp_path: Path) -> None:
        with FileStore(tmp_path) as store:
            ids = grow(store, "a", 2)
            leftover = store._folder("gone").with_suffix(".0badf00d")
            (leftover / "snapshots").mkdir(parents=True)
            (leftover / "snapshots" / "x").write_bytes(b"secret")
            assert store.agents() == ["a"]
        with FileStore(tmp_path) as store:
            assert not leftover.exists()
            assert store.load("a").id == ids[1]

    def test_prune_deletes_interrupted_writes(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        grow(store, "a", 3)
        folder = store._folder("a")
        (folder / "ref.abcd.tmp").write_bytes(b"torn")
        (folder / "snapshots" / f"{'f' * 64}.safetensors").write_bytes(b"never committed")
        store.prune("a", keep_last=2)
        assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["journal", "ref", "snapshots"]
        assert len(list((folder / "snapshots").iterdir())) == 2

    def test_forks_share_their_snapshots(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        ids = grow(store, "a", 2)
        store.fork("a", "b")
        assert all(os.path.samefile(*tmp_path.glob(f"agents/*/snapshots/{each}.safetensors")) for each in ids)


@pytest.mark.parametrize("make", [FileStore, SQLiteStore])
def test_two_stores_at_one_place_see_each_others_commits(make: type[FileStore | SQLiteStore], tmp_path: Path) -> None:
    with make(tmp_path / "store") as one, make(tmp_path / "store") as two:
        ids = grow(one, "a", 2)
        assert two.load("a").id == ids[1]
        more = grow(two, "a", 1, seed=7)
        with pytest.raises(StaleHeadError):
            one.save("a", example_snapshot(9), expected=ids[1])
        assert [entry.id for entry in one.log("a")] == [*more, *ids[::-1]]
        two.forget("a")
        with pytest.raises(AgentNotFoundError):
            one.load("a")


def test_importing_the_suite_loads_nothing_heavy() -> None:
    code = "import sys, deltamem_agents.testing; print(sorted({'torch', 'numpy', 'pytest'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ran.stdout.strip() == "[]", ran.stderr
