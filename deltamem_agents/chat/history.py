"""Compares a client's messages with what the agent has absorbed, using only message digests.

A client may send its whole history every turn, the newest part of it, a fixed prefix, a summary, only the new
messages, or an edited history. Its messages are compared with the thread's log. Messages of users and tools are strong
evidence. A reply is weak evidence, because apps reword replies before they store them.

An *exchange* is a reply together with the message right before it. An exchange of the client is known if

1. the log contains it word for word; a reply at the very beginning of the client's messages is known by itself;
2. or the log contains the message with another reply, and the exchange is at the front or follows a known one:
   then it is the same exchange, and the app reworded the reply;
3. or it is the newest exchange of the log, recognised by a reply that occurs only there, or, in a named thread, by
   its position: then the app reworded the message.

Messages up to the last known exchange are not new: they were absorbed, or they are a summary or a reworded history.
Messages after it are new, with two exceptions. If they are exactly the input of the newest turn and its reply is
missing, the client is retrying that turn. Messages at the end of the log that have no reply are known.

A client that names no thread never makes a memory go back. A client that names its thread does so in two cases, which
`align` finds, and only if there is a snapshot to go back to:

- a departure: its messages start as the log does, word for word and including a reply, and then end or continue
  differently, and the newest exchange of the log is missing (an edit, a regenerated reply, time travel);
- an edit in place: every message of the log up to the newest exchange is at its position, by role, and a user
  message of a turn before the newest one has another text.

In the table u, a and t are messages of role user, assistant and tool, x' is a changed x, s a summary, p q a fixed
prefix. "named": only if the thread is named.

| log              | the client sends     | outcome          | new    | why                                        |
|------------------|----------------------|------------------|--------|--------------------------------------------|
| (nothing)        | anything             | FRESH            | all    | nothing was absorbed                       |
| u1 a1            | u1 a1 u2             | EXTENDS          | u2     | the log in its place, then more            |
| u1 a1            | u1 a1' u2            | EXTENDS          | u2     | the reply was reworded                     |
| u1 a1 u2 a2      | s u2 a2' u3          | WINDOWED         | u3     | the newest exchange, reworded              |
| u1 a1 u2 a2      | v1 b1 u2 a2 u3       | WINDOWED         | u3     | messages before a known exchange           |
| p q u1 a1        | p q u2               | WINDOWED         | u2     | a prefix; no snapshot ends there           |
| u1 a1 v1 b1      | u1 a1 u2             | WINDOWED         | u2     | another conversation of an unnamed thread  |
| u1 a1 u2 a2      | u3                   | WINDOWED         | u3     | only new messages                          |
| u1 a1 u2 a2      | u1                   | WINDOWED         | u1     | a repeated message                         |
| u1 a1 u2 a2      | u2                   | WINDOWED         | none   | a retry of the newest turn                 |
| u1 a1 u2 a2      | u1 a1 u3             | DIVERGED (named) | u3     | a departure: an edit                       |
| u1 a1 u2 a2      | u1 a1 u2             | DIVERGED (named) | none   | a departure: the reply is regenerated      |
| u1 a1 u2 a2      | u1 a1                | DIVERGED (named) | none   | a departure: time travel                   |
| u1 a1 u2 a2      | u1' a1 u2 a2 u3      | DIVERGED (named) | u1' u3 | an edit in place                           |

Two ambiguities remain. A client that repeats its newest message looks like a retry and is treated as one. A window of
a conversation in which all turns are equal looks like a longer window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from deltamem_agents.errors import MessageError
from deltamem_agents.types import Message, Role, ThreadLog

_ROLE_LETTERS: Mapping[Role, str] = {"system": "s", "user": "u", "assistant": "a", "tool": "t"}
_USER, _REPLY = "u:", "a:"


class Alignment(StrEnum):
    """How a client's messages relate to the absorbed messages; see the module's table."""

    FRESH = "fresh"
    EXTENDS = "extends"
    WINDOWED = "windowed"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Aligned:
    """The result of comparing a client's messages with one log.

    `new`: indices of the messages that are not absorbed, ascending. `log`: the log that they extend if the turn
    continues the newest memory. `stands`: for DIVERGED, the number of log messages before the first changed one.
    `changed`: the number of log messages that the client changed or removed.
    """

    outcome: Alignment
    new: tuple[int, ...]
    log: ThreadLog
    stands: int = 0
    changed: int = 0

    @property
    def edited(self) -> bool:
        """Whether messages were changed in place while the later ones are unchanged."""
        return self.outcome is Alignment.DIVERGED and self.log.count > self.stands


def digest(message: Message) -> str:
    """A digest of a message: its role's first letter, a colon and 32 hex digits.

    It is equal for messages with the same role, the same content apart from surrounding white space, and tool calls
    with the same names and arguments. Ids and names of tool results are left out, because they differ between
    frameworks. Raises MessageError for arguments that are not JSON.
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
    """JSON data in one canonical form: text keys, lists, and 1.0 as 1, because serialisers differ in these."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def extend(log: ThreadLog, digests: Sequence[str], shown: Sequence[str] = ()) -> ThreadLog:
    """The log after absorbing more messages. Its size stays bounded.

    `shown`: the known messages at the front of the client's messages. They stay known even when the tail no longer
    contains them.
    """
    tail = (*log.tail, *digests)[-ThreadLog.TAIL_MESSAGES :]
    front, opening = tuple(shown[: ThreadLog.OPENING_MESSAGES // 2]), log.opening
    # Done early, so that alternating prefixes are all recorded before they leave the tail.
    if not set(front) <= set(tail[-ThreadLog.TAIL_MESSAGES // 2 :]):
        opening = (*front, *(each for each in opening if each not in front))[: ThreadLog.OPENING_MESSAGES]
    return ThreadLog(log.count + len(digests), tail, opening)


def align(log: ThreadLog, incoming: Sequence[str], *, named: bool) -> Aligned:
    """Compares incoming digests with the log of one thread, by the module's rules.

    `incoming`: digests of the messages that may be written, in order. `named`: whether the caller named the thread.
    """
    if log.count == 0:
        return Aligned(Alignment.FRESH, tuple(range(len(incoming))), log)
    known, at_end = _known(_Exchanges.of(log), incoming, newest_at=log.count - 1 if named else None)
    stands = _common_start(log, incoming)
    if stands == log.count or (at_end and known == log.count and _same_roles(log, incoming)):
        return _in_place(log, incoming, named=named)
    # If all turns are equal, the log without its newest reply also ends with the newest exchange.
    again = stands == len(incoming) == log.count - 1
    if named and _has_reply(incoming[log.count - len(log.tail) : stands]) and (again or not at_end):
        return Aligned(
            Alignment.DIVERGED,
            _positions_from(stands, incoming),
            _first_messages(log, stands),
            stands,
            log.count - stands,
        )
    rest = tuple(incoming[known:])
    if again or (rest and not at_end and rest == _newest_input(log.tail)):
        # The regenerated reply replaces the one that the client did not keep.
        return Aligned(Alignment.WINDOWED, (), _first_messages(log, log.count - 1))
    return Aligned(Alignment.WINDOWED, _positions_from(known + _unanswered(log.tail, rest), incoming), log)


def known_ahead(log: ThreadLog, leaving: Sequence[str]) -> int:
    """How many of the messages that leave a client's window are in the log, counted from the first one.

    All messages up to the first unknown exchange count. So do the next messages, if they also come next in the log. A
    single exchange with another reply in the log is not the same exchange, because people say "hello" more than once.
    """
    exchanges = _Exchanges.of(log)
    known, at_end = _known(exchanges, leaving, unbroken=True)
    replies = [place for place in range(known) if _is_reply(leaving[place])]
    if len(replies) == 1 and known > 1 and not at_end and not exchanges.hold_whole(leaving[:known]):
        known = 0
    rest = tuple(leaving[known:])
    if not at_end and rest == _newest_input(log.tail):
        return len(leaving)
    return known + max(_following(log.tail, leaving, known), _unanswered(log.tail, rest))


def shared_prefix(log: ThreadLog, incoming: Sequence[str]) -> int:
    """How many leading messages of a new thread were already absorbed by another thread with this log.

    A copied or forked thread contains the history of its source, which must not be written twice. It is recognised by
    an exchange that both contain word for word; otherwise the result is 0. A summary may precede the shared part.
    """
    exchanges = _Exchanges.of(log)
    places = enumerate(incoming)
    start = next((place for place, each in places if _is_reply(each) or each in exchanges.messages), 0)
    known, _ = _known(exchanges, incoming[start:], unbroken=True)
    if not exchanges.hold_whole(incoming[start : start + known]):
        return 0
    return start + known + _following(log.tail, incoming[start:], known)


def stands_in(log: ThreadLog, incoming: Sequence[str]) -> bool:
    """Whether every message of the log, except replies, is in `incoming` at its position."""
    places = incoming[log.count - len(log.tail) : log.count]
    return len(places) == len(log.tail) and all(
        known == seen or _is_reply(known) for known, seen in zip(log.tail, places, strict=True)
    )


def as_shown(log: ThreadLog, incoming: Sequence[str]) -> ThreadLog:
    """The log with the client's versions of its messages, which later comparisons use."""
    return ThreadLog(log.count, tuple(incoming[log.count - len(log.tail) : log.count]), log.opening)


