"""Store locations: URLs and paths, when a store is opened, and detection of moved or replaced files."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from children import in_child
from deltamem_agents import ConfigError, DeltaMemEngine, NewerFormatError, StoreError
from deltamem_agents.snapshots import FileStore, InMemoryStore, LazyStore, SQLiteStore, Store, open_store, opening
from deltamem_agents.snapshots.locations import locate
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.testing.conformance import example_snapshot, grow

IN_MEMORY = (
    "memory:",
    "memory://",
    ":memory:",
    "sqlite://",
    "sqlite:///",
    "sqlite:///:memory:",
    "file::memory:",
    "file::memory:?cache=shared",
    "sqlite:///file::memory:?uri=true",
)
NO_STORE = (
    "",
    "  ",
    "a\0b",
    ":memory:?cache=shared",
    "folder://",
    "folder:///",
    "folder:///:memory:",
    "sqlite:memory.sqlite",
    "sqlite:/memory.sqlite",
    "sqlite://memory.sqlite",
    "sqlite:///memory.sqlite?mode=ro",
    "file:memory.sqlite?mode=memory",
    "memory:agents",
    "open://SQLiteStore",
    "postgresql://localhost/agents",
    "postgresql:/localhost/agents",
    "~nobody-of-this-name/memory.sqlite",
    b"memory.sqlite",
    7,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current folder and the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


class TestNames:
    @pytest.mark.parametrize("name", IN_MEMORY)
    def test_every_spelling_of_an_in_memory_store_makes_no_file(self, name: str, here: Path) -> None:
        for given in (name, Path(name)) if name == ":memory:" else (name,):
            assert isinstance(open_store(given), InMemoryStore)
            assert opening.store_path(given) is None
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize("name", NO_STORE)
    def test_text_that_names_no_store_is_refused_and_makes_no_file(self, name: object, here: Path) -> None:
        for refuse in (open_store, LazyStore):
            with pytest.raises(ConfigError, match="store"):
                refuse(name)  # type: ignore[arg-type]
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize("kind", [SQLiteStore, FileStore])
    @pytest.mark.parametrize("name", ["", ":memory:", "memory:", "sqlite:///x", "folder:///x", "file::memory:"])
    def test_a_file_store_takes_only_a_path(self, kind: type[SQLiteStore | FileStore], name: str, here: Path) -> None:
        with pytest.raises(ConfigError, match=r"is no path|names no file"):
            kind(name)
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize(
        "name", ["a b.sqlite", "a%20b.sqlite", "a#b.sqlite", "q?.sqlite", "ü.sqlite", "-.sqlite", "12:30.sqlite"]
    )
    def test_a_path_is_used_exactly_as_given(self, name: str, here: Path) -> None:
        forms: list[str | Path] = [name, Path(name), here / name, str(here / name)]
        if "?" not in name:
            forms += [f"sqlite:///{name}", f"sqlite:///{here / name}"]
        for turn, form in enumerate(forms):
            with open_store(form) as store:
                assert store.path == here / name  # type: ignore[attr-defined]
                grow(store, "a", 1, seed=turn)
                assert store.load("a").snapshot.counters.turns == turn + 1
        assert [path.name for path in here.iterdir()] == [name]

    def test_the_tilde_is_the_home_and_a_drive_is_a_path(self, here: Path) -> None:
        for form in ("~/m", "sqlite:///~/m", "folder:///~/m", Path("~/m")):
            assert locate(form).path == here / "home" / "m"
        assert SQLiteStore("~/m.sqlite").path == here / "home" / "m.sqlite"
        assert FileStore(Path("~/folder")).path == here / "home" / "folder"
        for form in ("C:/data/m.sqlite", "sqlite:///C:/data/m.sqlite"):
            assert str(locate(form).path).endswith("C:/data/m.sqlite")
        assert not (here / "~").exists()

    def test_a_folder_and_a_file_are_not_confused(self, tmp_path: Path) -> None:
        FileStore(tmp_path / "folder").close()
        SQLiteStore(tmp_path / "file").close()
        with pytest.raises(StoreError, match=r"is a folder, expected a SQLite file; .*folder:///PATH"):
            SQLiteStore(tmp_path / "folder")
        with pytest.raises(StoreError, match=r"is a file, expected a folder; .*sqlite:///PATH"):
            FileStore(tmp_path / "file")

    @pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
    def test_a_timeout_is_a_number_of_seconds(self, timeout: float, tmp_path: Path) -> None:
        for kind in (SQLiteStore, FileStore):
            with pytest.raises(ConfigError, match="timeout"):
                kind(tmp_path / "store", timeout=timeout)
        assert list(tmp_path.iterdir()) == []


class TestTheDefault:
    def test_a_call_without_a_memory_opens_no_store(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "file").write_text("no folder")
        monkeypatch.setenv("DELTAMEM_HOME", str(here / "file" / "below"))
        engine = ScriptedEngine(store=None)
        message = [{"role": "user", "content": "hi"}]
        assert engine.run_turn(None, message).text == "ok"
        assert engine.run_turn("ada", message, memory="off").text == "ok"
        assert engine.count_tokens(message) == 2
        engine.absorb(engine.new_state(), message)
        for needs in (
            lambda: engine.run_turn("ada", message),
            lambda: engine.run_turn("ada", message, memory="readonly"),
            lambda: engine.absorb_into("ada", message),
            lambda: engine.store,
        ):
            with pytest.raises(StoreError, match=r"below.*Not a directory.* store=, .*DELTAMEM_HOME"):
                needs()
        engine.close()
        assert [path.name for path in here.iterdir()] == ["file"]
        # Once the folder can be made, the same engine opens the store.
        monkeypatch.setenv("DELTAMEM_HOME", str(here / "folder"))
        engine = ScriptedEngine(store=None)
        assert engine.run_turn("ada", message).snapshot == engine.store.head("ada")
        assert (here / "folder" / "memory.sqlite").is_file()

    def test_without_a_home_no_folder_of_that_name_is_made(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DELTAMEM_HOME", raising=False)
        monkeypatch.setattr(opening.platformdirs, "user_data_path", lambda name: Path("~/.local/share") / name)
        with pytest.raises(ConfigError, match=r"no home folder; .*store=, .*DELTAMEM_HOME"):
            open_store(None)
        assert list(here.iterdir()) == []

    def test_a_path_is_a_store_for_the_engine(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        engine: DeltaMemEngine = ScriptedEngine(store=path)
        engine.run_turn("ada", [{"role": "user", "content": "hi"}])
        assert engine.with_store(path).store.load("ada").snapshot.counters.turns == 1


PLACES: dict[str, Callable[[Path], Store]] = {"files": FileStore, "sqlite": SQLiteStore}


def everything(store: Store, head: str) -> list[Callable[[], object]]:
    snapshot = example_snapshot(9)
    return [
        store.agents,
        lambda: store.head("a"),
        lambda: store.load("a"),
        lambda: store.moves("a"),
        lambda: store.tags("a"),
        lambda: store.save("a", snapshot, expected=head),
        lambda: store.save("new", snapshot, expected=None),
        lambda: store.fork("a", "b"),
        lambda: store.tag("a", "t"),
        lambda: store.prune("a", keep_last=1),
        lambda: store.forget("a"),
    ]


@pytest.mark.parametrize("kind", PLACES)
class TestMoved:
    def refused(self, store: Store, head: str) -> None:
        for act in everything(store, head):
            with pytest.raises(StoreError, match="was moved, deleted or replaced since it was opened"):
                act()

    def test_a_store_that_is_moved_or_deleted_is_noticed(self, kind: str, tmp_path: Path) -> None:
        place = tmp_path / "memory"
        store = PLACES[kind](place)
        head = grow(store, "a", 2)[-1]
        os.rename(place, tmp_path / "elsewhere")
        self.refused(store, head)
        assert not place.exists()
        os.rename(tmp_path / "elsewhere", place)
        assert store.load("a").id == head
        grow(store, "a", 1, seed=7)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        self.refused(store, head)
        assert not place.exists()
        store.close()

    def test_a_store_in_the_place_of_another_is_noticed(self, kind: str, tmp_path: Path) -> None:
        place = tmp_path / "memory"
        store = PLACES[kind](place)
        head = grow(store, "a", 2)[-1]
        for path in tmp_path.iterdir():
            os.rename(path, tmp_path / f"old {path.name}")
        with PLACES[kind](place) as other:
            own = grow(other, "other", 1)
            self.refused(store, head)
            assert other.agents() == ["other"] and other.head("other") == own[0]
        store.close()


class TestParted:
    """A SQLite file that was separated from its log."""

    def test_a_file_copied_without_its_log_is_refused_by_name(self, tmp_path: Path) -> None:
        path, copied = tmp_path / "memory.sqlite", tmp_path / "copy" / "memory.sqlite"
        copied.parent.mkdir()
        with SQLiteStore(path) as store:
            for turn in range(3):
                grow(store, "a", 1, seed=turn)
                shutil.copy(path, copied)
                for _ in range(2):
                    with pytest.raises(StoreError, match=r"newest commits are in a log, 'memory\.sqlite-wal', .*bring"):
                        SQLiteStore(copied)
                assert [each.name for each in copied.parent.iterdir()] == [copied.name]
            shutil.copy(f"{path}-wal", f"{copied}-wal")
            with SQLiteStore(copied) as whole:
                assert whole.load("a").id == store.load("a").id
        shutil.copy(path, copied)
        with SQLiteStore(copied) as whole:
            assert whole.load("a").snapshot.counters.turns == 3

    def test_a_file_copied_after_a_merge_or_an_erasure_is_refused_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deltamem_agents.snapshots.sqlite_file.LOG_BYTES", 50_000)
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            sizes = []
            for turn in range(40):
                grow(store, "a", 1, seed=turn)
                sizes.append((tmp_path / "memory.sqlite-wal").stat().st_size)
                shutil.copy(path, tmp_path / "copy.sqlite")
                with pytest.raises(StoreError, match="is not beside it"):
                    SQLiteStore(tmp_path / "copy.sqlite")
            # The log was merged several times, and was never much larger than the limit.
            assert sizes != sorted(sizes) and max(sizes) < 100_000
            grow(store, "b", 1)
            store.forget("b")
            shutil.copy(path, tmp_path / "copy.sqlite")
            with pytest.raises(StoreError, match="is not beside it"):
                SQLiteStore(tmp_path / "copy.sqlite")
        with SQLiteStore(path) as store:
            assert store.load("a").snapshot.counters.turns == 40

    def test_an_empty_log_means_that_the_old_log_is_lost(self, tmp_path: Path) -> None:
        path, copied = tmp_path / "memory.sqlite", tmp_path / "copy.sqlite"
        with SQLiteStore(path) as store:
            grow(store, "a", 1)
        with SQLiteStore(path) as store:
            grow(store, "a", 1, seed=1)
            shutil.copy(path, copied)
        (tmp_path / "copy.sqlite-wal").touch()
        for _ in range(2):
            with SQLiteStore(copied) as store:
                assert store.load("a").snapshot.counters.turns == 1

    def test_a_log_that_another_program_merged_is_not_missed(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"

        def die() -> None:
            grow(SQLiteStore(path), "a", 2)
            os._exit(0)

        assert in_child(die) == 0
        assert (tmp_path / "memory.sqlite-wal").stat().st_size
        db = sqlite3.connect(path)
        assert db.execute("SELECT count(*) FROM moves").fetchone() == (2,)
        db.close()
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
        with SQLiteStore(path) as store:
            assert store.load("a").snapshot.counters.turns == 2

    def test_a_log_deleted_under_a_running_store_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            ids = grow(store, "a", 2)
            (tmp_path / "memory.sqlite-wal").unlink()
            for act in everything(store, ids[-1]):
                with pytest.raises(StoreError, match=r"'memory\.sqlite-wal' is not there any more"):
                    act()
        # Earlier commits are in the file, because closing merges the log.
        with SQLiteStore(path) as store:
            assert [entry.id for entry in store.log("a")] == ids[::-1]

    def test_a_second_store_of_a_file_keeps_the_locks_of_the_first(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as one, SQLiteStore(path) as two:
            grow(one, "a", 1)
            two.close()

            def open_and_close() -> None:
                db = sqlite3.connect(path)
                db.execute("SELECT count(*) FROM moves").fetchone()
                db.close()

            # Without this store's locks, the last process to close the file merges its log and deletes it.
            assert in_child(open_and_close) == 0
            assert (tmp_path / "memory.sqlite-wal").exists()
            ids = grow(one, "b", 1)

            def sees_both() -> None:
                with SQLiteStore(path) as other:
                    assert other.load("b").id == ids[0]

            assert in_child(sees_both) == 0

    def test_a_newer_schema_in_the_log_is_detected(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            grow(store, "a", 1)
        newer = sqlite3.connect(path, isolation_level=None)
        newer.execute("PRAGMA user_version = 7")
        assert int.from_bytes(path.read_bytes()[60:64], "big") == 2
        with pytest.raises(NewerFormatError, match=r"schema 7, .* reads up to 2; upgrade"):
            SQLiteStore(path)
        assert newer.execute("PRAGMA user_version").fetchone() == (7,)
        newer.close()

    def test_a_store_that_version_0_1_wrote_is_opened_and_written(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            ids = grow(store, "a", 2)
        db = sqlite3.connect(path)
        db.execute("DROP TABLE log")
        db.close()
        with SQLiteStore(path) as store:
            assert [entry.id for entry in store.log("a")] == ids[::-1]
            more = grow(store, "a", 1, seed=5)
        with SQLiteStore(path) as store:
            assert store.head("a") == more[0]

    @pytest.mark.parametrize("mode", [0o755, 0o777], ids=["folder too", "file alone"])
    def test_a_read_only_file_can_be_read(self, mode: int, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            ids = grow(store, "a", 2)
        path.chmod(0o444)

        def read_as_nobody() -> None:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            with SQLiteStore(path) as store:
                assert store.load("a").id == ids[1]
                store.export("a", io.BytesIO())
                with pytest.raises(StoreError, match="The memory is as it was"):
                    store.tag("a", "t")

        for folder in tmp_path.parents:
            if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o005 != 0o005:
                folder.chmod(0o755)
        tmp_path.chmod(mode)
        for _ in range(2):
            assert in_child(read_as_nobody) == 0
        path.chmod(0o644)
        with SQLiteStore(path) as store:
            assert store.load("a").id == ids[1]
            grow(store, "a", 1, seed=9)
