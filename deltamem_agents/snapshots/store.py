"""A store of versioned memories: public methods, implemented once on top of a few primitives of each store.

An agent is a name for its newest snapshot, the head. Its journal lists every move of the head, and so every
snapshot that the agent holds. A commit appends one move, by compare-and-swap on the head.

To write your own store, subclass `Store`, implement its underscored methods, and run
`deltamem_agents.testing.StoreConformance` on it. If it keeps statements, run `StatementConformance` too.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Self, TypeAlias

from deltamem_agents.errors import (
    AgentNotFoundError,
    ConfigError,
    DamagedSnapshotError,
    SnapshotNotFoundError,
    StaleHeadError,
    StoreError,
    TagNotFoundError,
)
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import Writes, scanned
from deltamem_agents.snapshots.archive import Archive, write_archive
from deltamem_agents.snapshots.codec import Links, decode, decode_links, encode, snapshot_id
from deltamem_agents.snapshots.durable import named_faults, replacing
from deltamem_agents.snapshots.records import Entry, Move, Receipt, Removed, StateDiff, state_diff
from deltamem_agents.snapshots.refusals import check_agent, check_new_agent, check_tag, no_agent, no_snapshot
from deltamem_agents.snapshots.snapshot import Snapshot, is_snapshot_id, utc_now
from deltamem_agents.snapshots.statements import (
    FORGOTTEN,
    Statement,
    StatementList,
    decode_page,
    decode_statement,
    verified,
)
from deltamem_agents.snapshots.watching import tell_forgotten

File: TypeAlias = "str | os.PathLike[str] | BinaryIO"

MADE = "made"
"""Verb of a move that only records when the agent was made. `prune` adds it when it drops the agent's first move."""

_CREATING_VERBS = (MADE, "fork", "import")

_READ_BATCH = 256
"""How many statements are read from the store at a time."""

SHORTEST_PREFIX = 6
"""Minimum number of hex digits in an abbreviated snapshot id."""