@dataclass(frozen=True)
class _Exchanges:
    """The exchanges of a log. `whole`: pairs of message and reply. `answered`: their messages. `newest`: the last one.

    `messages`: all messages in the log. `telling`: whether the newest reply alone identifies the newest exchange.
    """

    whole: frozenset[tuple[str, str]]
    answered: frozenset[str]
    messages: frozenset[str]
    newest: tuple[str | None, str] | None
    telling: bool

    @classmethod
    def of(cls, log: ThreadLog) -> _Exchanges:
        pairs = [
            (before, reply) for row in (log.opening, log.tail) for before, reply in pairwise(row) if _is_reply(reply)
        ]
        newest, replies = None, [each for each in (*log.opening, *log.tail) if _is_reply(each)]
        if log.tail and _is_reply(log.tail[-1]):
            newest = (next((each for each in reversed(log.tail) if not _is_reply(each)), None), log.tail[-1])
        return cls(
            frozenset(pairs),
            frozenset(before for before, _ in pairs if not _is_reply(before)),
            frozenset((*log.opening, *log.tail)),
            newest,
            newest is not None and len({*replies}) > 1 and replies.count(newest[1]) == 1,
        )

    def hold(self, before: str | None, reply: str, *, follows: bool) -> bool:
        """Whether this exchange is known, possibly reworded. `follows`: whether it is first or follows a known one."""
        if before is None:
            return reply in self.messages
        return (before, reply) in self.whole or (follows and before in self.answered)

    @property
    def newest_reply(self) -> str | None:
        return None if self.newest is None else self.newest[1]

    def hold_whole(self, messages: Sequence[str]) -> bool:
        """Whether one of the exchanges in these messages is known word for word."""
        return any(pair in self.whole for pair in pairwise(messages))

    def end_with(self, before: str | None, reply: str) -> bool:
        """Whether this exchange is the log's newest one. Its message or its reply may be reworded."""
        if self.newest is None:
            return False
        if before is not None and (before, reply) in self.whole:
            return (before, reply) == self.newest
        return before == self.newest[0] or reply == self.newest[1]


