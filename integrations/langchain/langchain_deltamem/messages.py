"""Converts LangChain's messages to the engine's. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from deltamem_agents import Message, MessageError, ToolCall
from deltamem_agents.bridges.dialects import ROLE_NAMES, tool_result

_CALL_BLOCKS = ("tool_use", "tool_call", "tool_call_chunk", "function_call")
# Reasoning of other providers' models, and calls to those providers' own servers, are not part of the conversation.
_UNSAID_BLOCKS = (
    "thinking",
    "redacted_thinking",
    "reasoning",
    "reasoning_content",
    "server_tool_use",
    "server_tool_call",
    "server_tool_call_chunk",
    "server_tool_result",
    "mcp_tool_use",
    "mcp_call",
    "mcp_list_tools",
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "executable_code",
    "code_execution_result",
    "invalid_tool_call",
    "cachePoint",
    "cache_point",
)
_UNSAID_ENDING = "_tool_result"


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Converts a conversation for the engine, in order.

    Tool calls, results and failed results of all providers are converted. Names of human speakers and message ids are
    dropped. Raises MessageError that names the message and the block that cannot be converted to text.
    """
    names: dict[str, str] = {}
    converted: list[Message] = []
    for position, message in enumerate(messages):
        try:
            for each in _converted(message, names):
                names.update({call.id: call.name for call in each.tool_calls})
                converted.append(each)
        except MessageError as error:
            raise MessageError(f"message {position} ({message.type}): {error}") from None
    return converted


def _converted(message: BaseMessage, names: Mapping[str, str]) -> Iterator[Message]:
    if isinstance(message, AIMessage):
        yield Message("assistant", _text(message.content), tuple(_calls(message)))
    elif isinstance(message, ToolMessage):
        yield _result(_text(message.content), message.tool_call_id, message.name, message.status == "error", names)
    elif isinstance(message, FunctionMessage):
        yield Message("tool", _text(message.content), name=message.name)
    elif isinstance(message, HumanMessage):
        blocks = message.content if isinstance(message.content, list) else [message.content]
        results = [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "tool_result"]
        for block in results:
            text = _text(block.get("content") or "")
            yield _result(text, str(block.get("tool_use_id") or ""), None, bool(block.get("is_error")), names)
        rest = [block for block in blocks if block not in results]
        if rest or not results:
            yield Message("user", _text(rest))
    elif isinstance(message, SystemMessage):
        yield Message("system", _text(message.content))
    elif isinstance(message, ChatMessage) and message.role in ROLE_NAMES:
        yield Message(ROLE_NAMES[message.role], _text(message.content))
    else:
        role = f" of role {message.role!r}" if isinstance(message, ChatMessage) else ""
        raise MessageError(
            f"{type(message).__name__}{role} is not part of a conversation; use system, human, AI or tool messages"
        )


def _result(text: str, call: str, name: str | None, failed: bool, names: Mapping[str, str]) -> Message:
    return tool_result(text, call_id=call, name=name or names.get(call), failed=failed)


def _calls(message: AIMessage) -> Iterator[ToolCall]:
    """The message's calls. Other providers' messages may have them only in the content or in `additional_kwargs`."""
    if message.tool_calls:
        for call in message.tool_calls:
            yield ToolCall(call["name"], call["args"], call.get("id") or "")
        return
    for block in message.content if isinstance(message.content, list) else ():
        if isinstance(block, Mapping) and block.get("type") in _CALL_BLOCKS and isinstance(block.get("name"), str):
            arguments = block.get("input", block.get("args", block.get("arguments")))
            yield ToolCall(block["name"], _arguments(arguments), str(block.get("call_id") or block.get("id") or ""))
    function = message.additional_kwargs.get("function_call")
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        yield ToolCall(function["name"], _arguments(function.get("arguments")))


def _arguments(arguments: object) -> Mapping[str, Any]:
    read: object = arguments or {}
    if isinstance(read, str):
        with suppress(ValueError):
            read = json.loads(read)
    if not isinstance(read, Mapping):
        raise MessageError(f"a tool call has arguments {arguments!r}, expected a JSON object")
    return read


def _text(content: str | Sequence[str | Mapping[str, Any]]) -> str:
    blocks = [content] if isinstance(content, str) else content
    return "".join(filter(None, map(_block_text, blocks)))


def _block_text(block: str | Mapping[str, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type", "text")
    if kind in ("text", "output_text", "input_text", "text-plain") and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == "refusal":
        return str(block.get("refusal", ""))
    if kind == "json":
        return json.dumps(block.get("json"), ensure_ascii=False)
    if kind in _CALL_BLOCKS or kind in _UNSAID_BLOCKS or str(kind).endswith(_UNSAID_ENDING):
        return ""
    raise MessageError(
        f"it holds a block of type {kind!r}, which this model cannot read; describe it in text, or leave it out"
    )
