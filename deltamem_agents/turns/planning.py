"""Where a turn starts: which snapshot it continues, and which of its messages the memory has not absorbed.

Reads the store, decides, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from deltamem_agents.chat.history import Aligned, Alignment, align, digest, extend, known_ahead
from deltamem_agents.errors import ConfigError, HistoryDivergedError
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Counters, Entry, Fingerprint, LazyStore, Snapshot, StatementList, Store
from deltamem_agents.turns.memories import AgentMemory, Memories
from deltamem_agents.turns.thread_past import REBUILD, Return, ThreadPast
from deltamem_agents.types import Message, Role, ThreadLog

OnDivergence: TypeAlias = Literal["append", "rewind", "raise"]

DEFAULT_THREAD = ""


@dataclass(frozen=True)
class WritePolicy:
    """What is remembered. `roles`: whose messages are written.

    `message_tokens`: how many tokens of one message are written at most. Of a longer one, such as a whole document that
    a tool returned, it is the first and the last half of so many, wherever the message stands.

    `keep_text`: whether statements keep what was said. Without it nothing returns to the window and nothing moves to
    another model.

    `statements`: how many statements an agent's memory holds at most; None is no bound. Where there are more, those
    that wrote nothing go first, then what the assistant said, then the rest, each the oldest first; what is new in a
    commit goes behind all others. A sixteenth of the bound goes besides, so that this happens once in a while. What
    went is found, shown and corrected no more: it stays in the state of everything alone (`Recall("all")`).

    `on_divergence`: for adapters whose gates never shut, of which single messages cannot be taken out of the memory:
    what to do when a thread's history was edited at a point after which other threads wrote. "append" keeps everything
    and writes what is new, "rewind" goes back and loses what the other threads wrote since, "raise" refuses. Where no
    other thread wrote, going back is exact and always done.
    """

    roles: tuple[Role, ...] = ("user", "assistant", "tool")
    on_divergence: OnDivergence = "append"
    message_tokens: int = 1024
    keep_text: bool = True
    statements: int | None = 10_000

    def __post_init__(self) -> None:
        if self.message_tokens < 2:
            raise ConfigError(f"message_tokens is {self.message_tokens}, expected 2 or more: a head and a tail")
        if self.statements is not None and self.statements < 1:
            raise ConfigError(f"statements is {self.statements}, expected 1 or more, or None for no bound")
        if "system" in self.roles:
            raise ConfigError("role system cannot be written: instructions are given anew in every prompt")


@dataclass(frozen=True)
class Kept:
    """What a memory holds after a turn; see `Snapshot`."""

    state: MemoryState
    listed: StatementList
    base: MemoryState | None = None
    fades: bool = False
    folded: MemoryState | None = None
    went: int = 0

    @classmethod
    def of(cls, memory: AgentMemory) -> Kept:
        """Of a memory whose state is made of its statements."""
        return cls(memory.scanned, memory.listed, memory.base, memory.fades, memory.folded, memory.went)


@dataclass(frozen=True)
class Plan:
    """The start of one turn. `new` are positions in its messages, ascending.

    `head`: the agent's head when the plan was made, which the commit must replace. `incarnation`: that agent, as
    `Store.incarnation` tells it from others of its name. `base`: the snapshot that is continued, None for an empty
    memory. `memory`: what it holds. `log`: what the thread has absorbed, to be extended; `counted`: how many messages
    that was before. `digests`: of the messages that may be written, by position. `edited`: how many of `new` have their
    place in the log already. `undone`: how many messages the memory gives up.
    """

    head: str | None
    incarnation: str | None
    base: Entry | None
    memory: AgentMemory
    log: ThreadLog
    outcome: Alignment
    new: tuple[int, ...]
    digests: Mapping[int, str] = field(default_factory=dict)
    edited: int = 0
    undone: int = 0
    counted: int = 0

    @property
    def places(self) -> dict[int, int]:
        """Which message of the thread's log each of `new` becomes."""
        order = {position: place for place, position in enumerate(self.digests)}
        edited = {position: order[position] for position in self.new[: self.edited]}
        rest = self.new[self.edited :]
        return edited | {position: self.log.count + place for place, position in enumerate(rest)}

    def undone_statements(self, thread: str) -> frozenset[str]:
        """The statements of the thread that the turn's own take the place of, or that the client undid."""
        before = self.base is not None and self.base.newest(thread) is not None
        if not before or not (self.memory.listed.pages or self.memory.listed.newest):
            return frozenset()
        if not self.edited and self.log.count >= self.counted:
            return frozenset()
        edited = [self.places[position] for position in self.new[: self.edited]]
        return self.memory.ids_of(thread, places=edited, start=self.log.count)

    def commit(
        self,
        kept: Kept,
        fingerprint: Fingerprint,
        thread: str,
        reply: Message | None,
        tokens: int,
        origin: str,
    ) -> Snapshot | None:
        """The snapshot to save once the turn is over; None where the newest one holds just these messages.

        `kept`: what the memory then holds. `tokens`: how many were written.
        """
        written = [self.digests[position] for position in self.new]
        if reply is not None:
            written.append(digest(reply))
        known = [each for position, each in self.digests.items() if not self.new or position < self.new[0]]
        absorbed = extend(self.log, written[self.edited :], known)
        if self.base is not None and self.base.id == self.head and absorbed == self._absorbed_before(thread):
            return None
        before = Counters() if self.base is None else self.base.snapshot.counters
        return Snapshot(
            state=kept.state,
            statements=kept.listed,
            base=kept.base,
            fades=kept.fades,
            folded=kept.folded,
            went=kept.went,
            fingerprint=fingerprint,
            thread=thread,
            absorbed=absorbed,
            threads={} if self.base is None else self.base.threads(),
            parent=None if self.base is None else self.base.id,
            counters=Counters(before.turns + 1, before.messages + len(written), before.tokens + tokens),
            origin=REBUILD if self.undone and not self.log.count else origin,
        )

    def _absorbed_before(self, thread: str) -> ThreadLog | None:
        return None if self.base is None or self.base.snapshot.thread != thread else self.base.snapshot.absorbed


