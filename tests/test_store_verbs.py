"""The public methods of every store: what they do, what they refuse, and that all stores give the same results."""

from __future__ import annotations

import io
import json
import random
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from deltamem_agents.errors import (
    AgentNotFoundError,
    DamagedSnapshotError,
    DeltaMemError,
    InvalidAgentIdError,
    NewerFormatError,
    StateError,
)
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import (
    Entry,
    FileStore,
    InMemoryStore,
    Receipt,
    Snapshot,
    SQLiteStore,
    Store,
    encode,
    snapshot_id,
)
from deltamem_agents.testing.conformance import example_snapshot, grow

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: InMemoryStore(),
    "files": lambda folder: FileStore(folder / "memory"),
    "sqlite": lambda folder: SQLiteStore(folder / "memory.db"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made = STORES[request.param](tmp_path / "store")
    request.addfinalizer(made.close)
    return made


def in_memory(turns: int = 3) -> tuple[Store, list[str]]:
    store = InMemoryStore()
    return store, grow(store, "a", turns)


class TestForget:
    AGENT = "the forgotten one 🧠"
    THREAD = "a thread of the forgotten one"
    TAG = "a tag of the forgotten one"

    def traces(self, snapshots: list[Snapshot]) -> list[bytes]:
        states = [snapshot.state.matrices.numpy().tobytes() for snapshot in snapshots]
        names = [text.encode() for text in (self.AGENT, self.THREAD, self.TAG)]
        return [*names, *(json.dumps(self.AGENT)[1:-1].encode(), b"of the forgotten"), *states]

    # With SQLite many names, so that the index of names grows over several pages and moves its entries.
    @pytest.mark.parametrize(("kind", "others"), [("files", 5), ("sqlite", 120)])
    def test_no_byte_of_a_forgotten_agent_is_in_the_store(self, kind: str, others: int, tmp_path: Path) -> None:
        store = STORES[kind](tmp_path / "store")
        grow(store, "before", 5)
        grow(store, self.AGENT, 20, seed=1000, thread=self.THREAD)
        for other in range(others):
            grow(store, f"{other} after", 1, seed=other)
        store.rewind(self.AGENT, store.moves(self.AGENT)[5].snapshot)
        store.tag(self.AGENT, self.TAG)
        store.prune(self.AGENT, keep_last=15)
        snapshots = [store.load(self.AGENT, move.snapshot).snapshot for move in store.moves(self.AGENT)]
        traces = self.traces(snapshots)
        before = everything_in(tmp_path)
        assert all(trace in before for trace in (traces[0], traces[2], traces[-1]))

        receipt = store.forget(self.AGENT)

        held = {snapshot_id(data): len(data) for data in map(encode, snapshots)}
        assert set(receipt.removed) == set(held)
        assert receipt.nbytes == sum(held.values())
        traces.extend(each.encode() for each in receipt.removed)
        after = everything_in(tmp_path)
        assert [trace for trace in traces if trace in after] == []
        assert len(store.agents()) == 1 + others
        store.close()
        after = everything_in(tmp_path)
        assert [trace for trace in traces if trace in after] == []

    def test_bytes_that_a_fork_holds_stay_and_the_receipt_says_so(self, store: Store) -> None:
        ids = grow(store, self.AGENT, 3)
        store.fork(self.AGENT, "fork", ids[1])
        receipt = store.forget(self.AGENT)
        assert isinstance(receipt, Receipt)
        assert (set(receipt.kept), receipt.removed) == (set(ids[:2]), (ids[2],))
        assert store.load("fork").snapshot.counters.turns == 2
        assert all(self.AGENT.encode() not in store._blob("fork", each) for each in ids[:2])  # type: ignore[operator]

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_nothing_is_left_of_any_of_many_forgotten_agents(self, seed: int, tmp_path: Path) -> None:
        """For SQLite, whose trees move small rows as they grow and shrink."""
        pick = random.Random(seed)
        with SQLiteStore(tmp_path / "memory.sqlite") as store:
            for number in range(60):
                grow(store, f"agent <{number}>", pick.randint(1, 3), seed=number * 10, thread=f"thread <{number}>")
                if number % 3 == 0:
                    store.tag(f"agent <{number}>", f"tag <{number}>")
                if number % 7 == 1:
                    store.prune(f"agent <{number}>", keep_last=1)
            names = store.agents()
            pick.shuffle(names)
            for count, name in enumerate(names[:40]):
                held = [store.load(name, move.snapshot) for move in store.moves(name)]
                store.forget(name)
                after, number = everything_in(tmp_path), name.removeprefix("agent ")
                traces = [f"{kind} {number}".encode() for kind in ("agent", "thread", "tag")]
                traces += [each.id.encode() for each in held]
                traces += [each.snapshot.state.matrices.numpy().tobytes() for each in held]
                assert [trace for trace in traces if trace in after] == []
                grow(store, f"later {count}", 1, seed=5000 + count)
            assert len(store.agents()) == 60

    def test_other_agents_rows_are_not_moved_in_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            grow(store, "first", 3)
            for number in range(40):
                grow(store, f"other {number}", 1, seed=100 + number)
        with SQLiteStore(path) as store:
            others = [store.load(f"other {number}").snapshot.state.matrices for number in range(40)]
            places = [path.read_bytes().find(each.numpy().tobytes()[:16]) for each in others]
            store.forget("first")
            assert [path.read_bytes().find(each.numpy().tobytes()[:16]) for each in others] == places
            assert min(places) > 0 and len(set(places)) == 40
            # A file of which more than half is free is rewritten to a smaller one.
            before = path.stat().st_size
            for number in range(32):
                store.forget(f"other {number}")
            assert path.stat().st_size < before / 2
            assert [store.load(f"other {number}").snapshot.counters.turns for number in range(32, 40)] == [1] * 8

    def test_in_a_file_of_version_0_1_too(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.sqlite"
        with SQLiteStore(path) as store:
            ids = grow(store, "kept", 3)
            grow(store, self.AGENT, 3, seed=50)
        db = sqlite3.connect(path)
        db.executescript(
            """
            CREATE TABLE old (id TEXT PRIMARY KEY, data BLOB NOT NULL);
            INSERT INTO old SELECT id, data FROM snapshots;
            DROP TABLE snapshots;
            ALTER TABLE old RENAME TO snapshots;
            DROP TABLE log;
            """
        )
        db.close()
        with SQLiteStore(path) as store:
            ids += grow(store, "kept", 1, seed=9)
            held = [store.load(self.AGENT, move.snapshot) for move in store.moves(self.AGENT)]
            store.fork(self.AGENT, "fork", held[-1].id)
            assert [entry.id for entry in store.log("kept")] == ids[::-1]
            for agent in (self.AGENT, "fork"):
                store.forget(agent)
        after = everything_in(tmp_path)
        traces = [self.AGENT.encode(), *(each.id.encode() for each in held)]
        traces += [each.snapshot.state.matrices.numpy().tobytes() for each in held]
        assert [trace for trace in traces if trace in after] == []
        with SQLiteStore(path) as store:
            assert [entry.id for entry in store.log("kept")] == ids[::-1]


def everything_in(folder: Path) -> bytes:
    """The bytes and names of all files."""
    paths = list(folder.rglob("*"))
    return b"\n".join(
        [*(path.read_bytes() for path in paths if path.is_file()), *(str(path).encode() for path in paths)]
    )


class TestDiff:
    def test_of_known_states(self, store: Store) -> None:
        def layers(*values: float) -> MemoryState:
            return MemoryState(torch.tensor(values).reshape(1, -1, 1, 1, 1).expand(1, len(values), 2, 2, 2).clone())

        first = replace(example_snapshot(), state=layers(1.0, 0.0, 2.0))
        a = store.save("a", first, expected=None)
        second = replace(example_snapshot(1, store.load("a")), state=layers(-1.0, 1.0, 3.0))
        b = store.save("a", second, expected=a)
        change = store.diff("a", a, b)
        assert change.distance == pytest.approx((32**0.5, 8**0.5, 8**0.5))
        assert change.cosine == (pytest.approx(-1), None, pytest.approx(1))
        assert store.diff("a", b, a).counters.tokens == -30
        c = store.save("a", replace(second, state=layers(1.0)), expected=b)
        with pytest.raises(StateError, match=r"\(3, 2, 2\) and \(1, 2, 2\)"):
            store.diff("a", a, c)


class TestNames:
    def test_a_prefix_that_fits_two_snapshots_is_refused(self) -> None:
        store, ids = in_memory(2)
        twin = ids[0][:10] + "0" * 54
        held = store._held["a"]  # type: ignore[attr-defined]
        held.journal.insert(0, replace(held.journal[0], snapshot=twin))
        with pytest.raises(AgentNotFoundError, match="fits 2 snapshots"):
            store.load("a", ids[0][:10])
        assert store.load("a", ids[0]).id == ids[0]

    def test_no_id_reaches_outside_the_store(self, tmp_path: Path) -> None:
        inside = tmp_path / "deep" / "inside"
        for kind in ("files", "sqlite"):
            with STORES[kind](inside / kind) as store:
                for agent in ("../../../escaped", "/tmp/escaped", "..", "a/../../b", "\0"):
                    ids = grow(store, agent, 2)
                    store.tag(agent, "../../../escaped", ids[0])
                    store.fork(agent, f"{agent}/../x")
                    store.prune(agent, keep_last=1)
                    store.forget(agent)
        assert [path.name for path in tmp_path.iterdir()] == ["deep"]
        assert sorted(path.name for path in inside.iterdir()) == ["files", "sqlite"]
        assert {path.name for path in inside.glob("files/memory/*")} == {"agents", "lock", "store.json"}


class TestLog:
    def test_ends_where_a_parent_was_pruned_even_while_it_is_read(self, store: Store) -> None:
        ids = grow(store, "a", 6)
        log = store.log("a")
        assert next(log).id == ids[5]
        store.prune("a", keep_last=3)
        assert [entry.id for entry in log] == ids[4:2:-1]

    def test_is_lazy_but_raises_errors_at_once(self) -> None:
        store, _ = in_memory()
        with pytest.raises(AgentNotFoundError):
            store.log("nobody")
        with pytest.raises(AgentNotFoundError):
            store.log("a", "no such tag")

    def test_a_snapshot_that_is_listed_and_gone_is_damage_not_an_end(self) -> None:
        store, ids = in_memory()
        del store._held["a"].blobs[ids[1]]  # type: ignore[attr-defined]
        log = store.log("a")
        assert next(log).id == ids[2]
        with pytest.raises(DamagedSnapshotError, match=ids[1]):
            next(log)


class TestFork:
    def test_and_prune_decode_no_state(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = grow(store, "a", 6)

        def decoding(data: bytes) -> Snapshot:
            raise AssertionError("a state was decoded")

        with monkeypatch.context() as patch:
            patch.setattr("deltamem_agents.snapshots.store.decode", decoding)
            store.fork("a", "b")
            assert sorted(store.prune("a", keep_last=2).kept) == sorted(ids[:4])
        assert [entry.id for entry in store.log("b")] == ids[::-1]

    def test_of_a_pruned_agent_includes_its_threads(self, store: Store) -> None:
        quiet = grow(store, "a", 3, thread="quiet")
        grow(store, "a", 5, seed=9, thread="busy")
        store.prune("a", keep_last=1)
        store.fork("a", "b")
        newest = store.load("b").newest("quiet")
        assert newest == quiet[2]
        assert store.load("b", newest).snapshot.thread == "quiet"

    def test_leaves_out_later_snapshots_and_other_branches(self, store: Store) -> None:
        ids = grow(store, "a", 3)
        store.rewind("a", ids[0])
        branch = grow(store, "a", 2, seed=9)
        store.fork("a", "b")
        assert {move.snapshot for move in store.moves("b")} == {ids[0], *branch}


class TestArchive:
    @pytest.fixture
    def whole(self) -> bytes:
        store, ids = in_memory(2)
        store.tag("a", "t", ids[0])
        file = io.BytesIO()
        store.export("a", file)
        return file.getvalue()

    def test_holds_snapshots_any_safetensors_reader_opens(self, whole: bytes, tmp_path: Path) -> None:
        from safetensors.torch import load

        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            assert archive.testzip() is None
            manifest = json.loads(archive.read("manifest.json"))
            first = manifest["moves"][0][1]
            assert load(archive.read(f"{first}.safetensors"))["state"].shape == (3, 1, 4, 4)
        assert (manifest["agent"], manifest["format"], manifest["tags"]) == ("a", 1, {"t": first})

    @pytest.mark.slow
    def test_a_flipped_bit_is_refused_or_changes_nothing(self, whole: bytes) -> None:
        reference = InMemoryStore()
        reference.import_(io.BytesIO(whole))
        refusals = 0
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            store = InMemoryStore()
            try:
                store.import_(io.BytesIO(bytes(flipped)))
            except DamagedSnapshotError as error:
                refusals += 1
                assert "expected" in str(error)
                assert store.agents() == []
            else:
                # The bit was in a field of the zip without meaning, such as a time of day.
                assert store.agents() == ["a"]
                assert store.tags("a") == reference.tags("a")
                assert store.moves("a")[1:] == reference.moves("a")[1:]
        assert refusals > 0.8 * len(whole)

    def test_a_truncation_is_refused(self, whole: bytes) -> None:
        for length in range(0, len(whole), 3):
            store = InMemoryStore()
            with pytest.raises(DamagedSnapshotError, match="archive is damaged"):
                store.import_(io.BytesIO(whole[:length]))
            assert store.agents() == []

    def altered(
        self,
        whole: bytes,
        change: Callable[[dict[str, object]], None] = lambda manifest: None,
        extra: tuple[str, bytes] | None = None,
        method: int = zipfile.ZIP_STORED,
    ) -> io.BytesIO:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w", method) as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "manifest.json":
                    manifest = json.loads(data)
                    change(manifest)
                    data = json.dumps(manifest).encode()
                new.writestr(name, data)
            if extra:
                new.writestr(*extra)
        return file

    def test_a_manifest_that_does_not_fit_is_refused(self, whole: bytes) -> None:
        for change in (
            lambda m: m.update(moves=[]),
            lambda m: m.update(moves=m["moves"][:1]),
            lambda m: m.update(moves=[*m["moves"], ["turn", "f" * 64, ""]]),
            lambda m: m.update(moves=[["turn", "../../x", ""]]),
            lambda m: m.update(moves=[["two words", *m["moves"][0][1:]], *m["moves"][1:]]),
            lambda m: m.update(moves=[[1, 2, 3]]),
            lambda m: m.update(moves={}),
            lambda m: m.update(tags={"t": "f" * 64}),
            lambda m: m.update(tags=[]),
            lambda m: m.pop("agent"),
            lambda m: m.pop("format"),
            lambda m: m.update(format="1"),
        ):
            with pytest.raises(DamagedSnapshotError):
                InMemoryStore().import_(self.altered(whole, change))
        with pytest.raises(InvalidAgentIdError):
            InMemoryStore().import_(self.altered(whole, lambda m: m.update(agent=7)))
        with pytest.raises(NewerFormatError, match=r"format 3, .* reads up to 2"):
            InMemoryStore().import_(self.altered(whole, lambda m: m.update(format=3, moves=None)))

    def test_other_files_inside_or_compression_are_refused(self, whole: bytes) -> None:
        for file in (
            self.altered(whole, extra=("../../etc/passwd", b"root")),
            self.altered(whole, extra=(f"{'f' * 64}.safetensors", b"")),
            self.altered(whole, method=zipfile.ZIP_DEFLATED),
            io.BytesIO(b"PK no zip at all"),
            io.BytesIO(),
        ):
            with pytest.raises(DamagedSnapshotError):
                InMemoryStore().import_(file)

    def test_a_damaged_snapshot_inside_is_found_before_anything_is_written(self, whole: bytes, store: Store) -> None:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            victim = sorted(archive.namelist())[0]
            at = whole.index(archive.read(victim))
        damaged = whole[: at + 300] + b"\xff" + whole[at + 301 :]
        with pytest.raises(DamagedSnapshotError):
            store.import_(io.BytesIO(damaged))
        assert store.agents() == []

    def test_an_import_repairs_a_damaged_agent(self, tmp_path: Path) -> None:
        for kind, spoil in (("files", spoil_files), ("sqlite", spoil_sqlite)):
            with STORES[kind](tmp_path / kind) as store:
                ids = grow(store, "a", 3)
                store.fork("a", "fork")
                store.export("a", tmp_path / "backup")
                spoil(store, "a", ids[1])
                with pytest.raises(DamagedSnapshotError):
                    list(store.log("a"))
                store.import_(tmp_path / "backup", replace=True)
                assert [entry.id for entry in store.log("a")] == ids[::-1]

    def test_a_failed_export_keeps_the_old_file(self, tmp_path: Path) -> None:
        store, ids = in_memory()
        path = tmp_path / "export"
        store.export("a", path)
        before = path.read_bytes()
        del store._held["a"].blobs[ids[0]]  # type: ignore[attr-defined]
        with pytest.raises(DamagedSnapshotError):
            store.export("a", path)
        assert path.read_bytes() == before
        assert [each.name for each in tmp_path.iterdir()] == ["export"]

    def test_paths_that_cannot_be_used_are_named(self, tmp_path: Path) -> None:
        store, _ = in_memory()
        for act in (
            lambda: store.export("a", tmp_path / "missing" / "export"),
            lambda: store.import_(tmp_path / "missing"),
            lambda: store.import_(tmp_path),
        ):
            with pytest.raises(DeltaMemError, match=r"cannot (read|write) the export .*: (No such|Is a)"):
                act()


def spoil_files(store: Store, agent: str, snapshot: str) -> None:
    assert isinstance(store, FileStore)
    for path in store.path.rglob(f"{snapshot}.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def spoil_sqlite(store: Store, agent: str, snapshot: str) -> None:
    assert isinstance(store, SQLiteStore)
    with store._writing() as db:
        db.execute("UPDATE snapshots SET data = x'00' WHERE id = ?", [snapshot])


AGENTS = st.sampled_from(["a", "b", "c"])
PICKS = st.integers(0, 7)


class AlikeStores(RuleBasedStateMachine):
    """After any sequence of calls, all stores give the same results and have the same contents."""

    folder: Path
    counter = 0

    def __init__(self) -> None:
        super().__init__()
        AlikeStores.counter += 1
        home = self.folder / str(AlikeStores.counter)
        self.stores = [make(home) for make in STORES.values()]
        self.turn = 0

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    def ask(self, verb: Callable[[Store], object]) -> None:
        answers = []
        for store in self.stores:
            try:
                answers.append(timeless(verb(store)))
            except DeltaMemError as error:
                answers.append(f"{type(error).__name__}: {error}")
        assert answers[0] == answers[1] == answers[2]

    def pick(self, agent: str, pick: int) -> str:
        """Any snapshot that the agent has or had; some id if it never had one."""
        moves = [] if self.stores[0].head(agent) is None else self.stores[0].moves(agent)
        return moves[pick % len(moves)].snapshot if moves else "f" * 64

    @rule(agent=AGENTS, thread=st.sampled_from(["", "x", "y"]), stale=st.integers(0, 9))
    def save(self, agent: str, thread: str, stale: int) -> None:
        self.turn += 1
        head = self.stores[0].head(agent)
        entry = None if head is None else self.stores[0].load(agent)
        snapshot = example_snapshot(self.turn, entry, thread=thread)
        expected = self.pick(agent, 3) if stale == 0 else head
        self.ask(lambda store: store.save(agent, snapshot, expected=expected))

    @rule(agent=AGENTS, to=PICKS)
    def rewind(self, agent: str, to: int) -> None:
        target = self.pick(agent, to)
        self.ask(lambda store: store.rewind(agent, target))

    @rule(source=AGENTS, agent=AGENTS, at=PICKS)
    def fork(self, source: str, agent: str, at: int) -> None:
        target = self.pick(source, at)
        self.ask(lambda store: store.fork(source, agent, target))

    @rule(agent=AGENTS, at=PICKS, name=st.sampled_from(["t", "u"]))
    def tag(self, agent: str, at: int, name: str) -> None:
        target = self.pick(agent, at)
        self.ask(lambda store: store.tag(agent, name, target))

    @rule(agent=AGENTS, name=st.sampled_from(["t", "u"]))
    def untag(self, agent: str, name: str) -> None:
        self.ask(lambda store: store.untag(agent, name))

    @rule(agent=AGENTS, keep_last=st.integers(1, 4))
    def prune(self, agent: str, keep_last: int) -> None:
        self.ask(lambda store: store.prune(agent, keep_last=keep_last))

    @rule(agent=AGENTS)
    def forget(self, agent: str) -> None:
        self.ask(lambda store: store.forget(agent))

    @rule(source=AGENTS, agent=AGENTS, over=st.booleans())
    def move_house(self, source: str, agent: str, over: bool) -> None:
        def bring(store: Store) -> str:
            file = io.BytesIO()
            store.export(source, file)
            return store.import_(file, agent, replace=over)

        self.ask(bring)

    @invariant()
    def they_hold_the_same(self) -> None:
        self.ask(lambda store: store.agents())
        for agent in self.stores[0].agents():
            self.ask(lambda store, agent=agent: [(move.verb, move.snapshot) for move in store.moves(agent)])
            self.ask(lambda store, agent=agent: store.tags(agent))
            self.ask(lambda store, agent=agent: [entry.id for entry in store.log(agent)])
            for tagged in self.stores[0].tags(agent).values():
                self.ask(lambda store, agent=agent, tagged=tagged: store.load(agent, tagged).id)


def timeless(answer: object) -> object:
    """The result without its time, and without the order in which a store lists removed ids."""
    if isinstance(answer, Receipt):
        return replace(answer, at="", removed=tuple(sorted(answer.removed)), kept=tuple(sorted(answer.kept)))
    return answer.id if isinstance(answer, Entry) else answer


@pytest.mark.slow
def test_all_stores_give_the_same_results(tmp_path: Path) -> None:
    AlikeStores.folder = tmp_path
    run_state_machine_as_test(AlikeStores, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))
