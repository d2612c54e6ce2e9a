"""Tools and schemas: a grammar enforces them, whatever the model would reply without it."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import ToolMessage
from pydantic import BaseModel
from scripted_chat import add, clock, scripted, whole

from deltamem_agents import ConfigError, Message, ToolCall
from deltamem_agents.testing import Asked

BOTH = Message("assistant", "", (ToolCall("add", {"x": 1}), ToolCall("clock", {})))


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


class JokeDict(TypedDict):
    """A joke."""

    setup: str
    punchline: str


@pytest.mark.parametrize("choice", ["any", "required", True, "add", {"type": "function", "function": {"name": "add"}}])
def test_a_required_call_is_made_whatever_the_model_would_reply(choice: Any) -> None:
    model = scripted("I would rather talk.").bind_tools([add], tool_choice=choice)
    for reply in (model.invoke("hi"), whole(model.stream("hi")), asyncio.run(model.ainvoke("hi"))):
        (call,) = reply.tool_calls
        assert call["name"] == "add" and isinstance(call["args"]["x"], int)
        assert reply.response_metadata["finish_reason"] == "tool_calls"


def test_auto_and_none_allow_a_reply_in_words() -> None:
    talk = scripted("I would rather talk.")
    for choice in (None, False, "auto", "none"):
        assert talk.bind_tools([add], tool_choice=choice).invoke("hi").content == "I would rather talk."
    assert scripted(BOTH).bind_tools([add, clock], tool_choice="none").invoke("hi").tool_calls == []


@pytest.mark.parametrize(
    ("choice", "parallel", "calls"),
    [("auto", None, 2), ("auto", True, 2), ("any", True, 2), ("any", None, 1), ("any", False, 1), ("add", True, 1)],
)
def test_without_parallel_calls_there_is_one(choice: str, parallel: bool | None, calls: int) -> None:
    bound = scripted(BOTH).bind_tools([add, clock], tool_choice=choice, parallel_tool_calls=parallel)
    assert len(bound.invoke("hi").tool_calls) == calls


def test_an_unknown_tool_choice_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'fax'.*'add'"):
        scripted().bind_tools([add], tool_choice="fax")
    with pytest.raises(ConfigError, match="tool_choice"):
        scripted().bind_tools([add], tool_choice=3)


@pytest.mark.slow
def test_a_stop_string_does_not_end_a_call() -> None:
    model = scripted(BOTH, stop=["\n"]).bind_tools([add, clock])
    assert len(model.invoke("hi").tool_calls) == len(whole(model.stream("hi")).tool_calls) == 2


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", [Joke, JokeDict, Joke.model_json_schema()])
def test_structured_output_fits_whatever_the_model_would_reply(method: Any, schema: Any) -> None:
    chain = scripted("No jokes today.").with_structured_output(schema, method=method)
    for value in (chain.invoke("A joke!"), list(chain.stream("A joke!"))[-1], asyncio.run(chain.ainvoke("A joke!"))):
        found = value.model_dump() if isinstance(value, BaseModel) else value
        assert found.keys() == {"setup", "punchline"}
        assert isinstance(value, Joke) == (schema is Joke)


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_include_raw_returns_the_message(method: Any) -> None:
    said = scripted().with_structured_output(Joke, method=method, include_raw=True).invoke("A joke as JSON!")
    assert isinstance(said["parsed"], Joke) and said["parsing_error"] is None
    assert said["raw"].response_metadata["deltamem"]["agent"] is None


def test_json_mode_without_a_schema_allows_any_object() -> None:
    assert scripted("No jokes today.").with_structured_output(None, method="json_mode").invoke("A joke!") == {}
    assert isinstance(scripted("x").with_structured_output(Joke, method="json_mode").invoke("A joke!"), Joke)


def test_structured_output_refuses_unknown_methods_and_schemas() -> None:
    with pytest.raises(ConfigError, match="method"):
        scripted().with_structured_output(Joke, method="xml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schema"):
        scripted().with_structured_output(None)


@pytest.mark.parametrize("strategy", [Joke, ProviderStrategy(Joke), ToolStrategy(Joke)])
def test_an_agent_answers_in_the_requested_form(strategy: Any) -> None:
    agent = create_agent(scripted("No jokes today.", agent_id="ada"), response_format=strategy)
    assert isinstance(agent.invoke({"messages": [("user", "A joke!")]})["structured_response"], Joke)


def test_results_and_failures_of_tools_are_shown_to_the_model() -> None:
    seen: list[Asked] = []

    def script(asked: Asked) -> Message | str:
        seen.append(asked)
        return BOTH if asked.messages[-1].role == "user" else "done"

    model = scripted(script).bind_tools([add, clock])
    reply = model.invoke("go")
    first, second = reply.tool_calls
    results = [
        ToolMessage("1", tool_call_id=first["id"]),
        ToolMessage("no such clock", tool_call_id=second["id"], status="error"),
    ]
    assert model.invoke([("user", "go"), reply, *results]).content == "done"
    assert [(m.name, m.content) for m in seen[-1].messages[-2:]] == [("add", "1"), ("clock", "Error: no such clock")]
