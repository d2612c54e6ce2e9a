"""Parses a finished reply to a message, and streams the text and tool calls of a reply that is being decoded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.chat.tool_calls import (
    NamedCall,
    ReplySoFar,
    call_head,
    call_id,
    call_key,
    distinct_calls,
    object_end,
    parse_tool_calls,
    reply_so_far,
)
from deltamem_agents.types import CallChunk, Message, ToolCall, TurnChunk


def reply_message(text: str, tools: Collection[str], salt: str, *, held: bool) -> tuple[Message, CallChunk | None]:
    """A finished reply as a message, and its truncated last call, if any. Arguments: see `parse_tool_calls`."""
    parsed = parse_tool_calls(text, names=tools, salt=salt, held=held)
    # Small models often repeat a call; running the repetition would be useless.
    calls = distinct_calls(parsed.calls)
    cut = None if parsed.cut is None else replace(parsed.cut, index=len(calls))
    return Message("assistant", parsed.text, calls), cut


@dataclass
class ReplyStream:
    """Streams one reply. `calls`: whether it may contain tool calls. `salt`: as for `parse_tool_calls`.

    `held`: whether a grammar guarantees that an opened call is finished. Then a call is streamed while it is decoded;
    otherwise it is shown when it is complete. A second call of the same tool in a reply is always shown only when it
    is complete, because it may be a repetition, which is left out.
    """

    calls: bool
    held: bool
    salt: str
    _said: str = ""
    _text_shown: int = 0
    _decided: int = 0
    """Number of calls so far that were shown, begun, or left out."""
    _shown: int = 0
    """Number of calls that were shown or begun; also the index of the next one."""
    _live: _Live | None = None

    def push(self, piece: str) -> list[TurnChunk]:
        """The chunks that can be shown after `piece`; one empty chunk if there are none."""
        self._said += piece
        if not self.calls:
            return [self._text_up_to(self._said)]
        so_far = reply_so_far(self._said, held=self.held)
        chunks = [self._text_up_to(so_far.text), *self._calls(so_far)]
        return [chunk for chunk in chunks if chunk.text or chunk.call] or [TurnChunk()]

    def finish(self, text: str, calls: Sequence[ToolCall], cut: CallChunk | None) -> Iterator[TurnChunk]:
        """The chunks of the final text, calls and truncated call that were not shown yet."""
        yield self._text_up_to(text)
        for call in calls[self._shown :]:
            yield self._first(call.name, call.id, json.dumps(dict(call.arguments), ensure_ascii=False))
        if cut is not None and cut.index >= self._shown:
            yield TurnChunk(call=cut)

    def _text_up_to(self, text: str) -> TurnChunk:
        piece, self._text_shown = text[self._text_shown :], max(self._text_shown, len(text))
        return TurnChunk(text=piece)

    def _calls(self, so_far: ReplySoFar) -> Iterator[TurnChunk]:
        if self._live is not None:
            yield from self._more(self._live)
        for position in range(self._decided, len(so_far.calls)):
            yield from self._complete(position, so_far.calls)
        if so_far.opened is not None and len(so_far.calls) == self._decided:
            yield from self._begin(so_far.opened, so_far.calls)

    def _complete(self, position: int, calls: Sequence[NamedCall]) -> Iterator[TurnChunk]:
        self._decided = position + 1
        name, arguments = calls[position]
        if call_key(name, arguments) not in {call_key(*earlier) for earlier in calls[:position]}:
            yield self._first(name, call_id(self.salt, position, name), json.dumps(arguments, ensure_ascii=False))

    def _begin(self, opened: int, before: Sequence[NamedCall]) -> Iterator[TurnChunk]:
        head = call_head(self._said, opened)
        if head is None or head[0] in {name for name, _ in before}:
            return
        name, start = head
        self._live = _Live(self._shown, start, start)
        yield self._first(name, call_id(self.salt, self._decided, name), "")
        self._decided += 1
        yield from self._more(self._live)

    def _more(self, live: _Live) -> Iterator[TurnChunk]:
        end = object_end(self._said, live.start)
        piece = self._said[live.shown : end]
        live.shown += len(piece)
        if end is not None:
            self._live = None
        if piece:
            yield TurnChunk(call=CallChunk(live.index, arguments=piece))

    def _first(self, name: str, id: str, arguments: str) -> TurnChunk:
        chunk = TurnChunk(call=CallChunk(self._shown, name, id, arguments))
        self._shown += 1
        return chunk


@dataclass
class _Live:
    """A call that is being decoded. Its arguments begin at `start` and were shown up to `shown`."""

    index: int
    start: int
    shown: int
