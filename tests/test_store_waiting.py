"""While another process holds a store's write lock, reading continues and a change waits up to its timeout."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from filelock import FileLock

from children import fork_child, in_child
from deltamem_agents import SQLiteStore, StoreError
from deltamem_agents.snapshots import FileStore, refusals
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.testing.conformance import example_snapshot, grow


def lock_sqlite(path: Path) -> object:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    return db


def lock_folder(path: Path) -> object:
    lock = FileLock(path / "lock")
    lock.acquire()
    return lock


KINDS = {"sqlite": (SQLiteStore, lock_sqlite), "files": (FileStore, lock_folder)}
each_kind = pytest.mark.parametrize(("make", "lock"), KINDS.values(), ids=KINDS)
Make = Callable[..., SQLiteStore | FileStore]


@contextmanager
def locked_elsewhere(lock: Callable[[Path], object], path: Path) -> Iterator[Callable[[], None]]:
    """Another process that holds the lock until the block ends or the yielded function is called."""
    ready, done = os.pipe(), os.pipe()

    def hold() -> None:
        os.close(done[1])
        held = lock(path)
        os.write(ready[1], b"x" if held else b"")
        os.read(done[0], 1)
        # Exits at once, so that nothing is cleaned up.
        os._exit(0)

    child = fork_child(hold)
    os.close(done[0])
    assert os.read(ready[0], 1) == b"x"
    left = [done[1]]

    def release() -> None:
        if left:
            os.close(left.pop())
            os.waitpid(child, 0)

    try:
        yield release
    finally:
        release()


@each_kind
def test_reading_waits_for_no_writer(make: Make, lock: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with make(path, timeout=600) as store:
        ids = grow(store, "a", 3)
        with locked_elsewhere(lock, path) as release:
            # This writer waits in this process while all the reading is done.
            writing = Thread(target=lambda: grow(store, "a", 1, seed=50))
            writing.start()
            with make(path, timeout=0) as other:
                for each in (store, other):
                    assert each.agents() == ["a"]
                    assert [entry.id for entry in each.log("a")] == ids[::-1]
                    assert len(each.moves("a")) == 3 and each.tags("a") == {}
            release()
            writing.join()
        assert store.load("a").snapshot.counters.turns == 4


@each_kind
def test_a_change_waits_up_to_the_timeout_and_the_error_names_the_lock(
    make: Make, lock: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    with make(path) as store:
        head = grow(store, "a", 1)[0]
    for timeout in (0, 0.05):
        with make(path, timeout=timeout) as store, locked_elsewhere(lock, path):
            for act in (
                partial(store.save, "a", example_snapshot(9), expected=head),
                partial(store.tag, "a", "t"),
                partial(store.forget, "a"),
            ):
                with pytest.raises(StoreError, match=rf"locked by another program .* for {timeout} s.* timeout="):
                    act()
            assert (store.head("a"), store.tags("a")) == (head, {})


@each_kind
def test_a_change_that_waits_logs_a_warning(
    make: Make,
    lock: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(refusals, "QUIET_SECONDS", 0.01)
    path = tmp_path / "memory"
    with make(path) as store, locked_elsewhere(lock, path) as release:

        class Releasing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                release()

        log = logging.getLogger("deltamem_agents.store")
        handler = Releasing()
        log.addHandler(handler)
        try:
            assert grow(store, "a", 1) == [store.head("a")]
        finally:
            log.removeHandler(handler)
    assert "waits for another program or thread that writes there, at most 30 s longer" in caplog.text


def test_a_turn_waits_at_its_commit_after_its_text_was_shown(tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"
    with SQLiteStore(path, timeout=0.05) as store:
        engine = ScriptedEngine("Hello, Ada.", store)
        before = engine.run_turn("ada", [{"role": "user", "content": "hi"}]).snapshot
        with locked_elsewhere(lock_sqlite, path):
            stream, shown = engine.stream_turn("ada", [{"role": "user", "content": "I am Ada."}]), ""
            with pytest.raises(StoreError, match=r"locked by another program .* The memory is as it was"):
                for chunk in stream:
                    shown += chunk.text
            assert shown == "Hello, Ada." and store.head("ada") == before


@pytest.mark.slow
@pytest.mark.parametrize("make", [SQLiteStore, FileStore])
def test_processes_that_make_one_store_at_the_same_time_make_one(make: Make, tmp_path: Path) -> None:
    path, start = tmp_path / "memory", os.pipe()

    def make_and_write(number: int) -> None:
        os.close(start[1])
        os.read(start[0], 1)
        with make(path) as store:
            grow(store, f"agent {number}", 1, seed=number)

    children = [fork_child(lambda number=number: make_and_write(number)) for number in range(8)]  # type: ignore[misc]
    os.close(start[1])
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    with make(path) as store:
        assert store.agents() == [f"agent {number}" for number in range(8)]
    assert [each.name for each in tmp_path.iterdir()] == ["memory"]


@pytest.mark.slow
def test_processes_that_make_one_store_without_hard_links_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    test_processes_that_make_one_store_at_the_same_time_make_one(SQLiteStore, tmp_path)


@pytest.mark.parametrize("make", [SQLiteStore, FileStore])
def test_a_store_of_the_parents_is_refused_in_a_forked_process(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "memory") as store:
        head = grow(store, "a", 1)[0]

        def write() -> None:
            with pytest.raises(StoreError, match="before this process was forked, expected after; open it anew"):
                store.save("a", example_snapshot(9), expected=head)

        assert in_child(write) == 0
        assert store.head("a") == head
