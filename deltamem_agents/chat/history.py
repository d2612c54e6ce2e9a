"""What of an incoming history an agent has absorbed already, decided from digests alone.

A client may send its whole history every turn, the newest part of it, a summary followed by the
newest part, only the new messages, or an edited past. `align` tells these apart by the runs of
messages that the thread's log A and the incoming messages I have in common. In the tables u, a and
t are messages of role user, assistant (a "reply") and tool, x' is an edited x, and a run is
maximal and contiguous on both sides.

Newest run: the longest run that reaches the end of A. Older run: any other run that is evidence,
that is, it holds a reply and either starts I or has two messages or more; or, with `continues`, it
starts both A and I. A newest run is explained away by a longer older run around it, if one of these
holds: the message before the newest run differs in A and I; the older run starts both A and I; the
older run holds a reply behind the newest run, which the client could not know otherwise.

| A          | I                | `continues` | outcome  | new    | why                                        |
|------------|------------------|-------------|----------|--------|--------------------------------------------|
| (nothing)  | anything         | any         | FRESH    | all    | nothing was absorbed                       |
| u1 a1      | u1 a1 u2         | any         | EXTENDS  | u2     | the newest run is all of A, in its place   |
| u1 a1      | u1 a1            | any         | EXTENDS  | none   | the same history sent again                |
| u1 a1 u2 a2| u2 a2 u3         | any         | WINDOWED | u3     | the newest run, its front trimmed          |
| u1 a1 u2 a2| s u2 a2 u3       | any         | WINDOWED | u3     | s (a summary) is a past told otherwise     |
| u1 a1 u2 a2| u1' a1 u2 a2 u3  | any         | WINDOWED | u3     | so is a message edited in place            |
| u1 a1      | u2               | any         | WINDOWED | all    | nothing in common: only new messages       |
| u1 a1      | u1'              | any         | WINDOWED | all    | an edit that nothing confirms              |
| u1 a1 u2 a2| u1 a1 u2'        | any         | DIVERGED | u2'    | older run, then a departure: edit          |
| u1 a1 u2 a2| u1 a1 u2         | any         | DIVERGED | none   | older run to the end of I: regenerate      |
| u1 a1 u2 a2| u1 a1            | any         | DIVERGED | none   | older run: time travel                     |
| u1 ok u2 ok| u1 ok u2         | any         | DIVERGED | none   | the run "ok" is explained away             |
| u1 a1 u2 a2| u2               | any         | DIVERGED | all    | exactly the newest turn's input: a retry   |
| u1 a1 u2 a2| u1               | yes         | DIVERGED | none   | the thread's start: regenerate the first   |
| u1 a1 u2 a2| u1               | no          | WINDOWED | all    | a greeting said again                      |
| u1 a1 u2 a2 u3 a3| u2         | any         | WINDOWED | all    | the same, and never a client's whole past  |

`new` counts against the log given. Where DIVERGED, the memory has to go back to a snapshot whose
log holds at most `keep` messages of the thread, and `new_at` counts against that one; `settle` does
this walk. Aligning that snapshot's log anew gives the same answer, except for a retry of an input
that stands twice in a row at the end ("ok" a "ok" a), where one commit back is meant and `settle`
stops there.

Replies are the evidence: a policy that does not write role assistant leaves only whole logs and
thread starts to go by.

What digests cannot decide: whether a client that sends only new messages repeats its last message
or retries it (taken as a retry); whether a history of equal turns was trimmed or cut (taken as
trimmed unless it starts at the thread's start and says more that way). A wrong WINDOWED repeats or
keeps a message, a wrong DIVERGED drops turns, so ties go to WINDOWED.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from deltamem_agents.errors import MessageError
from deltamem_agents.types import Message, Role, ThreadLog

_ROLE_LETTERS: Mapping[Role, str] = {"system": "s", "user": "u", "assistant": "a", "tool": "t"}
_REPLY = "a:"

# What one snapshot has absorbed: the log of each thread, by the thread's name.
Absorbed: TypeAlias = Mapping[str, ThreadLog]


class Alignment(StrEnum):
    """How an incoming history relates to what was absorbed; see the module's table."""

    FRESH = "fresh"
    EXTENDS = "extends"
    WINDOWED = "windowed"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Aligned:
    """The relation of incoming messages to one log.

    `new`: incoming[new:] are not absorbed. `keep`: how many of the thread's absorbed messages the
    incoming history leaves standing; less than the log's count only where DIVERGED. `matched`: how
    many messages right before `new` were recognised.
    """

    outcome: Alignment
    new: int
    keep: int
    matched: int

    def new_at(self, count: int) -> int:
        """The same as `new` for a log that holds the first `count` messages of what is kept."""
        missing = self.keep - count
        in_place = self.keep == self.new
        return self.new - missing if in_place or missing <= self.matched else 0