def _known(
    exchanges: _Exchanges, incoming: Sequence[str], *, newest_at: int | None = None, unbroken: bool = False
) -> tuple[int, bool]:
    """The number of messages up to the last known exchange, and whether that is the log's newest exchange.

    `newest_at`: position of the newest reply if the client sends its whole history. `unbroken`: stop at the first
    exchange that is not known, or at the first message that is not in the log.
    """
    known, at_end, follows = 0, False, True
    for place, reply in enumerate(incoming):
        if not _is_reply(reply):
            continue
        before = incoming[place - 1] if place else None
        if unbroken and not exchanges.messages.issuperset(incoming[known:place]):
            break
        newest = exchanges.end_with(before, reply)
        told = place == newest_at or (exchanges.telling and reply == exchanges.newest_reply)
        if exchanges.hold(before, reply, follows=follows) or (newest and told and not unbroken):
            known, at_end, follows = place + 1, newest, True
        elif before is not None and not _is_reply(before):
            # If no message precedes the reply, the client's window cut it off.
            follows = False
            if unbroken:
                break
    return known, at_end


def _in_place(log: ThreadLog, incoming: Sequence[str], *, named: bool) -> Aligned:
    """The result if every message of the log is at its position in `incoming`, possibly reworded or with more after."""
    start = log.count - len(log.tail)
    older = log.count - len(_newest_input(log.tail)) - 1
    told = zip(range(start, older), log.tail, incoming[start:older], strict=False)
    edited = [place for place, known, seen in told if known != seen and seen.startswith(_USER)]
    if not named or not edited:
        return Aligned(Alignment.EXTENDS, _positions_from(log.count, incoming), as_shown(log, incoming))
    new = (*edited, *_positions_from(log.count, incoming))
    return Aligned(Alignment.DIVERGED, new, as_shown(log, incoming), edited[0], len(edited))


