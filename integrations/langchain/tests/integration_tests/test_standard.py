"""LangChain's own integration tests of a chat model, on a scripted model: offline, in seconds.

The script provides the judgement. Everything else is real: prompts, grammar, memory, streaming.
"""

from __future__ import annotations

from typing import Any

from langchain_tests.integration_tests import ChatModelIntegrationTests
from scripted_chat import ScriptedCase


class TestStandardIntegration(ScriptedCase, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        # One byte is one token in the scripted model.
        return {"model": "scripted", "store": "memory:", "agent_id": "tester", "max_tokens": 2000}