@dataclass(frozen=True)
class Landing:
    """Where a turn starts, and what is new there.

    `depth`: which of the snapshots walked, 0 for the newest, None for the empty memory. `new`:
    incoming[new:] are not absorbed there. `log`: the thread's log there, to be extended by these.
    """

    depth: int | None
    outcome: Alignment
    new: int
    log: ThreadLog


@dataclass(frozen=True)
class _Run:
    """incoming[start:stop] equals tail[at:at + length], and neither side can be longer."""

    at: int
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


def digest(message: Message) -> str:
    """A message's identity: its role's first letter, a colon and 32 hex digits.

    Equal for messages with the same role, content up to surrounding white space, and tool calls
    with the same names and arguments. Ids, and the names of tool results, differ between
    frameworks and are left out. Raises MessageError for arguments which are not JSON.
    """
    calls = [[call.name, _canonical(call.arguments)] for call in message.tool_calls]
    try:
        text = json.dumps([message.role, message.content.strip(), calls], sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise MessageError(
            f"tool call arguments of a message of role {message.role!r} are not JSON ({error}); "
            "pass only text, numbers, booleans, null, lists and objects"
        ) from None
    return f"{_ROLE_LETTERS[message.role]}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _canonical(value: object) -> object:
    """JSON data in one spelling: text keys, lists, and 1.0 as 1, which some serialisers exchange."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def extend(log: ThreadLog, digests: Sequence[str]) -> ThreadLog:
    """The log after absorbing more messages. Its size stays bounded."""
    tail = (*log.tail, *digests)[-ThreadLog.TAIL_MESSAGES :]
    return ThreadLog(log.count + len(digests), tail)


def align(log: ThreadLog, incoming: Sequence[str], *, continues: bool) -> Aligned:
    """Relate incoming digests to the log of one thread, by the module's table.

    `incoming`: digests of the messages that may be written, in order. `continues`: the caller
    names the thread and sends that thread's history, so that a thread's first message standing
    first means this thread's start; False where no thread was named, so that it may as well be
    said again.
    """
    if log.count == 0:
        return Aligned(Alignment.FRESH, 0, 0, 0)
    runs = _common_runs(log.tail, incoming)
    newest = _newest_run(log, runs)
    older = [run for run in runs if _ends_early(log, run) and _is_evidence(log, incoming, run, continues)]
    if newest and not any(_explains_away(log, incoming, run, newest) for run in older):
        outcome = Alignment.EXTENDS if _from_start(log, newest) else Alignment.WINDOWED
        return Aligned(outcome, newest.stop, log.count, newest.length)
    if older:
        best = max(older, key=lambda run: (run.length, _from_start(log, run), run.at, run.start))
        keep = _beyond_tail(log) + best.at + best.length
        return Aligned(Alignment.DIVERGED, best.stop, keep, best.length)
    asked = _newest_input(log.tail)
    if asked and tuple(incoming) == asked:
        return Aligned(Alignment.DIVERGED, 0, log.count - len(asked) - 1, 0)
    return Aligned(Alignment.WINDOWED, 0, log.count, 0)


def settle(absorbed: Iterable[Absorbed], thread: str, incoming: Sequence[str], *, continues: bool) -> Landing:
    """Find the snapshot on which a turn of `thread` starts, and which incoming messages are new to it.

    `absorbed`: what each of the agent's snapshots has absorbed, newest first, read only as far as
    needed. Going back past the oldest ends in the empty memory. A thread that is unknown at the
    place found may be a copy of another one there, whose messages then count as absorbed.
    """
    walk = enumerate(absorbed)
    _, newest = next(walk, (0, {}))
    log = newest.get(thread, ThreadLog())
    found = align(log, incoming, continues=continues)
    if found.outcome is Alignment.DIVERGED:
        return _go_back(walk, thread, log, found, incoming)
    if found.outcome is Alignment.FRESH:
        return _land(0, newest, found, incoming, ())
    if not found.matched and not log.complete and _has_reply(incoming):
        older = _search_back(walk, thread, incoming, continues)
        if older is not None:
            return older
    return Landing(0, found.outcome, found.new, log)


def stay(log: ThreadLog, incoming: Sequence[str], *, continues: bool) -> Landing:
    """Where a turn starts that must not go back: on the newest snapshot, whose log of the thread is `log`.

    Messages that incoming departs from stay in the memory; they leave the log, so that later turns
    align with the history as it is now. What the memory has of incoming is not new.
    """
    found = align(log, incoming, continues=continues)
    if found.outcome is not Alignment.DIVERGED:
        return Landing(0, found.outcome, found.new, log)
    retried = 0 if found.matched else len(incoming)
    keep = found.keep + retried
    standing = ThreadLog(keep, log.tail[: len(log.tail) - (log.count - keep)])
    return Landing(0, found.outcome, found.new + retried, standing)


def shared_prefix(log: ThreadLog, incoming: Sequence[str]) -> int:
    """How many leading messages of a never seen thread another thread with this log has absorbed.

    A copied or forked thread brings the history of its source, which must not be written twice. It
    is told by replies at the same place of both histories, or by the newest of the source. Without
    two messages in a row, one of them a reply, it is taken for a coincidence, and the answer is 0.
    """
    told = [
        run
        for run in _common_runs(log.tail, incoming)
        if (_in_place(log, run) or not _ends_early(log, run)) and _has_reply(incoming[run.start : run.stop])
    ]
    return max((run.stop for run in told), default=0) if any(run.length > 1 for run in told) else 0


def known_ahead(log: ThreadLog, leaving: Sequence[str]) -> int:
    """How many leading messages of those that leave a client's window the log holds.

    They were absorbed if they stand in a row in the log, up to the end of either; where that is not the
    log's end, a reply has to be among them, as people say "hello" more than once.
    """
    ahead = [run for run in _common_runs(log.tail, leaving) if run.start == 0]
    told = [run for run in ahead if not _ends_early(log, run) or (run.stop == len(leaving) and _has_reply(leaving))]
    return max((run.stop for run in told), default=0)


def _go_back(
    walk: Iterator[tuple[int, Absorbed]], thread: str, log: ThreadLog, found: Aligned, incoming: Sequence[str]
) -> Landing:
    """The newest snapshot that holds nothing of the thread beyond what stays of `log`."""
    for depth, absorbed in walk:
        older = absorbed.get(thread, ThreadLog())
        if older.count == 0 and log.complete:
            return _land(depth, absorbed, found, incoming, log.tail[: found.keep])
        if older.count == 0:
            return _land(depth, absorbed, Aligned(found.outcome, 0, 0, 0), incoming, ())
        if older.count <= found.keep:
            return Landing(depth, found.outcome, found.new_at(older.count), older)
    return Landing(None, found.outcome, found.new_at(0), ThreadLog())


def _land(depth: int, absorbed: Absorbed, found: Aligned, incoming: Sequence[str], standing: Sequence[str]) -> Landing:
    """Start where the thread is unknown, behind what other threads have absorbed of its history.

    `standing`: the `found.keep` messages that incoming[found.new:] continue. They are asked for
    because a client which trims its history shows too little of it to tell a copy.
    """
    history = [*standing, *incoming[found.new :]]
    shared = max((shared_prefix(log, history) for log in absorbed.values()), default=0)
    return Landing(depth, found.outcome, found.new_at(shared), extend(ThreadLog(), history[:shared]))


def _search_back(
    walk: Iterator[tuple[int, Absorbed]], thread: str, incoming: Sequence[str], continues: bool
) -> Landing | None:
    """The snapshot that incoming confirms from the thread's start on; less is no ground to go back so far."""
    replies = frozenset(filter(_is_reply, incoming))
    for depth, absorbed in walk:
        log = absorbed.get(thread, ThreadLog())
        if replies.isdisjoint(log.tail):
            continue
        found = align(log, incoming, continues=continues)
        if found.outcome is Alignment.EXTENDS:
            return Landing(depth, Alignment.DIVERGED, found.new, log)
        if found.outcome is Alignment.DIVERGED and found.matched > 1 and found.keep == found.new:
            return _go_back(walk, thread, log, found, incoming)
    return None


def _common_runs(tail: Sequence[str], incoming: Sequence[str]) -> list[_Run]:
    """Every maximal run that both have in common, in time proportional to the pairs of equal messages."""
    places: dict[str, list[int]] = {}
    for at, known in enumerate(tail):
        places.setdefault(known, []).append(at)
    runs: list[_Run] = []
    open_runs: dict[int, int] = {}
    for position, seen in enumerate(incoming):
        continued = {at: open_runs.pop(at - 1, 0) + 1 for at in places.get(seen, ())}
        runs += [_Run(at - length + 1, position - length, length) for at, length in open_runs.items()]
        open_runs = continued
    runs += [_Run(at - length + 1, len(incoming) - length, length) for at, length in open_runs.items()]
    return runs


def _newest_run(log: ThreadLog, runs: Sequence[_Run]) -> _Run | None:
    """The longest run up to the log's end. Of equals the one at the front of incoming, else the last."""
    ending = [run for run in runs if not _ends_early(log, run)]
    return max(ending, key=lambda run: (run.length, run.start == 0, run.start), default=None)


def _explains_away(log: ThreadLog, incoming: Sequence[str], older: _Run, newest: _Run) -> bool:
    around = older.start <= newest.start and newest.stop <= older.stop and older.length > newest.length
    return around and (
        (newest.start > 0 and newest.at > 0)
        or _from_start(log, older)
        or _has_reply(incoming[newest.stop : older.stop])
    )


def _is_evidence(log: ThreadLog, incoming: Sequence[str], run: _Run, continues: bool) -> bool:
    if _has_reply(incoming[run.start : run.stop]):
        return run.start == 0 or run.length > 1
    return continues and _from_start(log, run)


def _from_start(log: ThreadLog, run: _Run) -> bool:
    """Whether the run begins where the log does, at the same place of both histories."""
    return run.at == 0 and _in_place(log, run)


def _in_place(log: ThreadLog, run: _Run) -> bool:
    return run.start == run.at + _beyond_tail(log)


def _ends_early(log: ThreadLog, run: _Run) -> bool:
    return run.at + run.length < len(log.tail)


def _beyond_tail(log: ThreadLog) -> int:
    return log.count - len(log.tail)


def _newest_input(tail: Sequence[str]) -> tuple[str, ...]:
    """The messages that the newest reply answered; empty when no reply stands at the end."""
    if not tail or not _is_reply(tail[-1]):
        return ()
    first = len(tail) - 1
    while first > 0 and not _is_reply(tail[first - 1]):
        first -= 1
    return tuple(tail[first:-1])


def _is_reply(digest: str) -> bool:
    return digest.startswith(_REPLY)


def _has_reply(digests: Iterable[str]) -> bool:
    return any(map(_is_reply, digests))
