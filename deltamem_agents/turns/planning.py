"""Plans a turn: which snapshot it continues, and which of its messages the memory has not absorbed yet.

It reads the store and writes nothing.
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
    """Limits on what is written to the memory.

    `roles`: roles whose messages are written.

    `message_tokens`: maximum number of tokens written per message. A longer message, such as a document that a tool
    returned, is written with its first and last tokens, half of the maximum each.

    `keep_text`: whether statements keep their text. Without it, no statement can be shown in the prompt or moved to
    another model.

    `statements`: maximum number of statements in an agent's memory; None for no bound. If there are more, the
    statements that wrote nothing are dropped first, then those of the assistant, then the others; within each group
    the oldest first. Those that are new in the commit are dropped last. A sixteenth of the bound is dropped in
    addition, so that not every commit has to drop some. A dropped statement can no longer be found, shown or corrected.
    Its writes remain only in the state of all statements (`Recall("all")`).

    `on_divergence`: only for adapters whose gates never close, because single messages cannot be removed from their
    memory. It says what to do if a thread's history was edited before a point where other threads wrote. "append" keeps
    everything and writes the new messages, "rewind" goes back and loses the other threads' later writes, "raise" raises
    HistoryDivergedError. If no other thread wrote, going back is exact and always done.
    """

    roles: tuple[Role, ...] = ("user", "assistant", "tool")
    on_divergence: OnDivergence = "append"
    message_tokens: int = 1024
    keep_text: bool = True
    statements: int | None = 10_000

    def __post_init__(self) -> None:
        if self.message_tokens < 2:
            raise ConfigError(f"message_tokens is {self.message_tokens}, expected 2 or more (a first and a last token)")
        if self.statements is not None and self.statements < 1:
            raise ConfigError(f"statements is {self.statements}, expected 1 or more, or None for no bound")
        if "system" in self.roles:
            raise ConfigError("role system cannot be written, because every prompt contains it; remove it from roles")


@dataclass(frozen=True)
class Kept:
    """The memory fields of the snapshot that a turn commits; see `Snapshot`."""

    state: MemoryState
    listed: StatementList
    base: MemoryState | None = None
    fades: bool = False
    folded: MemoryState | None = None
    went: int = 0

    @classmethod
    def of(cls, memory: AgentMemory) -> Kept:
        """The fields of a memory whose state is computed from its statements."""
        return cls(memory.scanned, memory.listed, memory.base, memory.fades, memory.folded, memory.went)


@dataclass(frozen=True)
class Plan:
    """The plan of one turn. `new`: positions of the messages to write, ascending.

    `head`: the agent's head when the plan was made; the commit must replace it. `incarnation`: see `Store.incarnation`.
    `base`: the snapshot that the turn continues, None for an empty memory. `memory`: the memory of `base`. `log`: what
    the thread has absorbed and keeps; the turn extends it. `counted`: number of messages in the thread's log before.
    `digests`: digests of the messages that may be written, by position. `edited`: how many of `new`, from the first,
    replace messages that are already in the log. `undone`: number of messages removed from the memory.
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
        """The place of each of `new` in the thread's log, by position."""
        order = {position: place for place, position in enumerate(self.digests)}
        edited = {position: order[position] for position in self.new[: self.edited]}
        rest = self.new[self.edited :]
        return edited | {position: self.log.count + place for place, position in enumerate(rest)}

    def undone_statements(self, thread: str) -> frozenset[str]:
        """Ids of the thread's statements that this turn replaces or that the client undid."""
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
        """The snapshot to save after the turn; None if the newest snapshot already holds exactly these messages.

        `kept`: the memory after the turn. `tokens`: number of tokens written.
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
    """Plans the turns of one engine. `empty`: the memory that a new agent starts with.

    `drops`: whether single statements can be removed from a memory. Then no turn has to go back to an older snapshot.
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
        """Compares `messages` with what the agent's thread has absorbed, and plans what to write and undo.

        It loads older snapshots only to go back, and at most as many as the thread's log has messages.
        Raises ForeignSnapshotError if the memory was made by another model or adapter, HistoryDivergedError if the
        policy says so, and the store's errors.
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
                    return _plan_to_drop(start, found, back, positions)
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
        """Plans to write messages that leave a client's window. They are appended; nothing is undone.

        Messages that the thread has already absorbed are not written again. Raises ForeignSnapshotError and the store's
        errors.
        """
        start = self._start(agent, leaving)
        if start.base is None:
            return start
        past = ThreadPast(self.store, agent, start.base, DEFAULT_THREAD if thread is None else thread)
        log = past.log()
        known = known_ahead(log, tuple(start.digests.values()))
        return replace(start, log=log, outcome=Alignment.EXTENDS, new=tuple(start.digests)[known:])

    def without_agent(self, messages: Sequence[Message]) -> Plan:
        """The plan of a turn without an agent, whose memory ends with the turn."""
        digests = self._digests(messages)
        return Plan(None, None, None, self.empty, ThreadLog(), Alignment.FRESH, tuple(digests), digests)

    def _start(self, agent: str, messages: Sequence[Message]) -> Plan:
        """A plan that continues the agent's head and treats every message as new."""
        plan = replace(
            self.without_agent(messages), incarnation=self.store.incarnation(agent), head=self.store.head(agent)
        )
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
        """Whether the policy lets a thread go back. Raises HistoryDivergedError if the policy is "raise"."""
        others = past.writers_since(back.base)
        if not others or self.policy.on_divergence == "rewind":
            return True
        if self.policy.on_divergence == "append":
            return False
        raise HistoryDivergedError(
            f"thread {past.thread!r} of agent {past.agent!r} was edited at a point after which other threads wrote "
            f"({', '.join(sorted(map(repr, others)))}). Nothing was changed; choose on_divergence='append' to keep "
            "their writes, or 'rewind' to go back and lose their writes"
        )


def _plan_to_drop(start: Plan, found: Aligned, back: Return, positions: Sequence[int]) -> Plan:
    """The plan that removes only what the client undid, and keeps everything else, including other threads' writes."""
    if found.edited:
        log, new, edited = found.log, tuple(positions[place] for place in found.new), found.changed
    else:
        log, new, edited = back.log, tuple(positions[back.log.count :]), 0
    return replace(start, log=log, outcome=found.outcome, new=new, edited=edited, undone=found.changed)
