"""One commit of an agent's memory: its state, which messages it has absorbed, and which model and adapter made it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch

from deltamem_agents.errors import ConfigError, ForeignSnapshotError, StateError
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.names import NAME_LENGTH
from deltamem_agents.snapshots.statements import StatementList
from deltamem_agents.types import ThreadLog

FORMAT = 2
"""Version of the snapshot file format. Version 2 added statements. A reader refuses any later version."""

_ID = re.compile("[0-9a-f]{64}")

NOTE_LENGTH = 4096
VERB_LENGTH = 32
THREADS = 512
"""Maximum number of threads a snapshot points to. The threads that were idle longest are dropped first."""


def utc_now() -> str:
    """The current time, ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Fingerprint:
    """The model, tokenizer and adapter that made a state. With any other ones its numbers mean nothing.

    `model`, `tokenizer`, `adapter`: digests or names, compared as text. `format`: the snapshot format. A snapshot read
    from an older format is converted, so it has the newest format here.
    """

    model: str
    tokenizer: str
    adapter: str
    format: int = FORMAT

    def require(self, expected: Fingerprint) -> None:
        """Raises ForeignSnapshotError that names every part which differs from the expected fingerprint."""
        parts = [
            f"{part} is {getattr(self, part)!r}, expected {getattr(expected, part)!r}"
            for part in ("model", "tokenizer", "adapter", "format")
            if getattr(self, part) != getattr(expected, part)
        ]
        if parts:
            raise ForeignSnapshotError(
                f"this memory was made by another model, tokenizer or adapter: {'; '.join(parts)}. "
                "Open it with the ones that made it, or use another agent id. The memory was not changed"
            )


@dataclass(frozen=True)
class Counters:
    """How many turns, messages and tokens an agent's memory has absorbed since it was empty."""

    turns: int = 0
    messages: int = 0
    tokens: int = 0


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One immutable commit of one agent's memory. It does not name the agent, because forks share it.

    `state`: one sequence (batch 1), float32, finite, without a carry.
    `thread`: the thread this commit advanced, "" for the default thread.
    `absorbed`: which messages of `thread` the state holds.
    `threads`: for every thread the agent had before this commit, the id of the newest snapshot that
    advanced it; longest idle first, at most THREADS. The entry for `thread` itself is older than this
    snapshot, because a snapshot cannot hold its own id: use `Entry.newest`.
    `parent`: id of the snapshot this one continues, None for the first.
    `created`: ISO 8601, UTC. `note`: free text.
    `origin`: the verb that made it ("turn", "absorb", …), one word.
    `statements`: which statements the memory holds, None in a snapshot of version 0.1.
    `base`: None if `state` is stored in full. Otherwise only `base` is stored, and `state` is computed from `base` and
    the statements' writes when it is first used. `fades`: whether each write also decays the earlier state.
    `went`: number of statements that were dropped because of a bound. `folded`: if some of the dropped statements
    wrote, the state after their writes on `base`. It is stored too, and the remaining statements continue it instead of
    `base`.

    Raises StateError for a state that may not be saved, ConfigError for the other fields.
    """

    state: MemoryState
    fingerprint: Fingerprint
    thread: str = ""
    absorbed: ThreadLog = field(default_factory=ThreadLog)
    threads: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    counters: Counters = field(default_factory=Counters)
    created: str = field(default_factory=utc_now)
    note: str = ""
    origin: str = "turn"
    statements: StatementList | None = None
    base: MemoryState | None = None
    fades: bool = False
    folded: MemoryState | None = None
    went: int = 0

    def __post_init__(self) -> None:
        _check_state(self.state if self.base is None else self.base)
        if self.folded is not None:
            _check_state(self.folded)
            if self.base is None:
                raise ConfigError("snapshot has a folded state and no base, expected the base that it was folded from")
        if self.base is not None and self.statements is None:
            raise ConfigError("snapshot has a base and no statements, expected the statements that are applied to it")
        object.__setattr__(self, "threads", dict(self.threads))
        limits = (
            ("thread", len(self.thread), NAME_LENGTH, "characters"),
            ("thread name", max(map(len, self.threads), default=0), NAME_LENGTH, "characters"),
            ("note", len(self.note), NOTE_LENGTH, "characters"),
            ("threads", len(self.threads), THREADS, "entries"),
            ("absorbed.tail", len(self.absorbed.tail), ThreadLog.TAIL_MESSAGES, "entries"),
            ("absorbed.opening", len(self.absorbed.opening), ThreadLog.OPENING_MESSAGES, "entries"),
        )
        for name, found, most, unit in limits:
            if found > most:
                raise ConfigError(f"snapshot {name} has {found} {unit}, expected at most {most}; shorten it")
        if self.absorbed.count < len(self.absorbed.tail):
            raise ConfigError(
                f"snapshot lists {len(self.absorbed.tail)} absorbed messages but counts {self.absorbed.count}, "
                "expected at most as many listed as counted"
            )
        for snapshot_id in (self.parent, *self.threads.values()):
            if snapshot_id is not None and not is_snapshot_id(snapshot_id):
                raise ConfigError(f"{snapshot_id!r} is not a snapshot id, expected the 64 hex digits that save returns")
        check_verb(self.origin)


def inline(snapshot: Snapshot) -> Snapshot:
    """The snapshot with its full state and without its statements, for use where no store keeps the statements."""
    if snapshot.base is None and snapshot.statements is None:
        return snapshot
    whole = MemoryState(snapshot.state.matrices)
    return replace(snapshot, state=whole, statements=None, base=None, fades=False, folded=None, went=0)


def is_snapshot_id(text: str) -> bool:
    """Whether `text` looks like a snapshot id: 64 lower-case hex digits."""
    return _ID.fullmatch(text) is not None


def _check_state(state: MemoryState) -> None:
    if state.batch != 1:
        raise StateError(f"state holds {state.batch} sequences, expected 1; save each agent's state with state[i]")
    if state.matrices.dtype != torch.float32:
        raise StateError(f"state is {state.matrices.dtype}, expected torch.float32; convert it before saving")
    if state.carry is not None:
        raise StateError("state belongs to an unfinished forward pass; save state.settled() after the pass")
    if not bool(torch.isfinite(state.matrices).all()):
        raise StateError("state holds NaN or infinite numbers, expected finite numbers; it was not saved")


def check_verb(verb: str) -> None:
    """Raises ConfigError unless `verb` is one short lower-case ASCII word, dashes allowed."""
    word = verb.replace("-", "")
    if not (0 < len(verb) <= VERB_LENGTH and word.isascii() and word.isalnum() and verb == verb.lower()):
        raise ConfigError(
            f"origin is {verb!r}, expected one lower-case word of at most {VERB_LENGTH} letters, such as 'turn'"
        )
