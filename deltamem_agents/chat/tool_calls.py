"""Formats tool calls as text for the prompt, and parses them from a reply.

Three forms are parsed: `<tool_call>{…}</tool_call>` blocks anywhere in a reply (the closing mark may be missing),
call objects after `<|python_tag|>` or `[TOOL_CALLS]`, and a reply that consists only of JSON call objects. A call
object has a "name" and "arguments" (or "parameters"), possibly under "function". Text that only looks like a call is
not changed.
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
# The start of every call that a grammar enforces and `format_tool_calls` writes.
_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": (?=\{)')

NamedCall: TypeAlias = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class ParsedReply:
    """A parsed reply. Without calls, `text` is the reply unchanged, including white space.

    `cut`: a truncated call at the end of the reply. Its `index` is the number of `calls` before it.
    """

    text: str
    calls: tuple[ToolCall, ...]
    cut: CallChunk | None = None


@dataclass(frozen=True)
class ReplySoFar:
    """The part of an unfinished reply that can no longer change.

    `text`: a beginning of the final text, so it may be shown. Text that may still become a call is held back, and so is
    white space at the end, which is removed before a call. `calls`: (name, arguments) of the complete calls.
    `opened`: start of the call after them that a grammar will finish; see `call_head`.
    """

    text: str
    calls: Sequence[NamedCall]
    opened: int | None


@dataclass
class _Found:
    """Plain text pieces around groups of calls; there is always one more piece than groups.

    `opened`: start of an incomplete call, after its opening mark.
    """

    pieces: list[str] = field(default_factory=lambda: [""])
    calls: list[NamedCall] = field(default_factory=list)
    opened: int | None = None


@dataclass(frozen=True)
class _Block:
    """The calls after an opening mark. `decided`: whether further text can no longer change them."""

    end: int
    calls: list[NamedCall]
    decided: bool


def format_tool_calls(calls: Sequence[ToolCall]) -> str:
    """The calls as text, one block each. `parse_tool_calls` parses them. Ids are not written.

    Raises MessageError for arguments that are not JSON.
    """
    return "\n".join(f"{OPEN}\n{_call_json(call)}\n{CLOSE}" for call in calls)


def parse_tool_calls(
    text: str, *, names: Collection[str] | None = None, salt: str = "", held: bool = False
) -> ParsedReply:
    """Splits a finished reply into plain text and tool calls.

    `names`: names of the available tools. A reply of bare JSON is a call only if it names one of them, because JSON may
    also be the answer; None allows any name. `salt`: a text that differs from turn to turn. Call ids are made from it,
    the call's name and its position, so that calls of two turns have different ids. `held`: whether a grammar enforced
    the reply; then an incomplete call was truncated.
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
    """The part of an unfinished reply that can no longer change. `held`: whether a grammar will finish an opened call.

    The result agrees with `parse_tool_calls(whole, held=held)` for any `whole` that begins with `text`.
    """
    if _may_become_bare(text):
        return ReplySoFar("", (), None)
    found = _scan(text, finished=False, held=held)
    return ReplySoFar(_join(found.pieces), found.calls, found.opened)


def call_head(text: str, opened: int) -> tuple[str, int] | None:
    """The name of the call that begins at `opened`, and the start of its arguments; None if they have not begun."""
    head = _HEAD.match(text, opened)
    return None if head is None else (str(json.loads(head[1])), head.end())


def object_end(text: str, start: int) -> int | None:
    """The end of the JSON object that begins at `start`; None if it is not complete."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def distinct_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls without repetitions, which have an earlier call's name and arguments."""
    first = {call_key(call.name, call.arguments): call for call in reversed(calls)}
    kept = {id(call) for call in first.values()}
    return tuple(call for call in calls if id(call) in kept)


def call_key(name: str, arguments: Mapping[str, Any]) -> str:
    """A key that is equal exactly for calls with the same name and equal arguments."""
    return json.dumps([name, arguments], sort_keys=True, default=_plain)


def call_id(salt: str, position: int, name: str) -> str:
    """A call's id, which can be made as soon as its name is known.

    It has nine letters and digits, because one well-known chat template requires that.
    """
    return hashlib.sha256(json.dumps([salt, position, name]).encode()).hexdigest()[:9]


def _join(pieces: Sequence[str]) -> str:
    """Joins plain pieces without the white space around calls. The reply's own indentation stays."""
    joined = pieces[0].rstrip()
    for piece in filter(None, map(str.strip, pieces[1:])):
        joined += f"\n{piece}" if joined else piece
    return joined


def _cut_call(text: str, found: _Found, salt: str) -> CallChunk | None:
    """The truncated call. If only its closing marks are missing, it is added to the complete calls instead."""
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
    """Reads a reply from left to right. An unfinished reply is read up to the point that may still change."""
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
    """Length of the longest end of `text` that is the beginning of an opening mark."""
    longest = min(max(map(len, _OPENERS)) - 1, len(text))
    sizes = (size for size in range(longest, 0, -1) if any(opener.startswith(text[-size:]) for opener in _OPENERS))
    return next(sizes, 0)


def _read_block(text: str, start: int, opener: str) -> _Block:
    """The calls after an opening mark that ends at `start`. Without calls the block ends there."""
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
    """Reads consecutive call objects, or lists of them, from `start`. Returns (their end, calls)."""
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
    """The end and the value of the JSON object or list that comes next; None if there is none."""
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
    """Whether an unfinished reply may still become a reply of only JSON calls."""
    if not _MAY_START_BARE.match(text):
        return False
    end, calls = _read_calls(text, 0, bare=True)
    if not calls:
        return _decode(text, 0) is None
    following = _skip_between(text, end)
    return following == len(text) or text[following] in "{["


def _as_call(value: object, *, bare: bool) -> NamedCall | None:
    """(name, arguments) of a call object, None for any other JSON. A bare call object must have arguments."""
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
