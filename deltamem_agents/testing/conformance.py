"""A conformance suite that every store must pass.

It needs no pytest, and imports nothing heavy before a test runs.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import TYPE_CHECKING

from deltamem_agents.errors import (
    AgentNotFoundError,
    AlreadyExistsError,
    ConfigError,
    DamagedSnapshotError,
    InvalidAgentIdError,
    StaleHeadError,
    StoreError,
)

if TYPE_CHECKING:
    from deltamem_agents.snapshots import Entry, Snapshot, Store

AWKWARD_IDS = (
    "a",
    "A",
    " a",
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "C:\\con",
    ".",
    "..",
    "\0",
    "a\0b",
    "line\nbreak",
    "a ",
    "%2e%2e",
    "'; DROP TABLE agents; --",
    "é",
    "e\u0301",
    "\U0001f9e0" * 128,
    "\u202eright to left",
    "x" * 512,
)
INVALID_IDS = ("", " ", "\n\t", "\u2003", "x" * 513, "half a pair \ud800", None, 7, True, b"bytes")


def example_snapshot(seed: int = 0, after: Entry | None = None, *, thread: str = "", note: str = "") -> Snapshot:
    """A small snapshot with a random state: one turn after the entry `after`, or the agent's first."""
    import torch

    from deltamem_agents.memory.state import MemoryState
    from deltamem_agents.snapshots import Counters, Fingerprint, Snapshot
    from deltamem_agents.types import ThreadLog

    before = Counters() if after is None else after.snapshot.counters
    return Snapshot(
        state=MemoryState(torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))),
        fingerprint=Fingerprint("model", "tokenizer", "adapter"),
        thread=thread,
        absorbed=ThreadLog(1, (f"digest of {seed}",)),
        threads={} if after is None else after.threads(),
        parent=None if after is None else after.id,
        counters=Counters(before.turns + 1, before.messages + 2, before.tokens + 30),
        note=note,
    )


def grow(store: Store, agent: str, turns: int, *, seed: int = 0, thread: str = "") -> list[str]:
    """Commits `turns` turns to the agent, each with another state. Returns their ids, oldest first."""
    ids: list[str] = []
    for turn in range(turns):
        head = store.head(agent)
        entry = None if head is None else store.load(agent, head)
        ids.append(store.save(agent, example_snapshot(seed + turn, entry, thread=thread), expected=head))
    return ids


