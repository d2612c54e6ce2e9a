"""A store of versioned memories: the verbs, written once over a few primitives that each store implements.

An agent is a name for its newest snapshot, the head. Its journal lists every move of the head and so every
snapshot it holds. A commit appends one move, by compare-and-swap on the head.

For a store of your own, subclass `Store`, write its underscored methods, and run
`deltamem_agents.testing.StoreConformance` on it, and `StatementConformance` where it keeps statements.
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
"""The verb of a move whose `at` is when the agent was made; `prune` leaves it where it drops the first move."""

_MAKING = (MADE, "fork", "import")

_AT_ONCE = 256
"""Statements that are read at a time."""

SHORTEST_PREFIX = 6
"""Fewest digits by which a snapshot can be named."""


class Store(ABC):
    """Where memories live. Safe to use from many threads; see each store for processes.

    An agent id is any Unicode text of 1 to 512 characters, compared exactly. `at` and `to` name a snapshot of
    the agent by its id, a tag, or the first six or more digits of its id; None is the head.

    Every verb may raise InvalidAgentIdError, AgentNotFoundError for what is not there, DamagedSnapshotError or
    NewerFormatError for bytes that cannot be trusted, and StoreError when the storage fails; the memory is then as
    it was.
    """

    def agents(self) -> list[str]:
        """The ids of all agents, sorted."""
        return sorted(self._agents())

    def head(self, agent: str) -> str | None:
        """Id of the agent's newest snapshot, None when there is no such agent."""
        return self._head(check_agent(agent))

    def incarnation(self, agent: str) -> str | None:
        """What tells this agent from another one of its name, before or after it; None when there is no such agent.

        It stays the same for as long as the agent is there, and is another one once the agent was forgotten and
        made anew, or replaced by an import.
        """
        return self._incarnation(check_agent(agent))

    def load(self, agent: str, at: str | None = None) -> Entry:
        """A snapshot, verified against its id."""
        return self._fetch(agent, self._resolve(agent, at))

    def save(
        self, agent: str, snapshot: Snapshot, *, expected: str | None, objects: Mapping[str, bytes] | None = None
    ) -> str:
        """Commits a snapshot as the agent's new head and returns its id, once it is durable.

        `expected`: the head this commit replaces, None to create the agent. `objects`: the statements and pages that
        are new in this commit, bytes by address. Raises StaleHeadError when the head is another one by now: load it,
        redo the work on it and save again.
        """
        check_new_agent(agent) if expected is None else check_agent(agent)
        if not self.keeps_statements and snapshot.base is None:
            # Its state is whole without them.
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
        """Whether the store implements what keeps statements, which one of version 0.1 did not have."""
        return type(self)._objects is not Store._objects

    def statements(self, agent: str, at: str | None = None) -> list[Statement]:
        """The statements that a snapshot's memory holds, oldest first, without those that were forgotten since."""
        listed = self.load(agent, at).snapshot.statements
        return [] if listed is None else self.read_statements(agent, self.statement_ids(agent, listed))

    def statement_ids(self, agent: str, listed: StatementList) -> list[str]:
        """The addresses in a snapshot's list, oldest first."""
        pages = self.pages(agent, listed.pages)
        return [*(each for page in listed.pages for each in pages[page]), *listed.newest]

    def objects(self, agent: str, listed: StatementList) -> dict[str, bytes]:
        """The bytes of a list's pages and statements by address, as `save` takes them to keep the list elsewhere."""
        return dict(self._read(agent, [*listed.pages, *self.statement_ids(agent, listed)]))

    def pages(self, agent: str, pages: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """What pages of statements hold, by the page's address."""
        return {page: decode_page(data, page) for page, data in self._read(agent, pages)}

    def read_statements(self, agent: str, ids: Sequence[str]) -> list[Statement]:
        """Some statements by their addresses, in that order, without those that were forgotten."""
        return [decode_statement(data, each) for each, data in self._read(agent, ids) if data != FORGOTTEN]

    def erase_statements(self, agent: str, ids: Collection[str]) -> Removed:
        """Takes the bytes of statements out of the agent and out of the store's files; what forks hold stays.

        Snapshots that list them stay, without them. A state that was saved whole is not changed.
        """
        if self.head(agent) is None:
            raise no_agent(agent)
        removed = self._release(agent, ids, forgotten=True)
        # A commit that broke off may have left another copy of what was said.
        self._sweep(agent, {})
        tell_forgotten(agent)
        return removed

    def holders(self, ids: Collection[str], *, but: str) -> tuple[str, ...]:
        """The agents, `but` for one, that hold any of these statements; sorted."""
        if not ids:
            return ()
        found = {other: self._objects(other, ids) for other in self._agents() if other != but}
        return tuple(sorted(other for other, held in found.items() if any(data != FORGOTTEN for data in held.values())))

    def log(self, agent: str, at: str | None = None) -> Iterator[Entry]:
        """The snapshot at `at` and those it grew from, newest first, as far back as the store holds them."""
        return self._lineage(agent, self.load(agent, at))

    def moves(self, agent: str) -> list[Move]:
        """Every move of the agent's head, newest first. What a rewind left behind is found here."""
        return self._require_journal(agent)[::-1]

    def diff(self, agent: str, a: str, b: str | None = None) -> StateDiff:
        """How the state changed from snapshot `a` to snapshot `b`. Raises StateError unless they are alike in shape."""
        return state_diff(self.load(agent, a), self.load(agent, b))

    def fork(self, source: str, agent: str, at: str | None = None) -> str:
        """Starts `agent` at a snapshot of `source`, with its whole past; returns the id. `source` is not touched.

        Snapshots are shared, not copied. Raises AlreadyExistsError when `agent` is there.
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

        Nothing is deleted: `moves` still lists what was the head, and a rewind there undoes this one.
        Raises StaleHeadError when another commit came first.
        """
        head = self.head(agent)
        target = self._resolve(agent, to)
        if target != head:
            self._append(agent, Move("rewind", target, utc_now()), None, head)
        return target

    def tag(self, agent: str, name: str, at: str | None = None) -> str:
        """Gives a snapshot a name that `prune` respects; returns its id.

        Raises AlreadyExistsError when the name stands for another snapshot, ConfigError for a name that cannot be one.
        """
        target = self._resolve(agent, at)
        self._set_tag(agent, check_tag(name), target)
        return target

    def untag(self, agent: str, name: str) -> None:
        """Takes a tag away; its snapshot stays."""
        if name not in self.tags(agent):
            raise TagNotFoundError(f"agent {agent!r} has no tag {name!r}; `tags` lists those it has")
        self._set_tag(agent, name, None)

    def tags(self, agent: str) -> dict[str, str]:
        """The agent's tags, name to snapshot id, in order of their names."""
        if self.head(agent) is None:
            raise no_agent(agent)
        return dict(sorted(self._tags(agent).items()))

    def forget(self, agent: str) -> Receipt:
        """Erases the agent: its id, journal, tags, and every snapshot that no fork holds.

        When this returns, no byte of them is in the store's files. Backups, exports and the disk's own freed
        blocks are outside the store. A damaged agent can be forgotten too.
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
        """Drops all snapshots but the newest `keep_last`, the tagged, those where another agent forked off or
        stands, and the newest of each thread these know, by which a thread's messages are recognised.

        The log ends where a parent was dropped. What a process that died had written for a commit goes too.
        """
        if keep_last < 1:
            raise ConfigError(f"keep_last is {keep_last}, expected at least 1; to delete everything use forget")
        journal = self._require_journal(agent)
        held, making = dict.fromkeys(move.snapshot for move in reversed(journal)), _making(journal)
        kept = {*islice(held, keep_last), *self._tags(agent).values(), *self._branch_points(agent)}
        for each in kept & held.keys():
            links = decode_links(self._bytes(agent, each))
            kept.update(newest for thread, newest in links.threads.items() if thread != links.thread)
        gone = held.keys() - kept
        if making.snapshot in gone:
            self._carry_over(agent, making)
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
        """Writes everything of one agent to one file, which `import_` reads. A path is replaced in one step."""
        # Tags first: what they name is then in the journal, whatever is committed meanwhile.
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
        """Brings in an exported agent, under its own id or another; returns the id.

        Everything is verified before anything is written. Raises AlreadyExistsError when the agent is there,
        unless `replace`, which then puts the import in its place in one step.
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
        """Releases what the store holds open. Closing twice is fine."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # What a store implements. Agent ids and tags come checked. A write is atomic and durable when it returns;
    # when it raises, nothing has changed. The module `refusals` words the errors named here.

    @abstractmethod
    def _agents(self) -> list[str]:
        """Ids of all agents, in any order."""

    @abstractmethod
    def _head(self, agent: str) -> str | None:
        """The last move's snapshot, None without such an agent. Costs the same however long the journal is."""

    @abstractmethod
    def _journal(self, agent: str) -> list[Move]:
        """All moves, oldest first; empty without such an agent."""

    @abstractmethod
    def _tags(self, agent: str) -> dict[str, str]:
        """All tags, name to id; empty without such an agent."""

    @abstractmethod
    def _blob(self, agent: str, snapshot: str) -> bytes | None:
        """The bytes stored under an id, unverified; None when this agent does not hold it."""

    @abstractmethod
    def _append(
        self,
        agent: str,
        move: Move,
        data: bytes | None,
        expected: str | None,
        objects: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Moves the head if it is `expected` (None: no such agent), else raises StaleHeadError.

        `data`: the bytes of `move.snapshot`; None when the agent must hold it already (else AgentNotFoundError).
        `objects`: what the agent is to hold besides, bytes by address.
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
        """Makes an agent with this journal and these tags. Raises AlreadyExistsError, or replaces it whole.

        The bytes of a move's snapshot are in `blobs`, or the agent `source` holds them (else AgentNotFoundError).
        `objects`: what it holds besides; None for one that `source` holds, if it still does.
        """

    def _objects(self, agent: str, ids: Collection[str]) -> dict[str, bytes]:
        """The bytes, unverified, of those of the objects that the agent holds; FORGOTTEN for one that was forgotten."""
        return {}

    def _release(self, agent: str, ids: Collection[str], *, forgotten: bool) -> Removed:
        """Takes objects from an agent. The bytes that no other agent holds leave the store's files.

        `forgotten`: FORGOTTEN stands in their place from then on.
        """
        raise StoreError(f"{type(self).__name__} keeps no statements; it has to implement _objects and _release")

    def _sweep(self, agent: str, known: Mapping[str, Links]) -> Removed:
        """Removes objects that no snapshot of the agent lists, where a commit that broke off can leave such.

        `known`: what the agent's snapshots say of others, as far as it was read.
        """
        return Removed()

    @abstractmethod
    def _set_tag(self, agent: str, name: str, snapshot: str | None) -> None:
        """Sets a tag on a snapshot the agent holds (else AgentNotFoundError) or removes it (None).

        Raises AlreadyExistsError when it stands for another snapshot.
        """

    @abstractmethod
    def _drop(self, agent: str, snapshots: Collection[str]) -> Removed:
        """Removes these snapshots and their moves, sparing the head and the tagged."""

    @abstractmethod
    def _erase(self, agent: str) -> Removed:
        """Removes the agent and every byte that is its alone. Raises AgentNotFoundError."""

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
        """The addresses of all pages and statements that some snapshots list."""
        lists = [each.statements for each in links if each.statements is not None]
        pages = self.pages(agent, list({page for each in lists for page in each.pages}))
        inside = {each for ids in pages.values() for each in ids}
        return {*pages, *inside, *(each for listed in lists for each in listed.newest)}

    def _read(self, agent: str, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The verified bytes of pages and statements, FORGOTTEN for what was forgotten."""
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            found = self._objects(agent, part)
            yield from ((each, verified(found.get(each, b""), each)) for each in part)

    def _scanned(self, agent: str, listed: StatementList, base: MemoryState, fades: bool) -> MemoryState:
        """The state that the statements of a list make of `base`."""
        statements = self.read_statements(agent, self.statement_ids(agent, listed))
        writes = [each.writes for each in statements if each.wrote and each.writes is not None]
        return scanned(Writes.cat(writes), base, fades=fades) if writes else base

    def _incarnation(self, agent: str) -> str | None:
        """See `incarnation`. Here it is the time at which the agent was made; a store may have a faster way."""
        journal = self._journal(agent)
        return _making(journal).at if journal else None

    def _carry_over(self, agent: str, making: Move) -> None:
        """Note once more when the agent was made, where the incarnation is that time and the move will be dropped."""
        while self._incarnation(agent) == making.at:
            head = self._head(agent)
            with suppress(StaleHeadError):
                if head is not None:
                    self._append(agent, Move(MADE, head, making.at), None, head)
                return

    def _branch_points(self, agent: str) -> set[str]:
        """Ids at which other agents stand or forked off. A store may have a faster way."""
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
        """The verified bytes of a snapshot the agent holds."""
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
        """A snapshot, its ancestors and the snapshots their threads point to, as far as they are held: by id, their
        links."""
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
        """The full id that `at` names; one given in full may yet turn out not to be held."""
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


def _making(journal: Sequence[Move]) -> Move:
    """The move that says when an agent was made."""
    return next((move for move in reversed(journal) if move.verb in _MAKING), journal[0])
