"""Laws of an agent's structured response: the object, or an error that says why there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from scripted_chat import add

from deltamem_agents import Message, ReplyCutOffError, ToolCall
from deltamem_agents.testing import Asked, ScriptedEngine
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware

pytest.importorskip("llguidance")


class Trip(BaseModel):
    place: str
    note: str


TRIP = Trip(place="Bergen", note="by sea, in the long light of an evening in June")
CALLED = Message("assistant", "", (ToolCall("Trip", TRIP.model_dump()),))
TOLD = json.dumps(TRIP.model_dump())
SAID = {"messages": [HumanMessage("hi")]}

# How the agent requests the object, and the model's reply. For a plain class LangChain chooses one of the two.
STRATEGIES: dict[str, tuple[Any, Message | str]] = {
    "ToolStrategy": (ToolStrategy(Trip), CALLED),
    "ToolStrategy that retries": (ToolStrategy(Trip, handle_errors="Once more."), CALLED),
    "ProviderStrategy": (ProviderStrategy(Trip), TOLD),
    "a class": (Trip, TOLD),
    "a JSON schema": (Trip.model_json_schema(), TOLD),
}


async def _last(stream: Any) -> Any:
    return [state async for state in stream][-1]


WAYS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda agent: agent.invoke(SAID),
    "ainvoke": lambda agent: asyncio.run(agent.ainvoke(SAID)),
    "stream": lambda agent: list(agent.stream(SAID, stream_mode="values"))[-1],
    "astream": lambda agent: asyncio.run(_last(agent.astream(SAID, stream_mode="values"))),
    "stream of messages": lambda agent: list(agent.stream(SAID, stream_mode=["messages", "values"]))[-1][1],
}
COMBINED = [
    (name, way, tools)
    for place, (name, way) in enumerate(product(STRATEGIES, WAYS))
    for tools in [([], [add])[(place + place // len(WAYS)) % 2]]
]


def counting(reply: Message | str) -> tuple[ScriptedEngine, list[Asked]]:
    asked: list[Asked] = []

    def script(question: Asked) -> Message | str:
        asked.append(question)
        return reply

    return ScriptedEngine(script), asked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way", "tools"), COMBINED)
def test_a_truncated_structured_response_raises_an_error_at_once(name: str, way: str, tools: list[Any]) -> None:
    response_format, reply = STRATEGIES[name]
    for room in (1, 30, 50):
        engine, asked = counting(reply)
        agent = create_agent(ChatDeltaMem(engine=engine, max_tokens=room), tools=tools, response_format=response_format)
        with pytest.raises(ReplyCutOffError, match=rf"after {room} tokens.*raise max_tokens") as raised:
            WAYS[way](agent)
        assert isinstance(raised.value, OutputParserException) and len(asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way", "tools"), COMBINED)
def test_a_structured_response_with_room_is_the_object(name: str, way: str, tools: list[Any]) -> None:
    response_format, reply = STRATEGIES[name]
    engine, asked = counting(reply)
    agent = create_agent(ChatDeltaMem(engine=engine, max_tokens=500), tools=tools, response_format=response_format)
    response = WAYS[way](agent)["structured_response"]
    assert (response if isinstance(response, Trip) else Trip(**response)) == TRIP and len(asked) == 1


def test_a_truncated_call_of_another_tool_raises_an_error_too() -> None:
    for response_format in (ToolStrategy(Trip), ProviderStrategy(Trip)):
        engine = ScriptedEngine(Message("assistant", "", (ToolCall("add", {"x": 10**30}),)))
        agent = create_agent(ChatDeltaMem(engine=engine, max_tokens=20), tools=[add], response_format=response_format)
        with pytest.raises(ReplyCutOffError, match="after 20 tokens"):
            agent.invoke(SAID)


def test_a_truncated_response_is_not_in_the_checkpoints_memory() -> None:
    engine, _ = counting(CALLED)
    kept: Any = {"middleware": [DeltaMemMiddleware()], "checkpointer": InMemorySaver()}
    small, large = (
        create_agent(ChatDeltaMem(engine=engine, max_tokens=room), response_format=ToolStrategy(Trip), **kept)
        for room in (30, 500)
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(ReplyCutOffError):
        small.invoke(SAID, thread)
    # The message is in the checkpoint, so the run is resumed without sending it again.
    resumed = large.invoke(None, thread)
    assert resumed["structured_response"] == TRIP
    said = [message for message in resumed["messages"] if message.type == "ai"]
    assert [message.response_metadata["deltamem"]["messages_written"] for message in said] == [2]


def test_an_agent_without_a_structured_response_ends_with_the_truncated_call() -> None:
    engine = ScriptedEngine(Message("assistant", "", (ToolCall("add", {"x": 10**30}),)))
    last = create_agent(ChatDeltaMem(engine=engine, max_tokens=20), tools=[add]).invoke(SAID)["messages"][-1]
    assert not last.tool_calls and "max_tokens" in last.invalid_tool_calls[0]["error"]
