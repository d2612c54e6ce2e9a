"""Tool calls as text: written for the model to read, and read from what it wrote.

Understood are `<tool_call>{…}</tool_call>` blocks anywhere in a reply (the closing mark may be
missing), call objects behind `<|python_tag|>` or `[TOOL_CALLS]`, and a reply that is nothing but
JSON call objects. A call object has a "name" and "arguments" (or "parameters"), possibly under
"function". Text which only looks like a call stays text, unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deltamem_agents.errors import MessageError
from deltamem_agents.types import CallChunk, ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
_OPENERS = (OPEN, "<|python_tag|>", "[TOOL_CALLS]")
_BETWEEN_CALLS = frozenset(" \t\r\n;,")
_MAY_START_BARE = re.compile(r"\s*(\[\s*)?(\{\s*(\"|\Z)|\Z)")
_DECODER = json.JSONDecoder()
# How a grammar has every call begin, and `format_tool_calls` writes it.
_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": (?=\{)')

NamedCall: TypeAlias = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class ParsedReply:
    """A reply taken apart. Without calls `text` is the reply as it was, white space included.

    `cut`: a call in the middle of which the reply ends. Its `index` counts all `calls` before it.
    """

    text: str
    calls: tuple[ToolCall, ...]
    cut: CallChunk | None = None


@dataclass(frozen=True)
class ReplySoFar:
    """What of an unfinished reply is certain, however it goes on.

    `text`: always the beginning of the final text, so a client may be shown it. Held back are whatever may
    still become a call, and white space at the end, which a call after it would swallow. `calls`: (name,
    arguments) of those that are complete. `opened`: where the call behind them begins that a grammar will
    finish; see `call_head`.
    """

    text: str
    calls: Sequence[NamedCall]
    opened: int | None


@dataclass
class _Found:
    """Plain pieces around groups of calls; there is always one piece more than there are groups.

    `opened`: where a call begins that is not complete, behind its opener.
    """

    pieces: list[str] = field(default_factory=lambda: [""])
    calls: list[NamedCall] = field(default_factory=list)
    opened: int | None = None


@dataclass(frozen=True)
class _Block:
    """What stands behind an opener. `decided`: no further text can change it."""

    end: int
    calls: list[NamedCall]
    decided: bool


def format_tool_calls(calls: Sequence[ToolCall]) -> str:
    """The calls as text, one block each; `parse_tool_calls` reads them back. Ids are not written.

    Raises MessageError for arguments which are not JSON.
    """
    return "\n".join(f"{OPEN}\n{_call_json(call)}\n{CLOSE}" for call in calls)


def parse_tool_calls(
    text: str, *, names: Collection[str] | None = None, salt: str = "", held: bool = False
) -> ParsedReply:
    """Split a finished reply into plain text and tool calls.

    `names`: the tools on offer; a reply of bare JSON is a call only if it names these, since JSON
    may as well be the answer (None: any name). `salt`: anything that differs from turn to turn;
    ids are made from it and the call's name and place, and calls of two turns must not share one.
    `held`: a grammar held the reply, so that a call which is not complete is one that was cut off.
    """
    bare = _bare_calls(text, names)
    found = _Found(calls=bare) if bare else _scan(text, finished=True, held=held)
    cut = None if found.opened is None else _cut_call(text, found, salt)
    if not found.calls and cut is None:
        return ParsedReply(text, ())
    calls = tuple(
        ToolCall(name, arguments, call_id(salt, position, name))
        for position, (name, arguments) in enumerate(found.calls)
    )
    return ParsedReply(_join(found.pieces), calls, cut)


def reply_so_far(text: str, *, held: bool = False) -> ReplySoFar:
    """What is certain of an unfinished reply; `held`: a grammar sees to it that an opened call is finished.

    Agrees with `parse_tool_calls(whole, held=held)` for any `whole` that begins with `text`.
    """
    if _may_become_bare(text):
        return ReplySoFar("", (), None)
    found = _scan(text, finished=False, held=held)
    return ReplySoFar(_join(found.pieces), found.calls, found.opened)


def call_head(text: str, opened: int) -> tuple[str, int] | None:
    """The name of the call that begins at `opened`, and where its arguments begin; None before they do."""
    head = _HEAD.match(text, opened)
    return None if head is None else (str(json.loads(head[1])), head.end())


def object_end(text: str, start: int) -> int | None:
    """Where the JSON object that begins at `start` ends; None as long as it is not complete."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def distinct_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls without those that repeat an earlier one's name and arguments."""
    first = {call_key(call.name, call.arguments): call for call in reversed(calls)}
    kept = {id(call) for call in first.values()}
    return tuple(call for call in calls if id(call) in kept)


def call_key(name: str, arguments: Mapping[str, Any]) -> str:
    """The same for calls of one name with equal arguments, and for no others."""
    return json.dumps([name, arguments], sort_keys=True, default=_plain)


def call_id(salt: str, position: int, name: str) -> str:
    """Known as soon as the name is. Nine letters and digits, on which one well-known chat template insists."""
    return hashlib.sha256(json.dumps([salt, position, name]).encode()).hexdigest()[:9]


