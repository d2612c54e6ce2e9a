"""Where a turn starts: which snapshot it continues, and which of its messages the memory has not absorbed.

Reads the store, decides, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from deltamem_agents.chat.history import Alignment, Landing, digest, extend, known_ahead, settle, stay
from deltamem_agents.errors import AgentNotFound, ConfigError, HistoryDiverged
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Counters, Entry, Fingerprint, Snapshot, Store
from deltamem_agents.types import Message, Role, ThreadLog

OnDivergence: TypeAlias = Literal["append", "rewind", "raise"]

DEFAULT_THREAD = ""
COPIES_CHECKED = 32
"""How many other threads are looked at when an unknown one brings a history that may be a copy."""


@dataclass(frozen=True)
class WritePolicy:
    """What is remembered. `roles`: whose messages are written.

    `message_tokens`: how many tokens of one message are written at most. Of a longer one, such as a whole document that
    a tool returned, it is the first and the last half of so many, wherever the message stands.

    `on_divergence`: what to do when a thread's history was edited at a point after which other threads
    wrote: "append" keeps everything and writes what is new, "rewind" goes back and loses what the other
    threads wrote since, "raise" refuses. Where no other thread wrote, going back is exact and always done.
    """

    roles: tuple[Role, ...] = ("user", "assistant", "tool")
    on_divergence: OnDivergence = "append"
    message_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.message_tokens < 2:
            raise ConfigError(f"message_tokens is {self.message_tokens}, expected 2 or more: a head and a tail")
        if "system" in self.roles:
            raise ConfigError("role system cannot be written: instructions are given anew in every prompt")


@dataclass(frozen=True)
class Plan:
    """The start of one turn. `new` are positions in its messages, ascending.

    `head`: the agent's head when the plan was made, which the commit must replace. `base`: the snapshot
    that is continued, None for an empty memory. `log`: what the thread has absorbed as of `base`.
    """

    head: str | None
    base: Entry | None
    state: MemoryState
    log: ThreadLog
    outcome: Alignment
    new: tuple[int, ...]
    digests: Mapping[int, str] = field(default_factory=dict)

    def commit(
        self, state: MemoryState, fingerprint: Fingerprint, thread: str, reply: Message | None, tokens: int, origin: str
    ) -> Snapshot:
        """The snapshot to save once the turn is over. `tokens`: how many were written."""
        written = [self.digests[position] for position in self.new]
        if reply is not None:
            written.append(digest(reply))
        before = Counters() if self.base is None else self.base.snapshot.counters
        return Snapshot(
            state=state.settled().detach().to("cpu"),
            fingerprint=fingerprint,
            thread=thread,
            absorbed=extend(self.log, written),
            threads={} if self.base is None else self.base.threads(),
            parent=None if self.base is None else self.base.id,
            counters=Counters(before.turns + 1, before.messages + len(written), before.tokens + tokens),
            origin=origin,
        )


def plan_turn(
    store: Store,
    agent: str,
    thread: str | None,
    messages: Sequence[Message],
    *,
    empty: MemoryState,
    fingerprint: Fingerprint,
    policy: WritePolicy,
) -> Plan:
    """Align `messages` with what the agent absorbed.

    Raises ForeignSnapshot when the agent's memory was made by something else, HistoryDiverged when the
    policy refuses, and whatever the store raises.
    """
    name = DEFAULT_THREAD if thread is None else thread
    digests = {i: digest(message) for i, message in enumerate(messages) if message.role in policy.roles}
    positions, incoming = tuple(digests), tuple(digests.values())
    head = store.head(agent)
    if head is None:
        return Plan(None, None, empty, ThreadLog(), Alignment.FRESH, positions, digests)
    entry = store.load(agent, head)
    entry.snapshot.fingerprint.require(fingerprint)
    past = _Past(store, agent, entry)
    landing = settle(past.absorbed(), name, incoming, continues=thread is not None)
    if _must_stay(past, name, landing, policy.on_divergence):
        log = _Absorbed(store, agent, entry).get(name, ThreadLog())
        landing = replace(stay(log, incoming, continues=thread is not None), outcome=landing.outcome)
    base = None if landing.depth is None else past.entries[landing.depth]
    state = empty if base is None else base.snapshot.state
    return Plan(head, base, state, landing.log, landing.outcome, positions[landing.new :], digests)


def plan_absorption(
    store: Store,
    agent: str,
    thread: str | None,
    leaving: Sequence[Message],
    *,
    empty: MemoryState,
    fingerprint: Fingerprint,
    policy: WritePolicy,
) -> Plan:
    """Write messages that leave a client's window behind everything the agent has absorbed; nothing is gone back to.

    What the thread absorbed of them while it saw them is not new. Raises ForeignSnapshot, and whatever the
    store raises.
    """
    name = DEFAULT_THREAD if thread is None else thread
    digests = {i: digest(message) for i, message in enumerate(leaving) if message.role in policy.roles}
    head = store.head(agent)
    if head is None:
        return Plan(None, None, empty, ThreadLog(), Alignment.FRESH, tuple(digests), digests)
    entry = store.load(agent, head)
    entry.snapshot.fingerprint.require(fingerprint)
    log = _Absorbed(store, agent, entry).get(name, ThreadLog())
    known = known_ahead(log, tuple(digests.values()))
    return Plan(head, entry, entry.snapshot.state, log, Alignment.EXTENDS, tuple(digests)[known:], digests)


@dataclass
class _Past:
    """An agent's snapshots, newest first, loaded as far as they are asked for."""

    store: Store
    agent: str
    head: Entry
    entries: list[Entry] = field(default_factory=list)

    def absorbed(self) -> Iterator[Mapping[str, ThreadLog]]:
        for entry in self.store.log(self.agent, self.head.id):
            self.entries.append(entry)
            yield _Absorbed(self.store, self.agent, entry)


@dataclass(frozen=True)
class _Absorbed(Mapping[str, ThreadLog]):
    """The log of each thread as of one snapshot; those of other threads are loaded when looked at."""

    store: Store
    agent: str
    entry: Entry

    def __getitem__(self, thread: str) -> ThreadLog:
        newest = self.entry.newest(thread)
        if newest is None:
            raise KeyError(thread)
        if newest == self.entry.id:
            return self.entry.snapshot.absorbed
        try:
            return self.store.load(self.agent, newest).snapshot.absorbed
        except AgentNotFound:  # pruned
            raise KeyError(thread) from None

    def __iter__(self) -> Iterator[str]:
        """The threads used last, as many as are worth comparing with one never seen."""
        return iter([*self.entry.threads()][: -COPIES_CHECKED - 1 : -1])

    def __len__(self) -> int:
        return min(len(self.entry.threads()), COPIES_CHECKED)

    def values(self) -> ValuesView[ThreadLog]:
        return {thread: log for thread in self if (log := self.get(thread)) is not None}.values()


def _must_stay(past: _Past, thread: str, landing: Landing, on_divergence: OnDivergence) -> bool:
    """Whether going back would lose what other threads wrote, and the policy is to keep that."""
    undone = past.entries if landing.depth is None else past.entries[: landing.depth]
    others = {entry.snapshot.thread for entry in undone} - {thread}
    if not others or on_divergence == "rewind":
        return False
    if on_divergence == "append":
        return True
    raise HistoryDiverged(
        f"thread {thread!r} of agent {past.agent!r} was edited at a point after which other threads wrote "
        f"({', '.join(sorted(map(repr, others)))}). Nothing was changed; choose on_divergence='append' to keep their "
        "writes or 'rewind' to go back and lose them"
    )
