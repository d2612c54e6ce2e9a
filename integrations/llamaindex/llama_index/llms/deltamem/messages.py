"""Converts LlamaIndex's messages and tools to the engine's. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
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
from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata
from pydantic import BaseModel

from deltamem_agents import ConfigError, Message, MessageError, Tool
from deltamem_agents.bridges.dialects import ROLE_NAMES, as_tool, tool_result
from deltamem_agents.bridges.schemas import as_arguments, json_schema
from deltamem_agents.types import as_tool_call

# Reasoning, cache marks and citations are not part of the conversation; tool calls are converted separately.
_UNSAID_BLOCKS = (ThinkingBlock, CachePoint, CitationBlock, ToolCallBlock)


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Converts a conversation for the engine, in order.

    Text blocks are joined by line breaks, as in `ChatMessage.content`. Raises MessageError that names the message and
    the block that cannot be converted to text.
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
    """Converts LlamaIndex's tools, or the dicts that `tool_schema` returns for them."""
    return tuple(as_tool(tool_schema(tool) if isinstance(tool, BaseTool) else tool) for tool in tools)


def tool_schema(tool: BaseTool) -> dict[str, Any]:
    """The tool as JSON, which may appear in traces.

    It keeps its name, because LlamaIndex looks the tool up by it. Raises ConfigError for a tool without a name, or
    whose arguments are not an object.
    """
    metadata = tool.metadata
    if metadata.name is None:
        raise ConfigError(f"a tool has no name ({metadata.description!r}); set the name in its metadata")
    function = {"name": metadata.name, "description": metadata.description, "parameters": _parameters(metadata)}
    return {"type": "function", "function": function}


def with_properties(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """The tools with "properties" in their arguments' schemas, because LlamaIndex reads it when it calls a tool."""
    return [_listing(tool) if isinstance(tool, FunctionTool) else tool for tool in tools]


@dataclass
class _Listing(ToolMetadata):
    parameters: dict[str, Any] = field(default_factory=dict)

    def get_parameters_dict(self) -> dict[str, Any]:
        return self.parameters


def _listing(tool: FunctionTool) -> FunctionTool:
    parameters = _parameters(tool.metadata)
    if type(tool.metadata) is not ToolMetadata or parameters == tool.metadata.get_parameters_dict():
        return tool
    view = copy(tool)
    view._metadata = _Listing(**vars(tool.metadata), parameters={"properties": {}, **parameters})
    return view


def _parameters(metadata: ToolMetadata) -> dict[str, Any]:
    """The schema of a tool's arguments. LlamaIndex drops everything that is not in the top-level "properties"."""
    try:
        given: dict[str, Any] = metadata.get_parameters_dict()
    except AttributeError:
        raise ConfigError(
            f"tool {metadata.name!r} has fn_schema {metadata.fn_schema!r}, expected a pydantic model class"
        ) from None
    if "properties" in given or metadata.fn_schema is None:
        return given
    schema = json_schema(metadata.fn_schema)
    arguments = as_arguments({key: value for key, value in schema.items() if key not in ("title", "description")})
    if arguments.key is not None:
        raise ConfigError(
            f"tool {metadata.name!r} takes {schema!r}, expected an object; put the value into one of its properties"
        )
    return dict(arguments.parameters)


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
                f"it holds a block of type {kind!r}, which this model cannot read; describe it in text, or leave it out"
            )


def _calls(message: ChatMessage) -> Iterator[Mapping[str, Any]]:
    """The message's calls in OpenAI's form. Messages of older integrations have them in `additional_kwargs`."""
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