class Store(ABC):
    """A store of memories. Safe to use from many threads; each store says what it guarantees across processes.

    An agent id is any Unicode text of 1 to 512 characters, compared exactly. `at` and `to` name a snapshot of
    the agent by its id, a tag, or the first six or more digits of its id; None is the head.

    Every method may raise InvalidAgentIdError, AgentNotFoundError if the agent or snapshot does not exist,
    DamagedSnapshotError or NewerFormatError if the stored bytes cannot be trusted, and StoreError if the storage
    fails. The memory is unchanged after an error.
    """

    def agents(self) -> list[str]:
        """The ids of all agents, sorted."""
        return sorted(self._agents())

    def head(self, agent: str) -> str | None:
        """Id of the agent's newest snapshot, None when there is no such agent."""
        return self._head(check_agent(agent))

    def incarnation(self, agent: str) -> str | None:
        """A token that tells this agent from earlier or later agents of the same name; None if there is no such agent.

        It stays the same as long as the agent exists. It changes when the agent is forgotten and made again, or
        replaced by an import.
        """
        return self._incarnation(check_agent(agent))

    def load(self, agent: str, at: str | None = None) -> Entry:
        """A snapshot, verified against its id."""
        return self._fetch(agent, self._resolve(agent, at))

    def save(
        self, agent: str, snapshot: Snapshot, *, expected: str | None, objects: Mapping[str, bytes] | None = None
    ) -> str:
        """Commits a snapshot as the agent's new head. Returns its id once it is durable.

        `expected`: the head this commit replaces, None to create the agent. `objects`: the statements and pages that
        are new in this commit, bytes by address. Raises StaleHeadError if the head has changed: load the new head, redo
        the work on it and save again.
        """
        check_new_agent(agent) if expected is None else check_agent(agent)
        if not self.keeps_statements and snapshot.base is None:
            # The snapshot stores its full state, so it does not need them.
            snapshot, objects = replace(snapshot, statements=None), None
        data = encode(snapshot)
        move = Move(snapshot.origin, snapshot_id(data), utc_now())
        if objects:
            self._append(agent, move, data, expected, objects)
        else:
            self._append(agent, move, data, expected)
        return move.snapshot

    @property
    def keeps_statements(self) -> bool:
        """Whether the store implements the methods for statements. A store written for version 0.1 does not."""
        return type(self)._objects is not Store._objects

    def statements(self, agent: str, at: str | None = None) -> list[Statement]:
        """The statements in a snapshot's memory, oldest first, except those that have been forgotten since."""
        listed = self.load(agent, at).snapshot.statements
        return [] if listed is None else self.read_statements(agent, self.statement_ids(agent, listed))

    def statement_ids(self, agent: str, listed: StatementList) -> list[str]:
        """The statement addresses in a snapshot's list, oldest first."""
        pages = self.pages(agent, listed.pages)
        return [*(each for page in listed.pages for each in pages[page]), *listed.newest]

    def objects(self, agent: str, listed: StatementList) -> dict[str, bytes]:
        """The bytes of a list's pages and statements, by address. Pass them to `save` to store the list elsewhere."""
        return dict(self._read(agent, [*listed.pages, *self.statement_ids(agent, listed)]))

    def pages(self, agent: str, pages: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The statement addresses in each page, by the page's address."""
        return {page: decode_page(data, page) for page, data in self._read(agent, pages)}

    def read_statements(self, agent: str, ids: Sequence[str]) -> list[Statement]:
        """The statements at these addresses, in that order, except forgotten ones."""
        return [decode_statement(data, each) for each, data in self._read(agent, ids) if data != FORGOTTEN]

    def erase_statements(self, agent: str, ids: Collection[str]) -> Removed:
        """Deletes the bytes of statements from the agent and from the store's files. Statements that forks hold stay.

        Snapshots that list the statements stay, without them. A state that was stored in full is not changed.
        """
        if self.head(agent) is None:
            raise no_agent(agent)
        removed = self._release(agent, ids, forgotten=True)
        # An interrupted commit may have left another copy of the text.
        self._sweep(agent, {})
        tell_forgotten(agent)
        return removed

    def holders(self, ids: Collection[str], *, but: str) -> tuple[str, ...]:
        """The agents, except `but`, that hold any of these statements; sorted."""
        if not ids:
            return ()
        found = {other: self._objects(other, ids) for other in self._agents() if other != but}
        return tuple(sorted(other for other, held in found.items() if any(data != FORGOTTEN for data in held.values())))

    def log(self, agent: str, at: str | None = None) -> Iterator[Entry]:
        """The snapshot at `at` and its ancestors, newest first, as far back as the store holds them."""
        return self._lineage(agent, self.load(agent, at))

    def moves(self, agent: str) -> list[Move]:
        """Every move of the agent's head, newest first. It includes the snapshots that a rewind left."""
        return self._require_journal(agent)[::-1]

    def diff(self, agent: str, a: str, b: str | None = None) -> StateDiff:
        """How the state changed from snapshot `a` to snapshot `b`. Raises StateError if their shapes differ."""
        return state_diff(self.load(agent, a), self.load(agent, b))

    def fork(self, source: str, agent: str, at: str | None = None) -> str:
        """Makes a new `agent` at a snapshot of `source`, with its whole history; returns the snapshot's id.

        `source` is not changed. Snapshots are shared, not copied. Raises AlreadyExistsError if `agent` exists.
        """
        check_new_agent(agent)
        tip = self._resolve(source, at)
        past = self._reachable(source, tip)
        moves = [move for move in self._require_journal(source) if move.snapshot in past]
        shared = dict.fromkeys(self._listed(source, past.values()))
        self._create_agent(agent, [*moves, Move("fork", tip, utc_now())], {}, {}, shared, source=source, replace=False)
        return tip

    def rewind(self, agent: str, to: str) -> str:
        """Makes an older snapshot the head again, bit for bit; returns its id.

        Nothing is deleted: `moves` still lists the previous head, and a rewind to it undoes this one.
        Raises StaleHeadError if another commit came first.
        """
        head = self.head(agent)
        target = self._resolve(agent, to)
        if target != head:
            self._append(agent, Move("rewind", target, utc_now()), None, head)
        return target

    def tag(self, agent: str, name: str, at: str | None = None) -> str:
        """Names a snapshot, so that `prune` keeps it; returns its id.

        Raises AlreadyExistsError if the tag names another snapshot, ConfigError if the name is not valid.
        """
        target = self._resolve(agent, at)
        self._set_tag(agent, check_tag(name), target)
        return target

    def untag(self, agent: str, name: str) -> None:
        """Removes a tag. Its snapshot stays."""
        if name not in self.tags(agent):
            raise TagNotFoundError(f"agent {agent!r} has no tag {name!r}; `tags` lists its tags")
        self._set_tag(agent, name, None)

    def tags(self, agent: str) -> dict[str, str]:
        """The agent's tags, name to snapshot id, in order of their names."""
        if self.head(agent) is None:
            raise no_agent(agent)
        return dict(sorted(self._tags(agent).items()))

    def forget(self, agent: str) -> Receipt:
        """Erases the agent: its id, journal, tags, and every snapshot and statement that no fork holds.

        When this returns, no byte of them is in the store's files. Backups, exports and blocks that the disk has freed
        are outside the store. A damaged agent can be forgotten too.
        """
        check_agent(agent)
        try:
            tags = tuple(sorted(self._tags(agent)))
        except DamagedSnapshotError:
            tags = ()
        removed = self._erase(agent)
        tell_forgotten(agent)
        return Receipt.of(agent, removed, tags)

    def prune(self, agent: str, *, keep_last: int) -> Receipt:
        """Deletes old snapshots and returns a receipt.

        Kept are the newest `keep_last` snapshots, tagged ones, and those at which another agent forked or now stands.
        Of every thread that these know, the newest snapshot is kept too, because a thread's messages are recognised by
        it. `log` ends at a dropped parent. Leftovers of a commit whose process died are deleted as well.
        """
        if keep_last < 1:
            raise ConfigError(f"keep_last is {keep_last}, expected at least 1; to delete everything use forget")
        journal = self._require_journal(agent)
        held, making = dict.fromkeys(move.snapshot for move in reversed(journal)), _creation_move(journal)
        kept = {*islice(held, keep_last), *self._tags(agent).values(), *self._branch_points(agent)}
        for each in kept & held.keys():
            links = decode_links(self._bytes(agent, each))
            kept.update(newest for thread, newest in links.threads.items() if thread != links.thread)
        gone = held.keys() - kept
        if making.snapshot in gone:
            self._keep_creation_time(agent, making)
        said = {each: decode_links(self._bytes(agent, each)) for each in held}
        before = self._listed(agent, said.values())
        removed = self._drop(agent, gone)
        dropped = {*removed.removed, *removed.kept}
        unlisted = before - self._listed(agent, [said[each] for each in held if each not in dropped])
        also = self._release(agent, unlisted, forgotten=False) if unlisted else Removed()
        strays = self._sweep(agent, said)
        gone_for_good = (*removed.removed, *also.removed, *strays.removed)
        whole = Removed(gone_for_good, removed.kept, removed.nbytes + also.nbytes + strays.nbytes)
        return Receipt.of(agent, whole)

    def export(self, agent: str, file: File) -> None:
        """Writes one agent in full to one file, which `import_` reads. An existing file is replaced atomically."""
        # Tags are read first: then the journal contains what they name, even if commits arrive meanwhile.
        tags = self._tags(check_agent(agent))
        moves = self._require_journal(agent)
        held = dict.fromkeys(move.snapshot for move in moves)
        with ExitStack() as stack:
            if isinstance(file, (str, os.PathLike)):
                stack.enter_context(named_faults(f"write the export {os.fspath(file)!r}"))
                file = stack.enter_context(replacing(Path(file)))
            links = [decode_links(self._bytes(agent, snapshot)) for snapshot in held]
            objects = sorted(self._listed(agent, links))
            snapshots = ((snapshot, self._bytes(agent, snapshot)) for snapshot in held)
            write_archive(file, agent, moves, tags, snapshots, objects, self._read(agent, objects))

    def import_(self, file: File, agent: str | None = None, *, replace: bool = False) -> str:
        """Reads an exported agent into this store, under its own id or another; returns the id.

        Everything is verified before anything is written. If the agent exists, raises AlreadyExistsError, or with
        `replace` puts the import in its place atomically.
        """
        with ExitStack() as stack:
            if isinstance(file, (str, os.PathLike)):
                with named_faults(f"read the export {os.fspath(file)!r}"):
                    file = stack.enter_context(open(file, "rb"))
            archive = Archive(file)
            name = check_new_agent(archive.agent if agent is None else agent)
            for tag in archive.tags:
                check_tag(tag)
            archive.verify()
            moves = [*archive.moves, Move("import", archive.moves[-1].snapshot, utc_now())]
            self._create_agent(name, moves, archive.tags, archive, archive.objects, source=None, replace=replace)
        tell_forgotten(name)
        return name

    def close(self) -> None:
        """Closes the store's files and connections. Closing twice is allowed."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # The methods a store implements. Agent ids and tags are already checked. A write is atomic and durable when it
    # returns; if it raises, nothing has changed. The errors named here are built in the module `refusals`.

    @abstractmethod
    def _agents(self) -> list[str]:
        """Ids of all agents, in any order."""

    @abstractmethod
    def _head(self, agent: str) -> str | None:
        """The last move's snapshot, None if there is no such agent. Its cost must not grow with the journal."""

    @abstractmethod
    def _journal(self, agent: str) -> list[Move]:
        """All moves, oldest first; empty if there is no such agent."""

    @abstractmethod
    def _tags(self, agent: str) -> dict[str, str]:
        """All tags, name to snapshot id; empty if there is no such agent."""

    @abstractmethod
    def _blob(self, agent: str, snapshot: str) -> bytes | None:
        """The bytes stored under an id, unverified; None if this agent does not hold it."""

    @abstractmethod
    def _append(
        self,
        agent: str,
        move: Move,
        data: bytes | None,
        expected: str | None,
        objects: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Moves the head if it is `expected` (None: there is no such agent yet), else raises StaleHeadError.

        `data`: the bytes of `move.snapshot`. None means that the agent must already hold it, else AgentNotFoundError.
        `objects`: statements and pages to add to the agent, bytes by address.
        """

    @abstractmethod
    def _create(
        self,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        *,
        source: str | None,
        replace: bool,
        objects: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> None:
        """Makes an agent with this journal and these tags. If it exists, replaces it or raises AlreadyExistsError.

        The bytes of a move's snapshot are in `blobs`, or the agent `source` holds them, else AgentNotFoundError.
        `objects`: its statements and pages, bytes by address. None stands for one that is taken from `source`, if
        `source` still holds it.
        """

    def _objects(self, agent: str, ids: Collection[str]) -> dict[str, bytes]:
        """The bytes, unverified, of the objects that the agent holds; FORGOTTEN for a forgotten object."""
        return {}

    def _release(self, agent: str, ids: Collection[str], *, forgotten: bool) -> Removed:
        """Removes objects from an agent. Bytes that no other agent holds are deleted from the store's files.

        `forgotten`: whether FORGOTTEN is stored in their place.
        """
        raise StoreError(f"{type(self).__name__} keeps no statements; implement its methods _objects and _release")

    def _sweep(self, agent: str, known: Mapping[str, Links]) -> Removed:
        """Removes objects that no snapshot of the agent lists, in stores where an interrupted commit can leave them.

        `known`: the links of the agent's snapshots that have been read already, by snapshot id.
        """
        return Removed()

    @abstractmethod
    def _set_tag(self, agent: str, name: str, snapshot: str | None) -> None:
        """Sets a tag on a snapshot that the agent holds (else AgentNotFoundError). With None, removes the tag.

        Raises AlreadyExistsError if the tag names another snapshot.
        """

    @abstractmethod
    def _drop(self, agent: str, snapshots: Collection[str]) -> Removed:
        """Removes these snapshots and their moves, except the head and tagged snapshots."""

    @abstractmethod
    def _erase(self, agent: str) -> Removed:
        """Removes the agent and every byte that no other agent holds. Raises AgentNotFoundError."""

    def _create_agent(
        self,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        objects: Mapping[str, bytes | None],
        *,
        source: str | None,
        replace: bool,
    ) -> None:
        if objects:
            self._create(agent, moves, tags, blobs, source=source, replace=replace, objects=objects)
        else:
            self._create(agent, moves, tags, blobs, source=source, replace=replace)

    def _listed(self, agent: str, links: Iterable[Links]) -> set[str]:
        """The addresses of all pages and statements that the snapshots with these links list."""
        lists = [each.statements for each in links if each.statements is not None]
        pages = self.pages(agent, list({page for each in lists for page in each.pages}))
        inside = {each for ids in pages.values() for each in ids}
        return {*pages, *inside, *(each for listed in lists for each in listed.newest)}

    def _read(self, agent: str, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The verified bytes of pages and statements; FORGOTTEN for forgotten ones."""
        for start in range(0, len(ids), _READ_BATCH):
            part = ids[start : start + _READ_BATCH]
            found = self._objects(agent, part)
            yield from ((each, verified(found.get(each, b""), each)) for each in part)

    def _scanned(self, agent: str, listed: StatementList, base: MemoryState, fades: bool) -> MemoryState:
        """The state after the writes of a list's statements on `base`."""
        statements = self.read_statements(agent, self.statement_ids(agent, listed))
        writes = [each.writes for each in statements if each.wrote and each.writes is not None]
        return scanned(Writes.cat(writes), base, fades=fades) if writes else base

    def _incarnation(self, agent: str) -> str | None:
        """See `incarnation`. This default is the time at which the agent was made; a store may have a faster way."""
        journal = self._journal(agent)
        return _creation_move(journal).at if journal else None

    def _keep_creation_time(self, agent: str, making: Move) -> None:
        """Repeats the agent's creation time in a new move, if the incarnation depends on it and its move is dropped."""
        while self._incarnation(agent) == making.at:
            head = self._head(agent)
            with suppress(StaleHeadError):
                if head is not None:
                    self._append(agent, Move(MADE, head, making.at), None, head)
                return

    def _branch_points(self, agent: str) -> set[str]:
        """Ids of snapshots at which another agent stands or forked. A store may have a faster way."""
        points: set[str] = set()
        for other in self._agents():
            if other != agent:
                journal = self._journal(other)
                points.update(move.snapshot for move in journal if move.verb == "fork")
                points.update(move.snapshot for move in journal[-1:])
        return points

    def _require_journal(self, agent: str) -> list[Move]:
        journal = self._journal(check_agent(agent))
        if not journal:
            raise no_agent(agent)
        return journal

    def _bytes(self, agent: str, snapshot: str) -> bytes:
        """The verified bytes of a snapshot that the agent holds."""
        data = self._blob(agent, snapshot)
        if data is None:
            if all(move.snapshot != snapshot for move in self._journal(agent)):
                raise no_snapshot(agent, snapshot)
            data = b""
        if snapshot_id(data) != snapshot:
            raise DamagedSnapshotError(
                f"snapshot {snapshot} of agent {agent!r} is damaged: its {len(data)} bytes have the checksum "
                f"{snapshot_id(data)[:12]}…, expected {snapshot[:12]}…. Nothing was overwritten; rewind to another "
                "snapshot of the agent's log, or import an export of it"
            )
        return data

    def _fetch(self, agent: str, snapshot: str) -> Entry:
        return Entry(snapshot, decode(self._bytes(agent, snapshot), partial(self._scanned, agent)))

    def _lineage(self, agent: str, entry: Entry) -> Iterator[Entry]:
        yield entry
        while entry.snapshot.parent is not None:
            try:
                entry = self._fetch(agent, entry.snapshot.parent)
            except AgentNotFoundError:
                return
            yield entry

    def _reachable(self, agent: str, start: str) -> dict[str, Links]:
        """The links, by id, of a snapshot, its ancestors and the snapshots their threads point to, if held."""
        seen = {start}
        ahead, found = [start], dict[str, Links]()
        while ahead:
            snapshot = ahead.pop()
            try:
                past = decode_links(self._bytes(agent, snapshot))
            except AgentNotFoundError:
                continue
            found[snapshot] = past
            new = {each for each in (past.parent, *past.threads.values()) if each is not None} - seen
            seen |= new
            ahead.extend(new)
        return found

    def _resolve(self, agent: str, at: str | None) -> str:
        """The full id that `at` names. An id given in full is not checked: the agent may not hold it."""
        head = self.head(agent)
        if head is None:
            raise no_agent(agent)
        if at is None:
            return head
        if is_snapshot_id(at):
            return at
        tagged = self._tags(agent).get(at)
        if tagged is not None:
            return tagged
        matches = {move.snapshot for move in self._journal(agent) if move.snapshot.startswith(at)}
        if not matches or len(at) < SHORTEST_PREFIX:
            raise no_snapshot(agent, at)
        if len(matches) > 1:
            raise SnapshotNotFoundError(f"{at!r} fits {len(matches)} snapshots of agent {agent!r}; give more digits")
        return matches.pop()


def _creation_move(journal: Sequence[Move]) -> Move:
    """The move that records when an agent was made."""
    return next((move for move in reversed(journal) if move.verb in _CREATING_VERBS), journal[0])
