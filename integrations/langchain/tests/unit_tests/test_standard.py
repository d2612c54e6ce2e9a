"""LangChain's own unit tests of a chat model."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests
from scripted_chat import ScriptedCase

from langchain_deltamem import ChatDeltaMem


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain allows loading by name, and its "all" lists only packages it knows, so users pass the class."""
    # The package exports a function with the module's name.
    load_module = importlib.import_module("langchain_core.load.load")
    path = tuple(ChatDeltaMem.lc_id())
    known = load_module._get_default_allowed_class_paths("all")
    monkeypatch.setitem(load_module._default_class_paths_cache, "all", known | {path})


class TestStandardUnit(ScriptedCase, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "scripted", "store": "memory:"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"DELTAMEM_MODEL": "scripted-env", "DELTAMEM_STORE": "memory:"},
            {},
            {"model": "scripted-env", "store": "memory:"},
        )