def _same_roles(log: ThreadLog, incoming: Sequence[str]) -> bool:
    start = log.count - len(log.tail)
    return [each[0] for each in log.tail] == [each[0] for each in incoming[start : log.count]]


def _common_start(log: ThreadLog, incoming: Sequence[str]) -> int:
    """How many messages `log` and `incoming` have in common from the start of the thread.

    If the tail no longer contains the start, the comparison begins at the tail's first message, and earlier ones count
    as common if that message matches.
    """
    start = log.count - len(log.tail)
    same = _common(log.tail, incoming[start:])
    return start + same if same else 0


def _following(tail: Sequence[str], incoming: Sequence[str], known: int) -> int:
    """How many messages after `incoming[:known]` also follow the same exchange in the log."""
    if known < 2:
        return 0
    last = (incoming[known - 2], incoming[known - 1])
    ends = [place for place in range(2, len(tail) + 1) if (tail[place - 2], tail[place - 1]) == last]
    return max((_common(tail[place:], incoming[known:]) for place in ends), default=0)


def _unanswered(tail: Sequence[str], rest: Sequence[str]) -> int:
    """How many leading messages of `rest` are at the end of the log without a reply."""
    waiting = len(tail) - next((place + 1 for place in reversed(range(len(tail))) if _is_reply(tail[place])), 0)
    return next((size for size in range(min(waiting, len(rest)), 0, -1) if [*tail[-size:]] == [*rest[:size]]), 0)


def _newest_input(tail: Sequence[str]) -> tuple[str, ...]:
    """The messages that the newest reply answered; empty if the log does not end with a reply."""
    if not tail or not _is_reply(tail[-1]):
        return ()
    first = len(tail) - 1
    while first > 0 and not _is_reply(tail[first - 1]):
        first -= 1
    return tuple(tail[first:-1])


def _first_messages(log: ThreadLog, count: int) -> ThreadLog:
    """The log's first `count` messages."""
    return ThreadLog(count, log.tail[: len(log.tail) - (log.count - count)], log.opening)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


def _positions_from(place: int, incoming: Sequence[str]) -> tuple[int, ...]:
    return tuple(range(place, len(incoming)))


def _is_reply(digest: str) -> bool:
    return digest.startswith(_REPLY)


def _has_reply(digests: Iterable[str]) -> bool:
    return any(map(_is_reply, digests))
