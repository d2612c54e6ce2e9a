"""Converts the engine's turns to LangChain's messages. Pure functions."""

from __future__ import annotations

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from deltamem_agents import CallChunk, Turn, TurnChunk

PROVIDER = "deltamem"
CUT_OFF = "max_tokens cut this call off"


def usage_of(turn: Turn) -> UsageMetadata:
    """The token counts. Input tokens are all tokens before the reply; "absorbed" are those outside the prompt."""
    details = InputTokenDetails(cache_read=turn.usage.cached_tokens)
    details["absorbed"] = turn.usage.absorbed_tokens  # type: ignore[typeddict-unknown-key]
    read = turn.usage.prompt_tokens + turn.usage.absorbed_tokens
    return UsageMetadata(
        input_tokens=read,
        output_tokens=turn.usage.completion_tokens,
        total_tokens=read + turn.usage.completion_tokens,
        input_token_details=details,
    )


def metadata_of(turn: Turn, model_name: str, named_by_run: bool) -> dict[str, object]:
    """The response metadata, as JSON. The key "deltamem" has the fields of `TurnFacts` and the snapshot's id.

    `named_by_run`: whether the config of a graph run names the agent. Such an agent stays with the run's checkpoints.
    """
    return {
        "model_name": model_name,
        "model_provider": PROVIDER,
        "finish_reason": turn.finish_reason,
        "deltamem": {**turn.report, "named_by_run": named_by_run},
    }


def to_ai_message(turn: Turn, model_name: str, named_by_run: bool) -> AIMessage:
    """The complete turn. A call truncated by `max_tokens` is among the `invalid_tool_calls`."""
    cut = turn.cut_call
    return AIMessage(
        content=turn.text,
        tool_calls=[tool_call(name=call.name, args=dict(call.arguments), id=call.id) for call in turn.tool_calls],
        invalid_tool_calls=[]
        if cut is None
        else [invalid_tool_call(name=cut.name or None, args=cut.arguments, id=cut.id or None, error=CUT_OFF)],
        usage_metadata=usage_of(turn),
        response_metadata=metadata_of(turn, model_name, named_by_run),
    )


def to_result(turn: Turn, model_name: str, *, named_by_run: bool = False) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=to_ai_message(turn, model_name, named_by_run))])


def to_chunk(piece: TurnChunk, model_name: str, *, named_by_run: bool = False) -> ChatGenerationChunk | None:
    """A piece of a streamed turn, None for an empty one. The last chunk has the usage and the metadata."""
    if piece.turn is not None:
        return _last_chunk(piece.turn, model_name, named_by_run)
    if piece.call is not None:
        return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[_call_chunk(piece.call)]))
    return ChatGenerationChunk(message=AIMessageChunk(content=piece.text)) if piece.text else None


def _call_chunk(call: CallChunk) -> ToolCallChunk:
    return tool_call_chunk(name=call.name or None, args=call.arguments, id=call.id or None, index=call.index)


def _last_chunk(turn: Turn, model_name: str, named_by_run: bool) -> ChatGenerationChunk:
    message = AIMessageChunk(
        content="",
        tool_call_chunks=[] if turn.cut_call is None else [_broken_end(turn.cut_call)],
        usage_metadata=usage_of(turn),
        response_metadata=metadata_of(turn, model_name, named_by_run),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message, generation_info={"finish_reason": turn.finish_reason})


def _broken_end(cut: CallChunk) -> ToolCallChunk:
    """A chunk that makes the arguments of a truncated call invalid JSON.

    Without it LangChain would complete the partial JSON of a stream's chunks, and an agent would run the call.
    """
    # More closing brackets than were opened, both inside and outside a string, wherever the arguments end.
    closing = "]" * (cut.arguments.count("[") + 1)
    return tool_call_chunk(args=f'{closing}"{closing}', index=cut.index)
