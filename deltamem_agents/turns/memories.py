"""Agents' memories, read from the store once and cached in this process while they are the newest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import NamedTuple

from torch import Tensor

from deltamem_agents.chat.terms import owners_of, terms_of
from deltamem_agents.memory.matcher import Matcher
from deltamem_agents.memory.recall import StatementIndex
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import ScannedState, Writes, scanned
from deltamem_agents.snapshots import Entry, Snapshot, Statement, StatementList, Store, encode_page
from deltamem_agents.snapshots.statements import PAGE

KEPT_AGENTS = 64
"""Number of agents whose memories an engine caches."""

DROPPED_PART = 16
"""When a memory exceeds its bound, one in this many statements is dropped too, so that not every commit drops some."""


class Changed(NamedTuple):
    """A memory after a change. `objects`: bytes of its list's new pages, by address. `gone`: the statements that were
    dropped because of the bound."""

    memory: AgentMemory
    objects: dict[str, bytes]
    gone: Sequence[Statement]


@dataclass(eq=False)
class AgentMemory:
    """The memory of one agent as of one snapshot, or an empty memory.

    `listed`: the snapshot's list of statements. `base`: the state before their writes. If the adapter keeps no writes
    of statements, it is the full state. `fades`: whether each write also decays the earlier state. `went`: number of
    statements dropped because of the policy's bound. `folded`: the state after the writes of the dropped statements
    on `base`, None if none of them wrote. The state of all statements continues it; a reply that reads selected
    statements does not read it.
    """

    base: MemoryState
    listed: StatementList = field(default_factory=StatementList)
    fades: bool = False
    store: Store | None = None
    agent: str = ""
    folded: MemoryState | None = None
    went: int = 0
    lock: Lock = field(default_factory=Lock)
    _index: StatementIndex | None = None

    @classmethod
    def of(cls, store: Store, agent: str, snapshot: Snapshot, fades: bool) -> AgentMemory:
        base = snapshot.state if snapshot.base is None else snapshot.base
        listed = snapshot.statements or StatementList()
        return cls(base, listed, fades, store, agent, snapshot.folded, snapshot.went)

    @property
    def start(self) -> MemoryState:
        """The state before the writes of the listed statements."""
        return self.base if self.folded is None else self.folded

    @cached_property
    def pages(self) -> dict[str, tuple[str, ...]]:
        """The statement addresses in each page of the list, by page address."""
        return {} if self.store is None else self.store.pages(self.agent, self.listed.pages)

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """All statements, oldest first, including those that wrote nothing."""
        if self.store is None:
            return ()
        return tuple(self.store.read_statements(self.agent, self._ids()))

    def _ids(self) -> list[str]:
        return [*(each for page in self.listed.pages for each in self.pages[page]), *self.listed.newest]

    def chosen(
        self, matcher: Matcher, queries: Tensor, terms: Sequence[int], able: Tensor, owners: frozenset[int]
    ) -> list[tuple[int, float]]:
        """Indices and scores of the statements that match a question; see `StatementIndex.chosen`."""
        with self.lock:
            if self._index is None:
                self._index = index_of(self.statements, matcher)
            return self._index.chosen(queries, terms, able, matcher, owners)

    @property
    def scanned(self) -> MemoryState:
        """The state of all statements, computed when it is first used."""
        return ScannedState(self.base, lambda: self.state)

    @cached_property
    def state(self) -> MemoryState:
        """The state of all statements."""
        return scan_statements(self.statements, self.start, self.fades)

    def changed(
        self,
        store: Store | None,
        agent: str,
        new: Sequence[Statement],
        drop: frozenset[str] = frozenset(),
        *,
        most: int | None,
    ) -> Changed:
        """The memory with the statements `new`, without the ids in `drop`, and with at most `most` statements.

        `store`: the agent's store, None for a memory that is not saved. Dropped over the bound are first the statements
        that wrote nothing, then those of the assistant, then the others; within each group the oldest first. Those in
        `new` are dropped last.
        """
        gone, lost = self._to_drop(new, drop, most)
        over = frozenset(each.id for each in gone)
        left, drop = [each for each in new if each.id not in over], drop | over | lost
        listed, pages = self.listed.changed(self.pages if drop else {}, add=[each.id for each in left], drop=drop)
        memory = self._with_list(store, agent, listed, pages, left, gone)
        return Changed(memory, {page: encode_page(held) for page, held in pages.items()}, gone)

    def _to_drop(
        self, new: Sequence[Statement], drop: frozenset[str], most: int | None
    ) -> tuple[list[Statement], frozenset[str]]:
        """The statements to drop because of the bound, oldest first, and the listed ids whose bytes are gone."""
        if most is None or PAGE * len(self.listed.pages) + len(self.listed.newest) + len(new) <= most:
            return [], frozenset()
        if self.store is not None and not self.store.keeps_statements:
            return [], frozenset()
        listed = set(self._ids()) - drop
        if len(listed) + len(new) <= most:
            return [], frozenset()
        held = [each for each in self.statements if each.id in listed]
        every = [*held, *new]

        def rank(place: int) -> tuple[bool, int, int]:
            each = every[place]
            return place >= len(held), 0 if not each.wrote else 1 if each.role == "assistant" else 2, place

        going = sorted(range(len(every)), key=rank)[: max(0, len(every) - most + most // DROPPED_PART)]
        return [every[place] for place in sorted(going)], frozenset(listed - {each.id for each in held})

    def _with_list(
        self,
        store: Store | None,
        agent: str,
        listed: StatementList,
        pages: Mapping[str, Sequence[str]],
        new: Sequence[Statement],
        gone: Sequence[Statement],
    ) -> AgentMemory:
        """The memory with the list `listed`: `new` was added and other statements were dropped.

        `pages`: contents of the new pages. What is cached here is passed on to the new memory.
        """
        folded = self.folded
        if any(each.wrote and each.stored is not None for each in gone):
            folded = scan_statements(gone, self.start, self.fades)
        went = self.went + len(gone)
        found = AgentMemory(self.base, listed, self.fades, store, agent, folded, went, self.lock)
        known = {**(self.pages if self.store is None else self.__dict__.get("pages", {})), **pages}
        if (self.store is not None and "statements" not in self.__dict__) or any(
            each not in known for each in listed.pages
        ):
            return found
        held = {*listed.newest, *(each for page in listed.pages for each in known[page])}
        kept = tuple(each for each in self.statements if each.id in held)
        found.__dict__["pages"] = {page: tuple(known[page]) for page in listed.pages}
        found.__dict__["statements"] = (*kept, *new)
        if len(kept) == len(self.statements):
            if "state" in self.__dict__ and not gone:
                found.__dict__["state"] = scan_statements(new, self.state, self.fades)
            with self.lock:
                # The index grows in place, so only the newer memory may keep it.
                if self._index is not None:
                    found._index, self._index = self._index, None
                    add_to(found._index, new)
        return found

    def alone(self, statement: Statement) -> AgentMemory:
        """A memory of a single statement of this memory. It is not saved."""
        found = AgentMemory(MemoryState.zeros_like(self.base), StatementList((), (statement.id,)), self.fades)
        found.__dict__["statements"] = (statement,)
        return found

    def ids_of(self, thread: str, *, places: Collection[int] = (), start: int) -> frozenset[str]:
        """Ids of the statements at these places of a thread's log, and of all from place `start` on."""
        found = (each for each in self.statements if each.thread == thread)
        return frozenset(each.id for each in found if each.place >= start or each.place in places)


