"""Histories of all providers are converted; content that is not text is refused with an error that names it."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from deltamem_agents import MessageError
from llama_index.llms.deltamem.messages import to_messages, to_tools, tool_schema


def said(role: str, *blocks: Any, **beside: Any) -> ChatMessage:
    return ChatMessage(
        role=role,
        blocks=[TextBlock(text=block) if isinstance(block, str) else block for block in blocks],
        additional_kwargs=beside,
    )


def test_a_tool_loop_converts() -> None:
    converted = to_messages(
        [
            said("system", "Be kind."),
            said("user", "Hello", "there"),
            said("assistant", ToolCallBlock(tool_call_id="c1", tool_name="f", tool_kwargs={"x": 1})),
            said("tool", "4", tool_call_id="c1"),
            said("assistant", ThinkingBlock(content="hm"), "Four."),
        ]
    )
    assert [m.role for m in converted] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m.content for m in converted] == ["Be kind.", "Hello\nthere", "", "4", "Four."]
    assert converted[2].tool_calls[0].arguments == {"x": 1} and converted[2].tool_calls[0].id == "c1"
    assert (converted[3].tool_call_id, converted[3].name) == ("c1", "f")


def test_calls_in_additional_kwargs_are_converted() -> None:
    class Function(BaseModel):
        name: str = "f"
        arguments: str = '{"x": 1}'

    class Call(BaseModel):
        id: str = "c"
        function: Function = Function()

    selection = ToolSelection(tool_id="c", tool_name="f", tool_kwargs={"x": 1})
    for call in (Call(), Call().model_dump(), selection, {"id": "c", "name": "f", "arguments": {"x": 1}}):
        (converted,) = to_messages([said("assistant", tool_calls=[call])])
        (made,) = converted.tool_calls
        assert (made.name, made.arguments, made.id) == ("f", {"x": 1}, "c")


def test_calls_given_twice_count_once() -> None:
    block = ToolCallBlock(tool_call_id="c", tool_name="f", tool_kwargs='{"x": 1}')
    beside = {"id": "c", "function": {"name": "f", "arguments": '{"x": 1}'}}
    (converted,) = to_messages([said("assistant", block, tool_calls=[beside])])
    assert [call.arguments for call in converted.tool_calls] == [{"x": 1}]


def test_other_roles_and_blocks_are_converted() -> None:
    cited = CitationBlock(cited_content="x", source="s", title="t", additional_location_info={})
    cite = CitableBlock(title="t", source="s", content="Facts.")
    cache = CachePoint(cache_control=CacheControl(type="ephemeral"))
    converted = to_messages(
        [
            said("developer", "a"),
            said("function", "b", name="f"),
            said("chatbot", "c", cited),
            said("model", "d"),
            said("user", cite, cache, "Well?"),
            said("user"),
        ]
    )
    assert [m.role for m in converted] == ["system", "tool", "assistant", "assistant", "user", "user"]
    assert [m.content for m in converted] == ["a", "b", "c", "d", "Facts.\nWell?", ""] and converted[1].name == "f"


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (ImageBlock(url="http://x/y.png"), "image"),
        (AudioBlock(audio=b"x"), "audio"),
        (VideoBlock(url="http://x/y.mp4"), "video"),
        (DocumentBlock(data=b"x"), "document"),
        (CitableBlock(title="t", source="s", content=[ImageBlock(url="http://x/y.png")]), "image"),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_media_are_refused_by_name(block: Any, kind: str, role: str) -> None:
    with pytest.raises(MessageError, match=rf"message 1 \({role}\).*'{kind}'"):
        to_messages([said("user", "Hi."), said(role, "See:", block)])


def test_a_call_without_readable_arguments_is_refused() -> None:
    with pytest.raises(MessageError, match=r"message 0 \(assistant\): tool call 'f' has arguments"):
        to_messages([said("assistant", ToolCallBlock(tool_name="f", tool_kwargs="{no"))])


def test_tools_convert_whether_as_objects_or_as_traced() -> None:
    def add(x: int, y: int = 2) -> int:
        """Add two numbers."""
        return x + y

    tool = FunctionTool.from_defaults(add, description="long " * 400)
    (as_object,), (as_json,) = to_tools([tool]), to_tools([tool_schema(tool)])
    assert as_object == as_json and as_object.name == "add" and as_object.description.startswith("long")
    assert as_object.parameters["required"] == ["x"]
