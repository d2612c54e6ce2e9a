"""Scripted chat models, and helpers of the tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from brain import brain
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool

from deltamem_agents.snapshots import Store
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem


@tool
def add(x: int, y: int = 0) -> int:
    """Add two numbers."""
    return x + y


@tool
def clock() -> str:
    """Tell the time."""
    return "noon"


def scripted(script: Any = brain, **fields: Any) -> ChatDeltaMem:
    """A chat model that replies what the script says, with one byte per token and its own store."""
    return ChatDeltaMem(engine=ScriptedEngine(script), **{"max_tokens": 500, **fields})


def store(model: ChatDeltaMem) -> Store:
    assert model.engine is not None
    return model.engine.store


def turns(model: ChatDeltaMem, agent: str) -> int:
    return store(model).load(agent).snapshot.counters.turns


def whole(chunks: Iterable[AIMessageChunk]) -> AIMessageChunk:
    """The sum of a stream's chunks."""
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


class ScriptedCase:
    """The properties that LangChain's own tests ask of a chat model; models of these names are scripted."""

    @property
    def chat_model_class(self) -> type[ChatDeltaMem]:
        return ChatDeltaMem

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "scripted-b"
