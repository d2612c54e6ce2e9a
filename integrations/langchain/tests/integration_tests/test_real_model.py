"""LangChain's own integration tests on SmolLM2-135M-Instruct: validity comes from the grammar, judgement does not."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from real_engine import in_usual_precision, real_engine
from scripted_chat import clock

from langchain_deltamem import ChatDeltaMem

pytestmark = [pytest.mark.model, pytest.mark.slow, in_usual_precision]


@wrap_model_call
def _call_first(request: Any, handler: Any) -> Any:
    return handler(request.override(tool_choice="any") if request.messages[-1].type == "human" else request)


def test_a_tool_loop_ends() -> None:
    agent = create_agent(ChatDeltaMem(engine=real_engine(), max_tokens=64), tools=[clock], middleware=[_call_first])
    said = agent.invoke({"messages": [("user", "What time is it?")]}, {"recursion_limit": 10})["messages"]
    assert [message.type for message in said[:3]] == ["human", "ai", "tool"] and said[2].content == "noon"
    assert said[-1].type == "ai" and said[-1].text and not said[-1].tool_calls


class TestRealModel(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatDeltaMem]:
        return ChatDeltaMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": real_engine(), "max_tokens": 64}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.xfail(reason="135M parameters rarely choose to call a tool they may leave alone", strict=False)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(
        reason="JSON mode forces no schema, and with the memory off too the model leaves a field out", strict=False
    )
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @pytest.mark.xfail(reason="135M parameters copy Chinese characters only by luck", strict=False)
    def test_unicode_tool_call_integration(
        self,
        model: BaseChatModel,
        *,
        tool_choice: str | None = None,
        force_tool_call: bool = True,
    ) -> None:
        super().test_unicode_tool_call_integration(model, tool_choice=tool_choice, force_tool_call=force_tool_call)