def _join(pieces: Sequence[str]) -> str:
    """Plain pieces without the white space around calls; the indentation of the reply itself stays."""
    joined = pieces[0].rstrip()
    for piece in filter(None, map(str.strip, pieces[1:])):
        joined += f"\n{piece}" if joined else piece
    return joined


def _cut_call(text: str, found: _Found, salt: str) -> CallChunk | None:
    """The call that was cut off; it joins those found if nothing but closing marks is missing."""
    assert found.opened is not None
    position, head = len(found.calls), call_head(text, found.opened)
    if head is None:
        return CallChunk(position)
    name, start = head
    end = object_end(text, start)
    if end is None:
        return CallChunk(position, name, call_id(salt, position, name), text[start:])
    found.calls.append((name, json.loads(text[start:end])))
    return None


def _scan(text: str, *, finished: bool, held: bool) -> _Found:
    """Read a reply from left to right; an unfinished one only up to where it is not decided yet."""
    found = _Found()
    start = 0
    while (opening := _next_opener(text, start)) is not None:
        at, opener = opening
        block = _read_block(text, at + len(opener), opener)
        if held and opener == OPEN and not block.calls:
            found.pieces[-1] += text[start:at]
            found.opened = at + len(opener)
            return found
        if not (block.decided or finished):
            found.pieces[-1] += text[start:at]
            return found
        if block.calls:
            found.pieces[-1] += text[start:at]
            found.pieces.append("")
            found.calls += block.calls
        else:
            found.pieces[-1] += text[start : block.end]
        start = block.end
    stop = len(text) if finished else len(text) - _partial_opener(text[start:])
    found.pieces[-1] += text[start:stop]
    return found


def _next_opener(text: str, start: int) -> tuple[int, str] | None:
    places = [(at, opener) for opener in _OPENERS if (at := text.find(opener, start)) >= 0]
    return min(places, default=None)


def _partial_opener(text: str) -> int:
    """Length of the longest end of `text` with which an opener begins."""
    longest = min(max(map(len, _OPENERS)) - 1, len(text))
    sizes = (size for size in range(longest, 0, -1) if any(opener.startswith(text[-size:]) for opener in _OPENERS))
    return next(sizes, 0)


def _read_block(text: str, start: int, opener: str) -> _Block:
    """The calls behind an opener that ends at `start`; without calls the block ends there."""
    end, calls = _read_calls(text, start)
    following = _skip_between(text, end)
    rest = text[following:]
    if not calls:
        return _Block(start, [], decided=bool(rest) and rest[0] not in "{[")
    if opener == OPEN and rest.startswith(CLOSE):
        return _Block(following + len(CLOSE), calls, decided=True)
    if opener == OPEN and CLOSE.startswith(rest):
        return _Block(len(text), calls, decided=False)
    return _Block(end, calls, decided=bool(rest) and rest[0] not in "{[")


def _read_calls(text: str, start: int, *, bare: bool = False) -> tuple[int, list[NamedCall]]:
    """Call objects, or lists of them, that follow each other from `start` on: (where they end, calls)."""
    calls: list[NamedCall] = []
    end = start
    while (decoded := _decode(text, end)) is not None:
        after, value = decoded
        more = [_as_call(item, bare=bare) for item in (value if isinstance(value, list) else [value])]
        named = [call for call in more if call is not None]
        if not more or len(named) < len(more):
            break
        calls += named
        end = after
    return end, calls


def _decode(text: str, start: int) -> tuple[int, object] | None:
    """The JSON object or list that comes next, and where it ends."""
    start = _skip_between(text, start)
    if not text.startswith(("{", "["), start):
        return None
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return end, value


def _skip_between(text: str, start: int) -> int:
    while start < len(text) and text[start] in _BETWEEN_CALLS:
        start += 1
    return start


def _bare_calls(text: str, names: Collection[str] | None) -> list[NamedCall]:
    if not text.lstrip().startswith(("{", "[")):
        return []
    end, calls = _read_calls(text, 0, bare=True)
    whole = _skip_between(text, end) == len(text)
    known = names is None or all(name in names for name, _ in calls)
    return calls if whole and known else []


def _may_become_bare(text: str) -> bool:
    """Whether an unfinished reply may turn out to be nothing but JSON calls."""
    if not _MAY_START_BARE.match(text):
        return False
    end, calls = _read_calls(text, 0, bare=True)
    if not calls:
        return _decode(text, 0) is None
    following = _skip_between(text, end)
    return following == len(text) or text[following] in "{["


def _as_call(value: object, *, bare: bool) -> NamedCall | None:
    """(name, arguments) of a call object, None for any other JSON. A bare one has to bring arguments."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    if bare and not {"arguments", "parameters"} & value.keys():
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    return (value["name"], arguments) if isinstance(arguments, dict) else None


def _call_json(call: ToolCall) -> str:
    try:
        return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise MessageError(
            f"arguments of a call of tool {call.name!r} are not JSON ({error}); "
            "pass only text, numbers, booleans, null, lists and objects"
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