@contextmanager
def refused(kind: type[Exception]) -> Iterator[None]:
    """Asserts that the block raises an error of this kind."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


class StoreConformance:
    """The laws of a store. Subclass it in your tests and define how to create one:

        class TestMyStore(StoreConformance):
            def make_store(self, folder: Path) -> Store:
                return MyStore(folder / "store")

    `durable`: whether a second store in the same folder finds what the first one saved.
    """

    durable = True

    def make_store(self, folder: Path) -> Store:
        """A store in this folder, which may contain files of an earlier one."""
        raise NotImplementedError("define make_store so that it returns the store under test")

    def test_what_is_saved_is_loaded_bit_for_bit(self, tmp_path: Path) -> None:
        from deltamem_agents.snapshots import encode, snapshot_id

        with self.make_store(tmp_path) as store:
            first = example_snapshot(1, note="\0 \ud800 ☃")
            at = store.save("a", first, expected=None)
            assert at == snapshot_id(encode(first)) == store.head("a")
            loaded = store.load("a")
            assert loaded.id == at
            assert encode(loaded.snapshot) == encode(first)
            assert loaded.snapshot.state.matrices.equal(first.state.matrices)

    def test_a_second_store_finds_what_the_first_one_saved(self, tmp_path: Path) -> None:
        if not self.durable:
            return
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 3)
            store.tag("a", "second", ids[1])
            moves = store.moves("a")
        with self.make_store(tmp_path) as store:
            assert [entry.id for entry in store.log("a")] == ids[::-1]
            assert store.tags("a") == {"second": ids[1]}
            assert store.moves("a") == moves

    def test_what_is_not_there_is_refused_by_name(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            assert store.agents() == []
            assert store.head("nobody") is None
            for verb in (store.load, store.log, store.moves, store.tags, store.forget):
                with refused(AgentNotFoundError):
                    verb("nobody")
            for ask in (
                lambda: store.fork("nobody", "b"),
                lambda: store.rewind("nobody", "f" * 64),
                lambda: store.tag("nobody", "t"),
                lambda: store.untag("nobody", "t"),
                lambda: store.prune("nobody", keep_last=1),
                lambda: store.export("nobody", io.BytesIO()),
            ):
                with refused(AgentNotFoundError):
                    ask()
            grow(store, "a", 1)
            for at in ("f" * 64, "ffffff", "no such tag"):
                for act in (store.load, store.log, store.rewind):
                    with refused(AgentNotFoundError):
                        act("a", at)
            with refused(AgentNotFoundError):
                store.fork("a", "b", "f" * 64)
            assert store.agents() == ["a"]

    def test_a_save_on_another_head_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            with refused(StaleHeadError):
                store.save("a", example_snapshot(), expected="f" * 64)
            assert store.agents() == []
            ids = grow(store, "a", 2)
            moves = store.moves("a")
            for expected in (None, ids[0], "f" * 64):
                with refused(StaleHeadError):
                    store.save("a", example_snapshot(9), expected=expected)
            assert store.head("a") == ids[1]
            assert store.moves("a") == moves

    def test_the_log_runs_from_the_head_to_the_first_snapshot(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 5)
            assert [entry.id for entry in store.log("a")] == ids[::-1]
            assert [entry.id for entry in store.log("a", ids[2])] == ids[2::-1]
            assert [entry.snapshot.counters.turns for entry in store.log("a")] == [5, 4, 3, 2, 1]
            assert [move.snapshot for move in store.moves("a")] == ids[::-1]

    def test_a_snapshot_is_found_by_id_prefix_and_tag(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 3)
            assert store.tag("a", "start", ids[0]) == ids[0]
            assert store.tag("a", "now") == ids[2]
            for at in (ids[0], ids[0][:6], ids[0][:20], "start"):
                assert store.load("a", at).id == ids[0]
            for at in (ids[0][:5], "", ids[0].upper()):
                with refused(AgentNotFoundError):
                    store.load("a", at)
            # If a tag looks like the beginning of an id, the tag wins, because somebody chose it.
            store.tag("a", ids[1][:8], ids[0])
            assert store.load("a", ids[1][:8]).id == ids[0]

    def test_a_tag_stays_where_it_is_until_it_is_taken_away(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 2)
            store.tag("a", "t", ids[0])
            store.tag("a", "t", ids[0])
            with refused(AlreadyExistsError):
                store.tag("a", "t", ids[1])
            assert store.tags("a") == {"t": ids[0]}
            store.untag("a", "t")
            assert store.tags("a") == {}
            with refused(AgentNotFoundError):
                store.untag("a", "t")
            for name in ("", "x" * 513, "\ud800", ids[0]):
                with refused(ConfigError):
                    store.tag("a", name)
            with refused(AgentNotFoundError):
                store.tag("a", "t", "f" * 64)
            for name in AWKWARD_IDS:
                store.tag("a", name)
            assert store.tags("a") == dict.fromkeys(AWKWARD_IDS, ids[1])

    def test_tags_are_named_in_order(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            grow(store, "a", 1)
            for name in ("u", "b", "t"):
                store.tag("a", name)
            assert list(store.tags("a")) == ["b", "t", "u"]
            assert store.forget("a").tags == ("b", "t", "u")

    def test_agent_ids_are_any_text_and_all_distinct(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path / "store") as store:
            ids = {agent: grow(store, agent, 1, seed=seed)[0] for seed, agent in enumerate(AWKWARD_IDS)}
            assert store.agents() == sorted(AWKWARD_IDS)
            assert {agent: store.load(agent).id for agent in AWKWARD_IDS} == ids
            for agent in INVALID_IDS:
                with refused(InvalidAgentIdError):
                    store.save(agent, example_snapshot(), expected=None)  # type: ignore[arg-type]
                with refused(InvalidAgentIdError):
                    store.fork("a", agent)  # type: ignore[arg-type]
            store.forget("a")
            assert store.agents() == sorted(set(AWKWARD_IDS) - {"a"})
            assert [path.name for path in tmp_path.iterdir()] in ([], ["store"])

    def test_a_fork_has_the_whole_past_and_leaves_the_source_alone(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 4)
            store.tag("a", "t", ids[3])
            before = (store.moves("a"), store.tags("a"))
            assert store.fork("a", "b", ids[2]) == ids[2] == store.head("b")
            assert store.load("b").snapshot.state.matrices.equal(store.load("a", ids[2]).snapshot.state.matrices)
            assert [entry.id for entry in store.log("b")] == ids[2::-1]
            assert store.tags("b") == {}
            assert store.moves("b")[0].verb == "fork"
            with refused(AgentNotFoundError):
                store.load("b", ids[3])
            own = grow(store, "b", 2, seed=100)
            assert [entry.id for entry in store.log("b")] == [*own[::-1], *ids[2::-1]]
            assert (store.moves("a"), store.tags("a")) == before
            with refused(AgentNotFoundError):
                store.load("a", own[0])
            with refused(AlreadyExistsError):
                store.fork("a", "b")
            with refused(AlreadyExistsError):
                store.fork("a", "a")
            assert store.head("b") == own[1]

    def test_rewind_is_exact_and_can_be_undone(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 4)
            assert store.rewind("a", ids[1]) == ids[1] == store.head("a")
            assert [entry.id for entry in store.log("a")] == ids[1::-1]
            assert store.moves("a")[0].verb == "rewind"
            branch = grow(store, "a", 1, seed=50)
            assert [entry.id for entry in store.log("a")] == [*branch, *ids[1::-1]]
            left = store.moves("a")[2].snapshot
            assert left == ids[3]
            store.rewind("a", left)
            assert [entry.id for entry in store.log("a")] == ids[::-1]
            moves = store.moves("a")
            store.rewind("a", ids[3])
            assert store.moves("a") == moves

    def test_diff_measures_what_changed(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 3)
            change = store.diff("a", ids[0])
            assert (change.a, change.b) == (ids[0], ids[2])
            assert (change.counters.turns, change.counters.messages, change.counters.tokens) == (2, 4, 60)
            assert len(change.distance) == len(change.cosine) == 3
            assert min(change.distance) > 0
            same = store.diff("a", ids[1], ids[1])
            assert same.distance == (0.0, 0.0, 0.0)
            assert all(value is not None and abs(value - 1) < 1e-9 for value in same.cosine)

    def test_prune_keeps_the_newest_the_tagged_and_where_forks_stand(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 9)
            store.tag("a", "t", ids[1])
            store.fork("a", "forked", ids[3])
            grow(store, "forked", 1, seed=70)
            store.fork("a", "standing", ids[6])
            store.rewind("standing", ids[5])
            receipt = store.prune("a", keep_last=2)
            kept = [ids[1], ids[3], ids[5], ids[6], ids[7], ids[8]]
            assert sorted({move.snapshot for move in store.moves("a")}) == sorted(kept)
            assert [entry.id for entry in store.log("a")] == [ids[8], ids[7], ids[6], ids[5]]
            # The forks hold the whole history, so the store still has every pruned snapshot.
            assert (sorted(receipt.kept), receipt.removed) == (sorted([ids[0], ids[2], ids[4]]), ())
            assert [entry.id for entry in store.log("standing")] == ids[5::-1]
            assert store.load("a", "t").id == ids[1]
            for keep in (0, -1):
                with refused(ConfigError):
                    store.prune("a", keep_last=keep)
            assert store.prune("a", keep_last=100).kept == ()

    def test_prune_keeps_each_threads_newest_snapshot(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            quiet = grow(store, "a", 2, thread="quiet")
            busy = grow(store, "a", 6, seed=10, thread="busy")
            receipt = store.prune("a", keep_last=1)
            assert store.load("a").newest("quiet") == quiet[1]
            assert store.load("a", quiet[1]).snapshot.absorbed.count == 1
            assert sorted(receipt.removed) == sorted([quiet[0], *busy[:-1]])
            assert receipt.nbytes > 0

    def test_forget_removes_the_agent_and_spares_what_others_hold(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 3)
            store.tag("a", "t", ids[0])
            store.fork("a", "b", ids[1])
            receipt = store.forget("a")
            assert (receipt.agent, receipt.tags) == ("a", ("t",))
            assert (receipt.removed, sorted(receipt.kept)) == ((ids[2],), sorted(ids[:2]))
            assert receipt.nbytes > 0
            assert store.agents() == ["b"]
            assert store.head("a") is None
            with refused(AgentNotFoundError):
                store.forget("a")
            assert [entry.id for entry in store.log("b")] == ids[1::-1]
            again = grow(store, "a", 1, seed=40)
            assert [entry.id for entry in store.log("a")] == again
            assert store.tags("a") == {}
            assert sorted(store.forget("b").removed) == sorted(ids[:2])

    def test_an_incarnation_ends_with_forgetting_and_with_nothing_else(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            assert store.incarnation("a") is None
            ids = grow(store, "a", 3)
            first = store.incarnation("a")
            assert first is not None
            # A store may distinguish incarnations by the millisecond in which they began.
            time.sleep(0.002)
            store.rewind("a", ids[0])
            grow(store, "a", 4, seed=10)
            for seed in (20, 30):
                store.prune("a", keep_last=1)
                grow(store, "a", 2, seed=seed)
            store.tag("a", "t")
            assert store.fork("a", "b") == store.head("a") == store.head("b")
            assert store.incarnation("a") == first != store.incarnation("b")
            file = io.BytesIO()
            store.export("a", file)
            store.import_(file, replace=True)
            replaced = store.incarnation("a")
            time.sleep(0.002)
            store.forget("a")
            assert store.incarnation("a") is None
            grow(store, "a", 1)
            again = store.incarnation("a")
            time.sleep(0.002)
            store.forget("a")
            store.fork("b", "a")
            assert len({first, replaced, again, store.incarnation("a"), None}) == 5
        if self.durable:
            with self.make_store(tmp_path) as reopened:
                assert reopened.incarnation("b") not in (None, reopened.incarnation("a"))

    def test_export_and_import_keep_everything(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path / "one") as store:
            ids = grow(store, "a", 4)
            store.tag("a", "t", ids[0])
            store.rewind("a", ids[2])
            moves = store.moves("a")
            file = io.BytesIO()
            store.export("a", file)
            store.export("a", tmp_path / "a.deltamem")
            assert (tmp_path / "a.deltamem").read_bytes() == file.getvalue()
            with refused(AlreadyExistsError):
                store.import_(file)
            assert store.import_(file, "copy") == "copy"
            assert store.head("copy") == ids[2]
        with self.make_store(tmp_path / "two") as other:
            assert other.import_(tmp_path / "a.deltamem") == "a"
            assert other.moves("a")[1:] == moves
            assert other.moves("a")[0].verb == "import"
            assert other.tags("a") == {"t": ids[0]}
            assert [entry.id for entry in other.log("a", ids[3])] == ids[::-1]
            grow(other, "a", 2, seed=60)
            other.import_(file, replace=True)
            assert other.moves("a")[1:] == moves

    def test_an_import_that_fails_changes_nothing(self, tmp_path: Path) -> None:
        class Failing(dict[str, bytes]):
            def __getitem__(self, snapshot: str) -> bytes:
                raise StoreError("the disk is full")

        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 2)
            journal = store.moves("a")[::-1]
            blobs = Failing({each: b"" for each in ids})
            for agent in ("a", "b"):
                with refused(StoreError):
                    store._create(agent, journal, {}, blobs, source=None, replace=True)
            with refused(AgentNotFoundError):
                store._create("b", journal, {}, {}, source="nobody", replace=False)
            assert store.agents() == ["a"]
            assert store.moves("a")[::-1] == journal
            assert [entry.id for entry in store.log("a")] == ids[::-1]

    def test_damaged_bytes_are_refused_by_name_and_left_alone(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            ids = grow(store, "a", 3)
            read = store._blob

            def flipped(agent: str, snapshot: str) -> bytes | None:
                data = read(agent, snapshot)
                return data if snapshot != ids[1] or data is None else data[:-1] + bytes([data[-1] ^ 1])

            store._blob = flipped  # type: ignore[method-assign]
            for act in (
                lambda: store.load("a", ids[1]),
                lambda: list(store.log("a")),
                lambda: store.diff("a", ids[0], ids[1]),
                lambda: store.fork("a", "b"),
                lambda: store.export("a", io.BytesIO()),
            ):
                with refused(DamagedSnapshotError):
                    act()
            assert store.agents() == ["a"]
            assert store.load("a").id == ids[2]
            store._blob = read  # type: ignore[method-assign]
            assert [entry.id for entry in store.log("a")] == ids[::-1]

    def test_reading_while_others_write_finds_whole_snapshots(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            grow(store, "a", 1)
            done = Event()

            def write() -> None:
                try:
                    for turn in range(10):
                        commit_by_retry(store, "a", thread="", note=str(turn))
                        store.fork("a", "b")
                        store.prune("a", keep_last=3)
                        store.forget("b")
                finally:
                    done.set()

            writer = Thread(target=write)
            writer.start()
            turns = [1]
            while not done.is_set():
                turns.append(store.load("a").snapshot.counters.turns)
                assert 1 <= len(list(store.log("a"))) <= len(store.moves("a")) + 11
                assert set(store.agents()) <= {"a", "b"}
            writer.join()
            assert turns == sorted(turns)
            assert store.load("a").snapshot.counters.turns == 11

    def test_sixteen_threads_on_one_agent_lose_no_write(self, tmp_path: Path) -> None:
        writers, turns = 16, 4
        start = Barrier(writers)
        with self.make_store(tmp_path) as store:

            def write(writer: int) -> None:
                start.wait()
                for turn in range(turns):
                    commit_by_retry(store, "a", thread=f"writer {writer}", note=str(turn))

            threads = [Thread(target=write, args=(writer,)) for writer in range(writers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            written = sorted((entry.snapshot.thread, entry.snapshot.note) for entry in store.log("a"))
            assert written == sorted((f"writer {w}", str(turn)) for w in range(writers) for turn in range(turns))
            assert store.load("a").snapshot.counters.turns == writers * turns


def commit_by_retry(store: Store, agent: str, *, thread: str, note: str) -> str:
    """Commits one turn on the current head, retrying while others commit first. Returns its id."""
    while True:
        head = store.head(agent)
        entry = None if head is None else store.load(agent, head)
        try:
            return store.save(agent, example_snapshot(len(note), entry, thread=thread, note=note), expected=head)
        except StaleHeadError:
            continue
