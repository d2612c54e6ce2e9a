"""One thread's snapshots in an agent's history, and the snapshot to return to after the client changed its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.chat.history import Aligned, as_shown, extend, shared_prefix, stands_in
from deltamem_agents.errors import AgentNotFoundError
from deltamem_agents.snapshots import Entry, Store
from deltamem_agents.types import ThreadLog

REBUILD = "rebuild"
"""Origin of a snapshot in which a whole thread was written again."""

COPIES_CHECKED = 32
"""How many other threads are compared when a new thread starts with a history that may be a copy of theirs."""


@dataclass(frozen=True)
class Return:
    """The snapshot that a turn returns to. `base`: None for the empty memory. `log`: the thread's log in that snapshot.

    `undone`: number of messages removed from the memory. `possible`: False if the client did leave the recorded
    history, but every older snapshot also contains a message that the client changed.
    """

    base: Entry | None
    log: ThreadLog
    undone: int
    possible: bool = True


@dataclass(frozen=True)
class ThreadPast:
    """The history of one thread in an agent's memory, as of the snapshot `head`."""

    store: Store
    agent: str
    head: Entry
    thread: str

    def log(self) -> ThreadLog:
        """The log of messages that the thread has absorbed; empty for a new thread."""
        entry = self._load(self.head, self.head.newest(self.thread))
        return ThreadLog() if entry is None else entry.snapshot.absorbed

    def copied(self, at: Entry, incoming: Sequence[str]) -> ThreadLog:
        """The part of a new thread's history that another thread has already absorbed, as of `at`."""
        recent = [*at.threads()][: -COPIES_CHECKED - 1 : -1]
        logs = [entry.snapshot.absorbed for name in recent if (entry := self._load(at, at.newest(name))) is not None]
        shared = max((shared_prefix(log, incoming) for log in logs), default=0)
        return extend(ThreadLog(), incoming[:shared])

    def back_to(self, found: Aligned, incoming: Sequence[str]) -> Return | None:
        """The newest snapshot that contains nothing of the thread from the first changed message on; None if none does.

        If the client left the recorded history, the snapshot must contain part of the thread. Only then has the client
        shown a reply that ended a turn, and not just a prefix that it always sends. For a rebuilt thread this is not
        required.
        """
        entry, stood = self._load(self.head, self.head.newest(self.thread)), False
        for _ in range(ThreadLog.TAIL_MESSAGES):
            if entry is None:
                return self._rebuilt(found, self.head)
            log, older = entry.snapshot.absorbed, entry.snapshot.threads.get(self.thread)
            if 0 < log.count <= found.stands:
                if stands_in(log, incoming):
                    return self._return(entry, as_shown(log, incoming), found)
                stood = True
            if older is None:
                back = self._before(entry, found, incoming)
                return Return(None, ThreadLog(), 0, possible=False) if back is None and stood else back
            entry = self._load(entry, older)
        return None

    def _before(self, first: Entry, found: Aligned, incoming: Sequence[str]) -> Return | None:
        """The return to a snapshot from before the thread existed. It may hold another thread that this one copies."""
        if first.snapshot.parent is None:
            return self._rebuilt(found, first)
        entry = self._load(first, first.snapshot.parent)
        if entry is None:
            return self._rebuilt(found, self.head)
        log = self.copied(entry, incoming[: found.stands])
        return self._return(entry, log, found) if log.count or _may_rebuild(found, first) else None

    def _rebuilt(self, found: Aligned, at: Entry) -> Return | None:
        """The return to the empty memory, if the client sent everything that the memory at this snapshot absorbed."""
        log = self.log()
        whole = at.snapshot.counters.messages == at.snapshot.absorbed.count and log.count == len(log.tail)
        return self._return(None, ThreadLog(), found) if whole and _may_rebuild(found, at) else None

    def _return(self, base: Entry | None, log: ThreadLog, found: Aligned) -> Return:
        before = 0 if base is None else base.snapshot.counters.messages
        others = self.head.snapshot.counters.messages - before - (self.log().count - log.count)
        return Return(base, log, found.changed + max(0, others))

    def writers_since(self, base: Entry | None) -> set[str]:
        """The other threads that wrote after `base`."""
        before = {} if base is None else base.threads()
        return {name for name, newest in self.head.threads().items() if before.get(name) != newest} - {self.thread}

    def _load(self, at: Entry, snapshot: str | None) -> Entry | None:
        """A snapshot; None if the id is None or the snapshot was pruned."""
        if snapshot is None or snapshot == at.id:
            return None if snapshot is None else at
        try:
            return self.store.load(self.agent, snapshot)
        except AgentNotFoundError:
            return None


def _may_rebuild(found: Aligned, first: Entry) -> bool:
    """Whether the client is known to send its whole history, because it edits messages in place, now or earlier."""
    return found.edited or first.snapshot.origin == REBUILD