@dataclass(frozen=True)
class Planner:
    """Plans the turns of one engine. `empty`: the memory that an agent starts with.

    `drops`: whether single statements can be taken out of a memory, so that nobody has to go back.
    """

    lazy_store: LazyStore
    empty: AgentMemory
    memories: Memories
    fingerprint: Fingerprint
    policy: WritePolicy
    drops: bool

    @property
    def store(self) -> Store:
        return self.lazy_store.open()

    def turn(self, agent: str, thread: str | None, messages: Sequence[Message]) -> Plan:
        """Align `messages` with what the agent's thread absorbed.

        Looks at no more snapshots than the thread's log has messages, and only where it goes back.
        Raises ForeignSnapshotError when the agent's memory was made by something else, HistoryDivergedError when the
        policy refuses, and whatever the store raises.
        """
        start = self._start(agent, messages)
        if start.base is None:
            return start
        positions, incoming = tuple(start.digests), tuple(start.digests.values())
        past = ThreadPast(self.store, agent, start.base, DEFAULT_THREAD if thread is None else thread)
        log = past.log()
        if log.count == 0:
            log = past.copied(start.base, incoming)
            return replace(start, log=log, new=positions[log.count :])
        start = replace(start, counted=log.count)
        found = align(log, incoming, named=thread is not None)
        if found.outcome is Alignment.DIVERGED:
            back = past.back_to(found, incoming)
            if back is not None and back.possible:
                if self.drops and not start.memory.base.matrices.any():
                    return _dropping(start, found, back, positions)
                if self._may_go_back(past, back):
                    memory = self.empty if back.base is None else self._memory(agent, back.base)
                    return replace(
                        start,
                        base=back.base,
                        memory=memory,
                        log=back.log,
                        outcome=found.outcome,
                        new=positions[back.log.count :],
                        undone=back.undone,
                    )
            if back is None and not found.edited:
                found = align(log, incoming, named=False)
        new = tuple(positions[place] for place in found.new)
        edited = found.changed if found.edited else 0
        return replace(start, log=found.log, outcome=found.outcome, new=new, edited=edited)

    def absorption(self, agent: str, thread: str | None, leaving: Sequence[Message]) -> Plan:
        """Write messages that leave a client's window behind everything the agent has absorbed; nothing is undone.

        What the thread absorbed of them while it saw them is not new. Raises ForeignSnapshotError, and whatever the
        store raises.
        """
        start = self._start(agent, leaving)
        if start.base is None:
            return start
        past = ThreadPast(self.store, agent, start.base, DEFAULT_THREAD if thread is None else thread)
        log = past.log()
        known = known_ahead(log, tuple(start.digests.values()))
        return replace(start, log=log, outcome=Alignment.EXTENDS, new=tuple(start.digests)[known:])

    def nobody(self, messages: Sequence[Message]) -> Plan:
        """A turn whose memory ends with it."""
        digests = self._digests(messages)
        return Plan(None, None, None, self.empty, ThreadLog(), Alignment.FRESH, tuple(digests), digests)

    def _start(self, agent: str, messages: Sequence[Message]) -> Plan:
        """The plan that goes on from the agent's head and takes every message for new."""
        plan = replace(self.nobody(messages), incarnation=self.store.incarnation(agent), head=self.store.head(agent))
        if plan.head is None:
            return plan
        entry = self.store.load(agent, plan.head)
        entry.snapshot.fingerprint.require(self.fingerprint)
        return replace(plan, base=entry, memory=self._memory(agent, entry))

    def _memory(self, agent: str, entry: Entry) -> AgentMemory:
        return self.memories.at(self.store, agent, entry)

    def _digests(self, messages: Sequence[Message]) -> dict[int, str]:
        return {i: digest(message) for i, message in enumerate(messages) if message.role in self.policy.roles}

    def _may_go_back(self, past: ThreadPast, back: Return) -> bool:
        """Whether the policy lets a thread go back. Raises HistoryDivergedError where it refuses."""
        others = past.writers_since(back.base)
        if not others or self.policy.on_divergence == "rewind":
            return True
        if self.policy.on_divergence == "append":
            return False
        raise HistoryDivergedError(
            f"thread {past.thread!r} of agent {past.agent!r} was edited at a point after which other threads wrote "
            f"({', '.join(sorted(map(repr, others)))}). Nothing was changed; choose on_divergence='append' to keep "
            "their writes or 'rewind' to go back and lose them"
        )


def _dropping(start: Plan, found: Aligned, back: Return, positions: Sequence[int]) -> Plan:
    """The plan that takes out what the client undid and keeps all else, whatever other threads wrote since."""
    if found.edited:
        log, new, edited = found.log, tuple(positions[place] for place in found.new), found.changed
    else:
        log, new, edited = back.log, tuple(positions[back.log.count :]), 0
    return replace(start, log=log, outcome=found.outcome, new=new, edited=edited, undone=found.changed)
