"""Converts the engine's turns to LlamaIndex's responses. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.agent.workflow import AgentOutput
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic_core import from_json

from deltamem_agents import CallChunk, Turn, TurnChunk


def to_chat_response(turn: Turn, model_name: str, *, delta: str | None = None) -> ChatResponse:
    """The complete turn. `delta`: the text that a stream has not shown yet."""
    blocks = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in turn.tool_calls
    ]
    return ChatResponse(message=_message(turn.text, blocks), raw=_raw(turn, model_name), delta=delta)


def to_completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(text=response.message.content or "", raw=response.raw, delta=response.delta)


def source_nodes(response: ChatResponse | CompletionResponse | AgentOutput) -> list[NodeWithScore]:
    """The statements that a reply used, as nodes, best first. They come from `raw["deltamem"]["recalled"]`."""
    raw = response.raw if isinstance(response.raw, Mapping) else {}
    return [statement_node(**each) for each in raw.get("deltamem", {}).get("recalled", ())]


def statement_node(*, id: str, text: str, score: float, **metadata: Any) -> NodeWithScore:
    """A statement as a node. `metadata`: its role, thread, time and any other fields."""
    return NodeWithScore(node=TextNode(id_=id, text=text, metadata=metadata), score=score)


def tool_selections(response: ChatResponse) -> list[ToolSelection]:
    """The response's tool calls. While a call is streaming, its partial arguments are parsed."""
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_arguments(block.tool_kwargs)
        )
        for block in response.message.blocks
        if isinstance(block, ToolCallBlock)
    ]


@dataclass
class GrowingReply:
    """Accumulates a streamed turn: each response contains everything up to its piece."""

    model_name: str
    _text: str = ""
    _calls: list[ToolCallBlock] = field(default_factory=list)

    def push(self, piece: TurnChunk) -> ChatResponse | None:
        """The response up to `piece`; None if `piece` adds nothing."""
        if piece.turn is not None:
            return to_chat_response(piece.turn, self.model_name, delta="")
        if piece.call is not None and (piece.call.name or piece.call.index < len(self._calls)):
            self._grow(piece.call)
        elif not piece.text:
            return None
        self._text += piece.text
        return ChatResponse(message=_message(self._text, self._calls), delta=piece.text)

    def _grow(self, piece: CallChunk) -> None:
        if piece.index == len(self._calls):
            self._calls.append(ToolCallBlock(tool_call_id=piece.id, tool_name=piece.name, tool_kwargs=""))
        call = self._calls[piece.index]
        # A new block is made, because earlier responses contain the old one.
        self._calls[piece.index] = call.model_copy(update={"tool_kwargs": f"{call.tool_kwargs}{piece.arguments}"})


def _message(text: str, calls: Sequence[ToolCallBlock]) -> ChatMessage:
    blocks: list[ContentBlock] = [*([TextBlock(text=text)] if text or not calls else []), *calls]
    # LlamaIndex's programs that stream objects read the calls from here, not from the blocks.
    beside = {"tool_calls": [_openai_call(call) for call in calls]} if calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=beside)


def _openai_call(call: ToolCallBlock) -> dict[str, object]:
    given = call.tool_kwargs
    arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return {
        "id": call.tool_call_id,
        "type": "function",
        "function": {"name": call.tool_name, "arguments": arguments},
    }


def _arguments(given: Mapping[str, Any] | str) -> dict[str, Any]:
    if not isinstance(given, str):
        return dict(given)
    try:
        read = from_json(given, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _raw(turn: Turn, model_name: str) -> dict[str, object]:
    """The response's `raw`, as JSON. "deltamem" says what the memory did. LlamaIndex's token counters read "usage"."""
    read = turn.usage.prompt_tokens + turn.usage.absorbed_tokens
    return {
        "model": model_name,
        "finish_reason": turn.finish_reason,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": turn.usage.completion_tokens,
            "total_tokens": read + turn.usage.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": turn.usage.cached_tokens,
                "absorbed_tokens": turn.usage.absorbed_tokens,
            },
        },
        "deltamem": turn.report,
    }
