"""The engine's turns as LangChain's messages. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from deltamem_agents import Turn
from deltamem_agents.chat.tool_calls import plain_text_so_far

PROVIDER = "deltamem"


def usage_of(turn: Turn) -> UsageMetadata:
    """Input tokens are all that were processed before the reply; "absorbed" are those outside the prompt."""
    details = InputTokenDetails(cache_read=0)
    details["absorbed"] = turn.usage.absorbed_tokens  # type: ignore[typeddict-unknown-key]
    read = turn.usage.prompt_tokens + turn.usage.absorbed_tokens
    return UsageMetadata(
        input_tokens=read,
        output_tokens=turn.usage.completion_tokens,
        total_tokens=read + turn.usage.completion_tokens,
        input_token_details=details,
    )


def metadata_of(turn: Turn, model_name: str) -> dict[str, object]:
    """JSON only. The key "deltamem" says what the memory did, `TurnFacts` and the snapshot's id."""
    return {
        "model_name": model_name,
        "model_provider": PROVIDER,
        "finish_reason": turn.finish_reason,
        "deltamem": {**asdict(turn.facts), "agent": turn.facts.agent or None, "snapshot": turn.snapshot},
    }


def to_ai_message(turn: Turn, model_name: str) -> AIMessage:
    return AIMessage(
        content=turn.text,
        tool_calls=[tool_call(name=call.name, args=dict(call.arguments), id=call.id) for call in turn.tool_calls],
        usage_metadata=usage_of(turn),
        response_metadata=metadata_of(turn, model_name),
    )


class Spoken:
    """What of a streamed reply may be shown as text. `calls`: whether it may turn out to be tool calls."""

    def __init__(self, calls: bool) -> None:
        self._calls, self._said, self._shown = calls, "", 0

    def push(self, piece: str) -> str:
        """The text to show now that `piece` was said."""
        self._said += piece
        return self._up_to(plain_text_so_far(self._said) if self._calls else self._said)

    def finish(self, turn: Turn) -> str:
        return self._up_to(turn.text)

    def _up_to(self, text: str) -> str:
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


def text_chunk(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def last_chunks(turn: Turn, rest: str, model_name: str) -> Iterator[ChatGenerationChunk]:
    """What is left of a streamed turn: the end of its text, its tool calls, and one closing chunk."""
    if rest:
        yield text_chunk(rest)
    for index, call in enumerate(turn.tool_calls):
        head = tool_call_chunk(name=call.name, args="", id=call.id, index=index)
        body = tool_call_chunk(args=json.dumps(dict(call.arguments), ensure_ascii=False), index=index)
        for chunk in (head, body):
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))
    message = AIMessageChunk(
        content="",
        usage_metadata=usage_of(turn),
        response_metadata=metadata_of(turn, model_name),
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=message, generation_info={"finish_reason": turn.finish_reason})
