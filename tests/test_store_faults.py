"""A memory survives when its process is killed, its disk fills up, or many processes write at once.

Child processes are forked from the test's process, so that they start at once without importing anything.
"""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from children import fork_child, in_child, killed_at
from deltamem_agents.errors import StoreError
from deltamem_agents.snapshots import FileStore, SQLiteStore, Store, encode
from deltamem_agents.testing.conformance import commit_by_retry, example_snapshot, grow
from fast_set import one_in

resource = pytest.importorskip("resource", reason="needs a Unix")

OPEN: dict[str, Callable[[Path], Store]] = {
    "files": lambda folder: FileStore(folder / "memory"),
    "sqlite": lambda folder: SQLiteStore(folder / "memory.db"),
}
each_store = pytest.mark.parametrize("opened", OPEN.values(), ids=OPEN)
Opener = Callable[[Path], Store]


@pytest.mark.slow
@each_store
def test_no_committed_turn_is_lost_if_killed_at_random_moments(opened: Opener, tmp_path: Path) -> None:
    rounds = 25
    pick = random.Random(0)
    acknowledged: list[str] = []
    seconds_per_commit = 0.01

    def commit_forever(pipe: int) -> None:
        with opened(tmp_path) as store:
            while True:
                os.write(pipe, commit_by_retry(store, "a", thread="", note=f"{time.monotonic_ns()}").encode())

    for _ in range(rounds):
        reading, writing = os.pipe()
        pid = fork_child(partial(commit_forever, writing))
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            # It waits for some commits, so that it tests as much on a slow machine. The moment after them is random.
            started = time.monotonic()
            data = pipe.read(64 * pick.randint(1, 4))
            assert data, "the child failed"
            seconds_per_commit = min(seconds_per_commit, (time.monotonic() - started) * 64 / len(data))
            time.sleep(pick.uniform(0, 2 * seconds_per_commit))
            os.kill(pid, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            data += pipe.read()
        acknowledged.extend(data[at : at + 64].decode() for at in range(0, len(data), 64))
        with opened(tmp_path) as store:
            committed = {move.snapshot for move in store.moves("a")}
            assert committed.issuperset(acknowledged)
            assert store.load("a", acknowledged[-1]).id == acknowledged[-1]
            assert store.load("a").snapshot.counters.turns == len(committed)
    with opened(tmp_path) as store:
        log = [entry.id for entry in store.log("a")]
        assert set(log).issuperset(acknowledged)
        assert len(log) == len(set(log)) == len(store.moves("a"))


SYSTEM_CALLS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")


def changes(store: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    """One change of each kind, on the agents of `prepared`."""
    export = io.BytesIO()
    store.export("a", export)
    head = store.head("a")
    next_turn = replace(example_snapshot(99, store.load("a")), created="2026-01-01T00:00:00+00:00")
    yield "save", lambda: store.save("a", next_turn, expected=head)
    yield "first save", lambda: store.save("new", next_turn, expected=None)
    yield "rewind", lambda: store.rewind("a", store.moves("a")[2].snapshot)
    yield "tag", lambda: store.tag("a", "another")
    yield "fork", lambda: store.fork("a", "new")
    yield "prune", lambda: store.prune("a", keep_last=1)
    yield "import", lambda: store.import_(export, "new")
    yield "replace", lambda: store.import_(export, "b", replace=True)
    yield "forget", lambda: store.forget("b")


def holdings(store: Store) -> object:
    """The whole contents of a store, with each snapshot read and verified."""
    return {
        agent: (
            [(move.verb, encode(store.load(agent, move.snapshot).snapshot)) for move in store.moves(agent)],
            store.tags(agent),
        )
        for agent in store.agents()
    }


CHANGES = ("save", "first save", "rewind", "tag", "fork", "prune", "import", "replace", "forget")


def prepared(folder: Path) -> FileStore:
    store = FileStore(folder / "memory")
    grow(store, "a", 4)
    grow(store, "b", 2, seed=20)
    store.tag("a", "first", store.moves("a")[-1].snapshot)
    return store


def fresh_copy(original: Path, folder: Path) -> FileStore:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    return FileStore(folder)


@pytest.mark.slow
@pytest.mark.parametrize("change", one_in(4, CHANGES))
def test_a_folder_killed_between_any_two_steps_holds_the_old_or_the_new(change: str, tmp_path: Path) -> None:
    original = prepared(tmp_path).path
    store = fresh_copy(original, tmp_path / "done")
    old = holdings(store)
    dict(changes(store))[change]()
    new = holdings(store)
    seen = []
    for count in range(1, 100):
        store = fresh_copy(original, tmp_path / "killed")
        if not killed_at(count, SYSTEM_CALLS, lambda: dict(changes(FileStore(store.path)))[change]()):  # noqa: B023
            break
        with FileStore(store.path) as reopened:
            found = holdings(reopened)
            assert found in (old, new)
            seen.append(found == new)
            assert not any("." in folder.name for folder in (store.path / "agents").iterdir())
            moves = reopened.moves("a")
            commit_by_retry(reopened, "a", thread="", note="and on it goes")
            assert reopened.moves("a")[1:] == moves
    assert False in seen
    # A change that happened is not undone.
    assert seen == sorted(seen)


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_whose_disk_fails_at_any_step_is_as_it_was(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = prepared(tmp_path).path
    failures = 0
    for count in range(1, 100):
        store = fresh_copy(original, tmp_path / "failing")
        old = holdings(store)
        act = dict(changes(store))[change]
        left = count

        def failing(real: Callable[..., object], *args: object) -> object:
            nonlocal left
            # A folder is synced after the change is visible in it; a failure there undoes nothing.
            left -= not (isinstance(args[0], int) and stat.S_ISDIR(os.fstat(args[0]).st_mode))
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename"):
                patch.setattr(os, name, partial(failing, getattr(os, name)))
            try:
                act()
            except StoreError as error:
                failed = str(error)
            else:
                assert left > 0
                break
        failures += 1
        assert "No space left on device. The memory is as it was" in failed
        with FileStore(store.path) as reopened:
            assert holdings(reopened) == old
        assert [path.name for path in store.path.rglob("*.tmp")] == []
    assert failures > 0


@pytest.mark.slow
@pytest.mark.parametrize("opened", one_in(2, [OPEN["sqlite"], OPEN["files"]]), ids=["sqlite", "files"])
def test_an_agent_is_whole_or_gone_if_killed_while_forgetting(opened: Opener, tmp_path: Path) -> None:
    rounds = 10
    with opened(tmp_path) as store:
        grow(store, "measured", 3)
        started = time.monotonic()
        store.forget("measured")
        duration = time.monotonic() - started

    for turn in range(rounds):
        agent = f"the secret agent {turn}"
        with opened(tmp_path) as store:
            ids = grow(store, agent, 3, seed=turn * 10)
            trace = store.load(agent).snapshot.state.matrices.numpy().tobytes()
            grow(store, "another", 1, seed=turn)
        reading, writing = os.pipe()

        def forget(pipe: int, agent: str) -> None:
            with opened(tmp_path) as store:
                os.write(pipe, b"ready")
                store.forget(agent)

        pid = fork_child(partial(forget, writing, agent))
        os.close(writing)
        os.read(reading, 5)
        os.close(reading)
        time.sleep(1.5 * duration * turn / rounds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with opened(tmp_path) as store:
            assert store.load("another").snapshot.counters.turns == turn + 1
            if agent in store.agents():
                assert [entry.id for entry in store.log(agent)] == ids[::-1]
                store.forget(agent)
            everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            assert agent.encode() not in everything
            assert trace not in everything


@pytest.mark.slow
@each_store
def test_sixteen_threads_and_four_processes_on_one_agent_lose_no_write(opened: Opener, tmp_path: Path) -> None:
    processes, threads, turns = 4, 4, 4

    def write(process: int) -> None:
        with opened(tmp_path) as store, ThreadPoolExecutor(threads) as pool:
            for turn in range(turns):
                names = [f"process {process} thread {thread}" for thread in range(threads)]
                list(pool.map(lambda name, turn=turn: commit_by_retry(store, "a", thread=name, note=str(turn)), names))

    children = [fork_child(partial(write, process)) for process in range(processes)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
    with opened(tmp_path) as store:
        log = [(entry.snapshot.thread, entry.snapshot.note) for entry in store.log("a")]
        assert store.load("a").snapshot.counters.turns == len(log)
    expected = [
        (f"process {process} thread {thread}", str(turn))
        for process in range(processes)
        for thread in range(threads)
        for turn in range(turns)
    ]
    assert sorted(log) == sorted(expected)


@each_store
def test_a_store_opened_before_a_fork_loses_nothing(opened: Opener, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        ids = grow(store, "a", 2)

        def use_the_parents() -> None:
            try:
                commit_by_retry(store, "a", thread="child", note="")
            except StoreError as error:
                assert "open it anew" in str(error)
                with opened(tmp_path) as own:
                    commit_by_retry(own, "a", thread="child", note="")

        assert in_child(use_the_parents) == 0
        assert store.load("a").snapshot.thread == "child"
        assert [entry.id for entry in store.log("a")][1:] == ids[::-1]
        grow(store, "a", 1, seed=5)


def check_nothing_changed_and_all_goes_on(opened: Opener, folder: Path, ids: list[str]) -> None:
    """Checks the memory after a failed commit: it is unchanged, and writable once there is room again."""
    with opened(folder) as store:
        assert [entry.id for entry in store.log("a")] == ids[::-1]
        assert store.agents() == ["a"]
        assert len(store.moves("a")) == len(ids)
        grow(store, "a", 1, seed=77)


def fail_to_write(store: Store, ids: list[str]) -> None:
    """Every change raises StoreError, and the memory still loads in the same process."""
    snapshot = example_snapshot(50, store.load("a"))
    for act in (
        lambda: store.save("a", snapshot, expected=ids[-1]),
        lambda: store.save("b", snapshot, expected=None),
        lambda: store.fork("a", "b"),
        lambda: store.rewind("a", ids[0]),
        lambda: store.tag("a", "t"),
        lambda: store.prune("a", keep_last=1),
        lambda: store.forget("a"),
    ):
        try:
            act()
        except StoreError as error:
            assert "The memory is as it was" in str(error), error
        else:
            raise AssertionError("the change went through")
        assert [entry.id for entry in store.log("a")] == ids[::-1]
        assert store.agents() == ["a"]


@each_store
def test_a_read_only_folder_is_read_and_refuses_every_change(opened: Opener, tmp_path: Path) -> None:
    # Root can write anywhere, so the child becomes the user nobody. Only its owner may enter tmp_path, so not there.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(folder) as store:
            ids = grow(store, "a", 3)
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def become_nobody_and_try() -> None:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            with opened(folder) as store:
                assert [entry.id for entry in store.log("a")] == ids[::-1]
                fail_to_write(store, ids)

        assert in_child(become_nobody_and_try) == 0
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
        check_nothing_changed_and_all_goes_on(opened, folder, ids)


@each_store
def test_a_disk_that_takes_no_more_bytes_fails_only_the_commit(opened: Opener, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        ids = grow(store, "a", 3)

    def run_out() -> None:
        with opened(tmp_path) as store:
            grow(store, "a", 1, seed=30)
            largest = max(path.stat().st_size for path in tmp_path.rglob("*") if path.suffix != ".db")
            # A file may grow only a little, as on an almost full disk: writes stop midway.
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100, resource.RLIM_INFINITY))
            head = store.head("a")
            big = replace(example_snapshot(31, store.load("a")), note="x" * 4096)
            for _ in range(3):
                try:
                    store.save("a", big, expected=head)
                except StoreError as error:
                    assert "The memory is as it was" in str(error)
                else:
                    raise AssertionError("the commit went through")
                assert store.load("a").id == head
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            store.save("a", big, expected=head)
            store.rewind("a", ids[-1])

    assert in_child(run_out) == 0
    with opened(tmp_path) as store:
        assert [entry.id for entry in store.log("a")] == ids[::-1]
        assert [move.verb for move in store.moves("a")] == ["rewind", *["turn"] * 5]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte, if the machine allows mounting one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@each_store
def test_a_full_disk_fails_the_commit_and_the_memory_loads(opened: Opener, small_disk: Path) -> None:
    filler = small_disk / "filler"
    with opened(small_disk) as store:
        ids = grow(store, "a", 3)
        with pytest.raises(OSError, match="No space"), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 1024)
        head = store.head("a")
        refused = 0
        # The rest of the last blocks may have room for a commit or two.
        for turn in range(20):
            try:
                head = store.save("a", example_snapshot(40 + turn, store.load("a")), expected=head)
                ids.append(head)
            except StoreError as error:
                refused += 1
                assert "The memory is as it was" in str(error)
            assert [entry.id for entry in store.log("a")] == ids[::-1]
        assert refused >= 10
    # Opened again while the disk is still full.
    with opened(small_disk) as store:
        assert [entry.id for entry in store.log("a")] == ids[::-1]
    filler.unlink()
    check_nothing_changed_and_all_goes_on(opened, small_disk, ids)


@each_store
def test_a_disk_that_turns_read_only_is_read_and_refuses_every_change(opened: Opener, small_disk: Path) -> None:
    with opened(small_disk) as store:
        ids = grow(store, "a", 3)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    assert subprocess.run(remount, capture_output=True).returncode == 0
    with opened(small_disk) as store:
        fail_to_write(store, ids)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    check_nothing_changed_and_all_goes_on(opened, small_disk, ids)


@each_store
def test_a_store_that_cannot_be_made_is_an_error_that_names_it(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(StoreError, match=r"cannot .* the store .*: (Not a directory|File exists)"):
        opened(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
