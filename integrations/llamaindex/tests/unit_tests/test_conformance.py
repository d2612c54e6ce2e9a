"""The conformance suite on the scripted model and on LlamaIndex's mock: it tests the interface, not this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import BaseTool

from llama_index.llms.deltamem import DeltaMemLLM
from llama_index.llms.deltamem.conformance import City, LLMConformance


class TestWithoutAnAgent(LLMConformance):
    def make_llm(self) -> FunctionCallingLLM:
        # The scripted model has one token per byte.
        return DeltaMemLLM(model="scripted", store="memory:", max_tokens=500)


class TestWithAnAgent(LLMConformance):
    """The same tests with a memory that is written."""

    def make_llm(self) -> FunctionCallingLLM:
        # Each has its own store URL, because an open store cannot be serialised.
        return DeltaMemLLM(model="scripted", store="memory:", max_tokens=500).for_agent("ada")


def obliging(messages: Sequence[ChatMessage], tools: Sequence[BaseTool] = (), **_: Any) -> ChatMessage:
    """Calls the first tool, and replies with its result."""
    if not tools or messages[-1].role == MessageRole.TOOL:
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"You said: {messages[-1].content}")
    city = {"name": "Paris", "people": 2}
    given = city if tools[0].metadata.name == City.__name__ else {"city": "Paris"}
    call = ToolCallBlock(tool_call_id="1", tool_name=tools[0].metadata.get_name(), tool_kwargs=given)
    # LlamaIndex reads streamed objects from the text if `additional_kwargs` has no calls.
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=json.dumps(given)), call])


class TestMock(LLMConformance):
    """LlamaIndex's mock with the same judgement. The tests that it fails are its own faults."""

    def make_llm(self) -> FunctionCallingLLM:
        return MockFunctionCallingLLM(response_generator=obliging, is_chat_model=True)

    @pytest.mark.slow
    @pytest.mark.xfail(reason="the mock writes down one of its functions, which is not JSON")
    def test_it_is_written_down_and_read_back(self) -> None:
        super().test_it_is_written_down_and_read_back()

    @pytest.mark.xfail(reason="the mock ignores error_on_no_tool_call")
    def test_a_reply_without_calls_is_an_error_where_one_is_needed(self) -> None:
        super().test_a_reply_without_calls_is_an_error_where_one_is_needed()

    def test_each_call_is_one_event_of_the_callbacks(
        self, method: str, way: str, request: pytest.FixtureRequest
    ) -> None:
        expect_double_events(request, method, way)
        super().test_each_call_is_one_event_of_the_callbacks(method, way)

    def test_each_call_begins_and_ends_for_the_instruments(
        self, method: str, way: str, request: pytest.FixtureRequest
    ) -> None:
        expect_double_events(request, method, way)
        super().test_each_call_begins_and_ends_for_the_instruments(method, way)


def expect_double_events(request: pytest.FixtureRequest, method: str, way: str) -> None:
    if (method, way) == ("chat", "async"):
        reason = "the mock's achat calls its chat, and both report themselves"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


class Silent(LLMConformance):
    """An LLM that returns empty replies, to check that the suite fails it."""

    def make_llm(self) -> FunctionCallingLLM:
        silence = ChatMessage(role=MessageRole.ASSISTANT, content="")
        return MockFunctionCallingLLM(response_generator=lambda messages, **_: silence, is_chat_model=True)


@pytest.mark.parametrize("way", ["sync", "stream", "async", "astream"])
def test_the_suite_fails_an_llm_that_breaks_its_laws(way: str) -> None:
    for law in (
        Silent().test_a_reply_is_text_of_the_assistant,
        Silent().test_a_required_tool_is_called_as_its_schema_says,
        Silent().test_a_tools_result_is_answered,
        Silent().test_an_object_is_predicted,
    ):
        with pytest.raises((AssertionError, ValueError)):
            law(way)
