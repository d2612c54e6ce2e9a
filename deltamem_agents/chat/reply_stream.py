"""A reply as a message, and as the pieces of text and of calls that can be shown while it is being said."""

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
    """A whole reply as a message, and the call in the middle of which it ends. Arguments: see `parse_tool_calls`."""
    parsed = parse_tool_calls(text, names=tools, salt=salt, held=held)
    # A small model likes to say a call twice; the second would only be run for nothing.
    calls = distinct_calls(parsed.calls)
    cut = None if parsed.cut is None else replace(parsed.cut, index=len(calls))
    return Message("assistant", parsed.text, calls), cut


@dataclass
class ReplyStream:
    """Follows one reply. `calls`: whether it may hold tool calls. `salt`: as for `parse_tool_calls`.

    `held`: a grammar sees to it that an opened call is finished, so that it can be shown while it is being
    said; otherwise calls are shown when they are complete. A call of a tool that was called before in the
    same reply is shown when it is complete in any case, as it may be a repetition, which counts once.
    """

    calls: bool
    held: bool
    salt: str
    _said: str = ""
    _text_shown: int = 0
    _decided: int = 0
    """Calls of the reply so far that were shown, begun, or left out."""
    _shown: int = 0
    """Calls that were shown or begun: the index of the next one."""
    _live: _Live | None = None

    def push(self, piece: str) -> list[TurnChunk]:
        """What can be shown now that `piece` was said; one empty chunk if that is nothing."""
        self._said += piece
        if not self.calls:
            return [self._text_up_to(self._said)]
        so_far = reply_so_far(self._said, held=self.held)
        chunks = [self._text_up_to(so_far.text), *self._calls(so_far)]
        return [chunk for chunk in chunks if chunk.text or chunk.call] or [TurnChunk()]

    def finish(self, text: str, calls: Sequence[ToolCall], cut: CallChunk | None) -> Iterator[TurnChunk]:
        """What was not shown yet of the final text, calls and cut call."""
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
    """A call that is being said. Its arguments begin at `start`, and were shown up to `shown`."""

    index: int
    start: int
    shown: int
