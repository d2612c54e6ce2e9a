"""The values that a store takes and returns, apart from snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltamem_agents.errors import StateError
from deltamem_agents.snapshots.snapshot import THREADS, Counters, Snapshot, is_snapshot_id, utc_now
from deltamem_agents.snapshots.statements import Statement


@dataclass(frozen=True)
class Move:
    """One change of an agent's head. An agent's moves, oldest first, are its journal.

    `verb`: the operation that moved it (a snapshot's origin, or "rewind", "fork", "import"). `snapshot`: the new head's
    id. `at`: time, ISO 8601 UTC. The last move's snapshot is the head.
    """

    verb: str
    snapshot: str
    at: str


@dataclass(frozen=True, eq=False)
class Entry:
    """A stored snapshot together with its id."""

    id: str
    snapshot: Snapshot

    def newest(self, thread: str) -> str | None:
        """Id of the newest snapshot, up to this one, that advanced `thread`; None for an unknown thread."""
        return self.id if thread == self.snapshot.thread else self.snapshot.threads.get(thread)

    def threads(self) -> Mapping[str, str]:
        """The `threads` field for a snapshot whose parent is this one: longest idle first, at most THREADS."""
        threads = dict(self.snapshot.threads)
        threads.pop(self.snapshot.thread, None)
        threads[self.snapshot.thread] = self.id
        return dict(list(threads.items())[-THREADS:])


@dataclass(frozen=True)
class StateDiff:
    """How the state changed from snapshot `a` to snapshot `b`.

    `distance`: per layer, the Frobenius norm of b minus a over the layer's heads. `cosine`: per layer, the cosine
    between a and b, None if either is zero. `counters`: b's counters minus a's.
    """

    a: str
    b: str
    distance: tuple[float, ...]
    cosine: tuple[float | None, ...]
    counters: Counters


def state_diff(a: Entry, b: Entry) -> StateDiff:
    """How the state changed from `a` to `b`. Raises StateError when their geometries differ."""
    first, second = a.snapshot, b.snapshot
    if first.state.geometry != second.state.geometry:
        raise StateError(
            f"cannot compare states of (layers, heads, r) {first.state.geometry} and {second.state.geometry}; "
            "choose two snapshots made with the same adapter"
        )
    old, new = (snapshot.state.matrices[0].double().flatten(1) for snapshot in (first, second))
    lengths = (old.norm(dim=1) * new.norm(dim=1)).tolist()
    products = (old * new).sum(dim=1).tolist()
    return StateDiff(
        a=a.id,
        b=b.id,
        distance=tuple((new - old).norm(dim=1).tolist()),
        cosine=tuple(product / length if length else None for product, length in zip(products, lengths, strict=True)),
        counters=Counters(
            second.counters.turns - first.counters.turns,
            second.counters.messages - first.counters.messages,
            second.counters.tokens - first.counters.tokens,
        ),
    )


@dataclass(frozen=True)
class Removed:
    """The bytes that a deletion removed. `removed`: ids whose bytes are deleted. `kept`: ids whose bytes stay because
    another agent holds them. `nbytes`: number of bytes deleted."""

    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True)
class Receipt:
    """Receipt of a `forget` or `prune`, for the caller's records.

    `removed`: ids of the snapshots whose bytes are deleted. `nbytes`: number of bytes deleted. `kept`: ids that this
    agent no longer holds, but whose bytes stay because a fork holds them. `tags`: names of the deleted tags.
    `statements`: addresses of the statements, and of pages of their list, whose bytes are deleted. `at`: ISO 8601 UTC.
    """

    agent: str
    at: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    tags: tuple[str, ...]
    nbytes: int
    statements: tuple[str, ...] = ()

    @classmethod
    def of(cls, agent: str, removed: Removed, tags: tuple[str, ...] = ()) -> Receipt:
        """The receipt of a removal that has just been made."""
        snapshots = tuple(each for each in removed.removed if is_snapshot_id(each))
        others = tuple(each for each in removed.removed if not is_snapshot_id(each))
        kept = tuple(each for each in removed.kept if is_snapshot_id(each))
        return cls(agent, utc_now(), snapshots, kept, tags, removed.nbytes, others)


@dataclass(frozen=True)
class StatementReceipt:
    """Receipt of a forgotten statement.

    `removed`: ids of the statements, including earlier versions, whose bytes are deleted. `nbytes`: number of bytes
    deleted. `kept`: ids whose bytes stay because the agents in `forks` hold them. `alike`: other statements that say
    the same words; they were not changed. `at`: ISO 8601 UTC.
    """

    agent: str
    at: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    forks: tuple[str, ...]
    alike: tuple[Statement, ...]
    nbytes: int
