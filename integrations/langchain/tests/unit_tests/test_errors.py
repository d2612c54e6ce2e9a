"""Errors are caught as the engine's and as LangChain's, and are retried only if that may help."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.exceptions import ContextOverflowError, ModelAPIError, ModelError, ModelInvalidRequestError
from langchain_core.messages import HumanMessage
from scripted_chat import add, scripted, store

from deltamem_agents import (
    ConfigError,
    DeltaMemError,
    GrammarError,
    MessageError,
    StoreError,
    WindowError,
)
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.errors import _KINDS

IMAGE = HumanMessage([{"type": "image", "url": "x"}])


def ways(model: ChatDeltaMem, given: Any, **keywords: Any) -> Any:
    yield lambda: model.invoke(given, **keywords)
    yield lambda: list(model.stream(given, **keywords))
    yield lambda: asyncio.run(model.ainvoke(given, **keywords))
    yield lambda: asyncio.run(_all(model.astream(given, **keywords)))


async def _all(stream: Any) -> None:
    async for _ in stream:
        pass


def test_too_long_a_message_is_both_libraries_error() -> None:
    model = ChatDeltaMem(engine=ScriptedEngine("ok", window_tokens=100), max_tokens=20)
    for error in (ContextOverflowError, WindowError, DeltaMemError, ValueError):
        for way in ways(model, "x" * 200):
            with pytest.raises(error, match="window"):
                way()


def test_an_invalid_request_is_both_libraries_error() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "not": {"const": "y"}}}}
    for given, keywords, error in (
        ([IMAGE], {}, MessageError),
        ("hi", {"top_p": 2}, ConfigError),
        ("hi", {"memory": "rw"}, ConfigError),
        ("hi", {"response_format": "yaml"}, ConfigError),
        ("hi", {"response_format": schema}, GrammarError),
    ):
        for way in ways(scripted(), given, **keywords):
            with pytest.raises(error) as raised:
                way()
            assert isinstance(raised.value, ModelInvalidRequestError) and not raised.value.is_retryable


def test_a_failing_store_fails_the_call_and_may_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(agent_id="ada")

    def full(*_: object, **__: object) -> str:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store(model), "save", full)
    for way in ways(model, "hi"):
        with pytest.raises(StoreError, match="disk is full") as raised:
            way()
        assert isinstance(raised.value, ModelAPIError) and raised.value.is_retryable


def test_every_error_class_belongs_to_both_libraries() -> None:
    for ours, kind in _KINDS.items():
        assert issubclass(kind, ours) and issubclass(kind, ModelError)
        assert str(kind("it says why")) == "it says why"


@pytest.mark.parametrize(("failure", "tries"), [("message", 1), ("store", 2)])
def test_an_agent_retries_only_if_that_may_help(failure: str, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    model = scripted(lambda asked: said.append(asked) or "ok", agent_id="ada")
    genuine = store(model).save

    def once_full(*given: Any, **named: Any) -> str:
        if len(said) == 1:
            raise StoreError("the disk is full")
        return genuine(*given, **named)

    monkeypatch.setattr(store(model), "save", once_full)
    retry = ModelRetryMiddleware(max_retries=3, initial_delay=0, on_failure="error")
    agent = create_agent(model, tools=[add], middleware=[retry])
    if failure == "store":
        assert agent.invoke({"messages": [HumanMessage("hi")]})["messages"][-1].content == "ok"
        assert len(said) == tries and store(model).load("ada").snapshot.counters.turns == 1
        return
    with pytest.raises(MessageError, match="image"):
        agent.invoke({"messages": [IMAGE]})
    assert said == []
