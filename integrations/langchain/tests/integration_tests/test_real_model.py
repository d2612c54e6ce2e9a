"""LangChain's own integration tests on SmolLM2-135M-Instruct: validity comes from the grammar, judgement does not."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ChatModelIntegrationTests

from deltamem_agents import AdapterError, DeltaMemEngine
from langchain_deltamem import ChatDeltaMem

pytestmark = pytest.mark.model


@cache
def _engine() -> DeltaMemEngine:
    adapter = os.environ.get("DELTAMEM_TEST_ADAPTER")
    try:
        return DeltaMemEngine.from_pretrained("smollm2-135m-instruct", adapter=adapter, store="memory:", progress=False)
    except AdapterError as error:
        pytest.skip(f"no adapter for the embedded model: {error}")


class TestRealModel(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatDeltaMem]:
        return ChatDeltaMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": _engine(), "max_tokens": 64}

    @property
    def supports_json_mode(self) -> bool:
        return True