def index_of(statements: Sequence[Statement], matcher: Matcher) -> StatementIndex:
    """Builds the index that matches questions to these statements. Statements are numbered in this order."""
    index = StatementIndex(matcher)
    add_to(index, statements)
    return index


def add_to(index: StatementIndex, statements: Sequence[Statement]) -> None:
    matcher = index.matcher
    for each in statements:
        terms = terms_of(each.text) if each.text else None
        index.add(each.stored, terms, each.role, owners_of(each.text, matcher.relations, matcher.openers))


def without(objects: Mapping[str, bytes], gone: Sequence[Statement]) -> dict[str, bytes]:
    """The objects, bytes by address, except those of the statements `gone`."""
    ids = {each.id for each in gone}
    return {at: data for at, data in objects.items() if at not in ids}


def scan_statements(statements: Sequence[Statement], base: MemoryState, fades: bool) -> MemoryState:
    """The state after the writes of statements on `base`, oldest first."""
    writes = [each.writes for each in statements if each.wrote and each.writes is not None]
    return scanned(Writes.cat(writes), base, fades=fades) if writes else base


@dataclass(eq=False)
class Memories:
    """A cache of the most recently used memories, each as of its agent's newest snapshot."""

    fades: bool
    _held: OrderedDict[tuple[int, str], tuple[str, AgentMemory]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def at(self, store: Store, agent: str, entry: Entry) -> AgentMemory:
        with self._lock:
            found = self._held.get((id(store), agent))
        if found is not None and found[0] == entry.id and found[1].store is store:
            return found[1]
        memory = AgentMemory.of(store, agent, entry.snapshot, self.fades)
        self.keep(store, agent, entry.id, memory)
        return memory

    def keep(self, store: Store, agent: str, snapshot: str, memory: AgentMemory) -> None:
        """Caches this as the agent's newest memory."""
        with self._lock:
            self._held[id(store), agent] = (snapshot, memory)
            self._held.move_to_end((id(store), agent))
            while len(self._held) > KEPT_AGENTS:
                self._held.popitem(last=False)

    def forgotten(self, agent: str) -> None:
        """Drops the cached memories of all agents of this name."""
        with self._lock:
            for held in [each for each in self._held if each[1] == agent]:
                del self._held[held]
