"""Chat models on a script, and what tests ask of them."""

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
    """A chat model that says what the script says, one byte a token, over a store of its own."""
    return ChatDeltaMem(engine=ScriptedEngine(script), **{"max_tokens": 500, **fields})


def store(model: ChatDeltaMem) -> Store:
    assert model.engine is not None
    return model.engine.store


def turns(model: ChatDeltaMem, agent: str) -> int:
    return store(model).load(agent).snapshot.counters.turns


def whole(chunks: Iterable[AIMessageChunk]) -> AIMessageChunk:
    """What a stream adds up to."""
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


class ScriptedCase:
    """What LangChain's own tests are told of the chat model; models of these names are scripted."""

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
