"""LlamaIndex's messages and tools as the engine's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import BaseTool
from pydantic import BaseModel

from deltamem_agents import Message, MessageError, Tool
from deltamem_agents.bridges.dialects import ROLE_NAMES, as_tool, tool_result
from deltamem_agents.types import as_tool_call

# What was thought, where a cache may begin, and where a statement came from is not part of what was said.
_UNSAID_BLOCKS = (ThinkingBlock, CachePoint, CitationBlock, ToolCallBlock)


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The same conversation for the engine, in order.

    Text blocks are joined by line breaks, as `ChatMessage.content` joins them. Raises MessageError naming
    the message and the block that text cannot say.
    """
    names: dict[str, str] = {}
    converted: list[Message] = []
    for position, message in enumerate(messages):
        try:
            each = _converted(message, names)
        except MessageError as error:
            raise MessageError(f"message {position} ({message.role.value}): {error}") from None
        names.update({call.id: call.name for call in each.tool_calls})
        converted.append(each)
    return converted


def to_tools(tools: Sequence[BaseTool | Mapping[str, Any]]) -> tuple[Tool, ...]:
    """LlamaIndex's tools, or the dicts that `tool_schema` of these returns."""
    return tuple(as_tool(tool if isinstance(tool, Mapping) else tool_schema(tool)) for tool in tools)


def tool_schema(tool: BaseTool) -> dict[str, Any]:
    """The tool as JSON, which may be traced."""
    return tool.metadata.to_openai_tool(skip_length_check=True)


def _converted(message: ChatMessage, names: Mapping[str, str]) -> Message:
    role, text = ROLE_NAMES[message.role.value], "\n".join(_texts(message.blocks))
    if role == "tool":
        given = message.additional_kwargs
        call = given.get("tool_call_id")
        return tool_result(text, call_id=call, name=given.get("name") or names.get(call or ""), failed=False)
    if role != "assistant":
        return Message(role, text)
    return Message(role, text, tuple(map(as_tool_call, _calls(message))))


def _texts(blocks: Sequence[BaseContentBlock]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, TextBlock):
            yield block.text
        elif isinstance(block, CitableBlock):
            yield from _texts(block.content)
        elif not isinstance(block, _UNSAID_BLOCKS):
            kind = getattr(block, "block_type", type(block).__name__)
            raise MessageError(
                f"it holds a block of type {kind!r}, which this model cannot read; "
                "say in text what it shows, or leave it out"
            )


def _calls(message: ChatMessage) -> Iterator[Mapping[str, Any]]:
    """The message's calls in OpenAI's form; messages of older integrations have them beside their content."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        for block in blocks:
            yield {"id": block.tool_call_id, "name": block.tool_name, "arguments": block.tool_kwargs}
        return
    for call in message.additional_kwargs.get("tool_calls") or ():
        given = call.model_dump() if isinstance(call, BaseModel) else call
        if "tool_name" in given:
            given = {"id": given.get("tool_id"), "name": given["tool_name"], "arguments": given.get("tool_kwargs")}
        yield given
