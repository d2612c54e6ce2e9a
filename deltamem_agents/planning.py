"""Where a turn starts: which snapshot it continues, and which of its messages the memory has not absorbed.

Reads the store, decides, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from deltamem_agents.chat.history import Alignment, Landing, digest, extend, settle, shared_prefix
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

    `on_divergence`: what to do when a thread's history was edited at a point after which other threads
    wrote: "append" keeps everything and writes what is new, "rewind" goes back and loses what the other
    threads wrote since, "raise" refuses. Where no other thread wrote, going back is exact and always done.
    """

    roles: tuple[Role, ...] = ("user", "assistant", "tool")
    on_divergence: OnDivergence = "append"

    def __post_init__(self) -> None:
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
    chain = _Chain(store, agent, entry, name)
    landing = settle(chain.logs(), incoming, continues=thread is not None)
    if not chain.entries:
        shared = _copied_messages(store, agent, entry, incoming)
        log = extend(ThreadLog(), incoming[:shared])
        outcome = Alignment.EXTENDS if shared else Alignment.FRESH
        return Plan(head, entry, entry.snapshot.state, log, outcome, positions[shared:], digests)
    base, log = _landing_place(chain, landing, policy.on_divergence)
    state = empty if base is None else base.snapshot.state
    return Plan(head, base, state, log, landing.outcome, positions[landing.new :], digests)


@dataclass
class _Chain:
    """The snapshots that advanced one thread, newest first, loaded as far as they are asked for."""

    store: Store
    agent: str
    head: Entry
    thread: str
    entries: list[Entry] = field(default_factory=list)

    def logs(self) -> Iterator[ThreadLog]:
        newest = self.head.newest(self.thread)
        while newest is not None:
            try:
                entry = self.head if newest == self.head.id else self.store.load(self.agent, newest)
            except AgentNotFound:
                return
            self.entries.append(entry)
            yield entry.snapshot.absorbed
            newest = entry.snapshot.threads.get(self.thread)


def _landing_place(chain: _Chain, landing: Landing, on_divergence: OnDivergence) -> tuple[Entry | None, ThreadLog]:
    """The snapshot to continue, and the thread's log there."""
    if landing.depth == 0:
        return chain.head, chain.entries[0].snapshot.absorbed
    log = ThreadLog() if landing.depth is None else chain.entries[landing.depth].snapshot.absorbed
    # The first commit of the thread that the new history contradicts; what came before it stands.
    undone = chain.entries[-1 if landing.depth is None else landing.depth - 1]
    others = _written_since(chain, undone)
    if not others or on_divergence == "rewind":
        return _parent(chain, undone), log
    if on_divergence == "append":
        return chain.head, log
    raise HistoryDiverged(
        f"thread {chain.thread!r} of agent {chain.agent!r} was edited at a point after which other threads wrote "
        f"({', '.join(sorted(map(repr, others)))}). Nothing was changed; choose on_divergence='append' to keep their "
        "writes or 'rewind' to go back and lose them"
    )


def _written_since(chain: _Chain, undone: Entry) -> set[str]:
    """Threads other than the chain's that wrote after `undone`."""
    others: set[str] = set()
    for entry in chain.store.log(chain.agent, chain.head.id):
        if entry.id == undone.id:
            break
        if entry.snapshot.thread != chain.thread:
            others.add(entry.snapshot.thread)
    return others


def _parent(chain: _Chain, entry: Entry) -> Entry | None:
    parent = entry.snapshot.parent
    return None if parent is None else chain.store.load(chain.agent, parent)


def _copied_messages(store: Store, agent: str, head: Entry, incoming: Sequence[str]) -> int:
    """How many leading messages of a thread never seen were absorbed in another thread."""
    longest = 0
    for snapshot in list(reversed(head.threads().values()))[:COPIES_CHECKED]:
        try:
            log = head.snapshot.absorbed if snapshot == head.id else store.load(agent, snapshot).snapshot.absorbed
        except AgentNotFound:
            continue
        longest = max(longest, shared_prefix(log, incoming))
    return longest
