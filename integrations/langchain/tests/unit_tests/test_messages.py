"""Histories of all providers are converted; content that is not text is refused with an error that names it."""

from __future__ import annotations

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from deltamem_agents import MessageError
from langchain_deltamem.messages import to_messages


def test_an_openai_conversation_converts() -> None:
    call = {"name": "f", "args": {"x": 1}, "id": "c1", "type": "tool_call"}
    converted = to_messages(
        [
            SystemMessage("Be kind."),
            HumanMessage([{"type": "text", "text": "Hello "}, "there"]),
            AIMessage("", tool_calls=[call]),
            ToolMessage([{"type": "text", "text": "4"}], tool_call_id="c1"),
            AIMessage([{"type": "reasoning", "summary": []}, {"type": "text", "text": "Four."}]),
        ]
    )
    assert [m.role for m in converted] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m.content for m in converted] == ["Be kind.", "Hello there", "", "4", "Four."]
    assert converted[2].tool_calls[0].arguments == {"x": 1}
    assert (converted[3].tool_call_id, converted[3].name) == ("c1", "f")


def test_an_anthropic_conversation_converts() -> None:
    use = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "no"}], "is_error": True}
    converted = to_messages(
        [
            AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Let me see."}, use]),
            HumanMessage([result, {"type": "text", "text": "Well?"}]),
            AIMessage([use], tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c1"}]),
        ]
    )
    assert [(m.role, m.content) for m in converted] == [
        ("assistant", "Let me see."),
        ("tool", "Error: no"),
        ("user", "Well?"),
        ("assistant", ""),
    ]
    assert converted[0].tool_calls == converted[3].tool_calls and converted[1].name == "f"


def test_calls_to_other_providers_servers_are_left_out() -> None:
    kinds = ("web_search_call", "server_tool_use", "web_search_tool_result", "code_execution_result", "thinking")
    (message,) = to_messages([AIMessage([*({"type": kind} for kind in kinds), {"type": "text", "text": "Rain."}])])
    assert (message.content, message.tool_calls) == ("Rain.", ())


def test_calls_in_additional_kwargs_are_converted() -> None:
    old = AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": '{"x": 1}'}})
    blocks = AIMessage([{"type": "function_call", "name": "f", "arguments": '{"x": 1}', "call_id": "c1"}])
    for message in to_messages([old, blocks]):
        assert [(call.name, call.arguments) for call in message.tool_calls] == [("f", {"x": 1})]


def test_a_failed_tools_result_starts_with_error_once() -> None:
    for text in ("no such city", "Error: no such city"):
        (message,) = to_messages([ToolMessage(text, tool_call_id="c", status="error")])
        assert message.content == "Error: no such city"


def test_other_message_types_get_their_role() -> None:
    converted = to_messages(
        [
            ChatMessage("a", role="user"),
            ChatMessage("b", role="developer"),
            FunctionMessage("c", name="f"),
            HumanMessage(""),
        ]
    )
    assert [m.role for m in converted] == ["user", "system", "tool", "user"] and converted[2].name == "f"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}]), "image_url"),
        (HumanMessage([{"type": "text", "text": "See:"}, {"type": "image", "base64": "x"}]), "image"),
        (HumanMessage([{"type": "input_audio", "input_audio": {}}]), "input_audio"),
        (HumanMessage([{"type": "file", "file": {}}]), "file"),
        (ToolMessage([{"type": "image", "url": "x"}], tool_call_id="c"), "image"),
        (AIMessage([{"type": "audio", "url": "x"}]), "audio"),
    ],
)
def test_media_are_refused_by_name(message: BaseMessage, kind: str) -> None:
    with pytest.raises(MessageError, match=rf"message 1 .*'{kind}'"):
        to_messages([HumanMessage("Hi."), message])


def test_messages_that_are_not_part_of_a_conversation_are_refused() -> None:
    with pytest.raises(MessageError, match="RemoveMessage"):
        to_messages([RemoveMessage("x")])
    with pytest.raises(MessageError, match="'robot'"):
        to_messages([ChatMessage("a", role="robot")])
    with pytest.raises(MessageError, match="arguments"):
        to_messages([AIMessage([{"type": "tool_use", "name": "f", "input": "{no"}])])
