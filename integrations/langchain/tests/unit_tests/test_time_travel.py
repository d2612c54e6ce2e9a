"""Laws of identity in LangGraph: an agent named by a run stays with the run's checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brain import brain
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage, RemoveMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem

ADA: Any = {"configurable": {"thread_id": "t", "deltamem_agent_id": "ada"}}
KEYLESS: Any = {"configurable": {"thread_id": "t"}}


def says(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


@pytest.fixture
def model() -> ChatDeltaMem:
    return ChatDeltaMem(engine=ScriptedEngine(brain), max_tokens=500)


def agents(model: ChatDeltaMem) -> list[str]:
    assert model.engine is not None
    return model.engine.store.agents()


def turns(model: ChatDeltaMem, agent: str = "ada") -> int:
    assert model.engine is not None
    return len(model.engine.store.moves(agent))


def plain(model: ChatDeltaMem, saver: Any) -> Any:
    """A node that calls the model as in LangGraph's tutorials."""

    def chatbot(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return StateGraph(MessagesState).add_node(chatbot).add_edge(START, "chatbot").compile(checkpointer=saver)


def passing_config(model: ChatDeltaMem, saver: Any) -> Any:
    """A node that passes the config on to a chain."""

    def chatbot(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        chain = ChatPromptTemplate.from_messages([("placeholder", "{messages}")]) | model
        return {"messages": [chain.invoke({"messages": state["messages"]}, config)]}

    return StateGraph(MessagesState).add_node(chatbot).add_edge(START, "chatbot").compile(checkpointer=saver)


def nested(model: ChatDeltaMem, saver: Any) -> Any:
    """A node with the model inside a sub-graph."""
    inner = create_agent(model, name="inner")
    return StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile(checkpointer=saver)


GRAPHS: dict[str, Callable[[ChatDeltaMem, Any], Any]] = {
    "create_agent": lambda model, saver: create_agent(model, checkpointer=saver),
    "plain node": plain,
    "config passed on": passing_config,
    "sub-graph": nested,
    "with_config": lambda model, saver: create_agent(model, checkpointer=saver).with_config(tags=["x"]),
}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest, model: ChatDeltaMem) -> Any:
    return GRAPHS[request.param](model, InMemorySaver())


def history(graph: Any) -> list[Any]:
    """The states of the thread, newest first."""
    return list(graph.get_state_history(KEYLESS))


def test_time_travel_without_the_id_stays_with_the_agent(graph: Any, model: ChatDeltaMem) -> None:
    graph.invoke(says("I live in Oslo."), ADA)
    graph.invoke(says("My cat is Miu."), ADA)
    for past in [state for state in history(graph) if state.next]:
        done = graph.invoke(None, past.config)
        assert done["messages"][-1].response_metadata["deltamem"]["agent"] == "ada", past.metadata
    assert agents(model) == ["ada"]


def test_a_message_at_a_past_checkpoint_goes_to_its_agent(graph: Any, model: ChatDeltaMem) -> None:
    graph.invoke(says("I live in Oslo."), ADA)
    past = graph.get_state(KEYLESS)
    graph.invoke(says("My cat is Miu."), ADA)
    graph.invoke(says("My dog is Rex."), past.config)
    forked = graph.update_state(past.config, says("I moved to Rome."))
    graph.invoke(says("And now?"), forked)
    assert agents(model) == ["ada"] and turns(model) == 4


def test_an_edited_question_is_answered_from_the_agents_memory(graph: Any, model: ChatDeltaMem) -> None:
    graph.invoke(says("I live in Oslo."), ADA)
    (first,) = [state for state in history(graph) if state.next and state.values["messages"] and state.next[0] != START]
    asked = first.values["messages"][0]
    forked = graph.update_state(first.config, {"messages": [HumanMessage("I live in Rome.", id=asked.id)]})
    done = graph.invoke(None, forked)
    assert done["messages"][-1].content == "You said: I live in Rome."
    assert agents(model) == ["ada"]


@pytest.mark.slow
def test_a_thread_continued_many_times_without_the_id_stays_with_the_agent(graph: Any, model: ChatDeltaMem) -> None:
    graph.invoke(says("I live in Oslo."), ADA)
    # Each turn makes three checkpoints, and the newest 32 are searched.
    for number in range(12):
        graph.invoke(says(f"Fact {number}."), KEYLESS)
    assert agents(model) == ["ada"] and turns(model) == 13


def test_without_any_reply_the_checkpoints_name_the_agent(graph: Any, model: ChatDeltaMem) -> None:
    said = graph.invoke(says("I live in Oslo."), ADA)["messages"]
    graph.update_state(KEYLESS, {"messages": [RemoveMessage(message.id) for message in said]})
    graph.invoke(says("My cat is Miu."), KEYLESS)
    assert agents(model) == ["ada"]


def test_a_thread_that_is_its_own_agent_travels_as_before(graph: Any, model: ChatDeltaMem) -> None:
    graph.invoke(says("I live in Oslo."), KEYLESS)
    past = graph.get_state(KEYLESS).config
    graph.invoke(says("My cat is Miu."), KEYLESS)
    graph.invoke(says("I moved to Rome."), past)
    graph.invoke(None, history(graph)[-2].config)
    (agent,) = agents(model)
    assert agent.startswith("thread:t")


def test_an_id_named_by_a_later_run_is_used(graph: Any, model: ChatDeltaMem) -> None:
    graph.invoke(says("I live in Oslo."), ADA)
    graph.invoke(says("I am Bob."), {"configurable": {"thread_id": "t", "deltamem_agent_id": "bob"}})
    graph.invoke(says("Who am I?"), KEYLESS)
    assert agents(model) == ["ada", "bob"] and turns(model, "bob") == 2


def test_another_thread_is_another_agent(graph: Any, model: ChatDeltaMem) -> None:
    said = graph.invoke(says("I live in Oslo."), ADA)["messages"]
    graph.invoke({"messages": [*said, HumanMessage("And I?")]}, {"configurable": {"thread_id": "u"}})
    assert [agent.split("#")[0] for agent in agents(model)] == ["ada", "thread:u"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_checkpoints_name_their_agent_with_every_durability_mode(durability: Any, model: ChatDeltaMem) -> None:
    graph = create_agent(model, checkpointer=InMemorySaver())
    said = graph.invoke(says("I live in Oslo."), ADA, durability=durability)["messages"]
    past = graph.get_state(KEYLESS).config
    emptied = graph.update_state(past, {"messages": [RemoveMessage(message.id) for message in said]})
    graph.invoke(says("I am Bob."), {"configurable": {"thread_id": "t", "deltamem_agent_id": "bob"}})
    graph.invoke(says("My cat is Miu."), emptied, durability=durability)
    assert turns(model) == 2 and agents(model) == ["ada", "bob"]


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def test_a_run_resumed_without_the_id_stays_with_the_agent(model: ChatDeltaMem) -> None:
    approval = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    graph = create_agent(model, tools=[get_weather], middleware=[approval], checkpointer=InMemorySaver())
    graph.invoke(says("How is the weather in Paris?"), ADA)
    done = graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), KEYLESS)
    assert done["messages"][-1].content == "It is sunny in Paris." and agents(model) == ["ada"]


def test_an_interrupt_before_the_first_reply_keeps_the_agent(model: ChatDeltaMem) -> None:
    def chatbot(state: MessagesState) -> dict[str, Any]:
        name = interrupt("Who are you?")
        return {"messages": [model.invoke([*state["messages"], HumanMessage(f"I am {name}.")])]}

    built = StateGraph(MessagesState).add_node(chatbot).add_edge(START, "chatbot")
    graph = built.compile(checkpointer=InMemorySaver())
    graph.invoke(says("Hello."), ADA)
    graph.invoke(Command(resume="Ada"), KEYLESS)
    assert agents(model) == ["ada"]


def test_graphs_in_one_batch_keep_their_agents(model: ChatDeltaMem) -> None:
    graph = create_agent(model, checkpointer=InMemorySaver())
    names = ["ada", "bob", "cy"]
    keyed: Any = [{"configurable": {"thread_id": f"of {name}", "deltamem_agent_id": name}} for name in names]
    keyless: Any = [{"configurable": {"thread_id": f"of {name}"}} for name in names]
    graph.batch([says(f"I am {name}.") for name in names], keyed)
    graph.batch([says("Who am I?") for _ in names], keyless)
    assert agents(model) == names and [turns(model, name) for name in names] == [2, 2, 2]


def test_a_graph_with_the_id_in_its_own_config_needs_it_in_no_call(model: ChatDeltaMem) -> None:
    graph = create_agent(model, checkpointer=InMemorySaver()).with_config(configurable={"deltamem_agent_id": "ada"})
    graph.invoke(says("I live in Oslo."), KEYLESS)
    past = graph.get_state(KEYLESS).config
    graph.invoke(says("My cat is Miu."), KEYLESS)
    graph.invoke(says("I moved to Rome."), past)
    assert agents(model) == ["ada"] and turns(model) == 3


def test_agents_that_hand_over_keep_their_own_memories(model: ChatDeltaMem) -> None:
    built = StateGraph(MessagesState)
    built.add_node("planner", create_agent(model, name="planner"))
    built.add_node("writer", create_agent(model, name="writer"))
    graph = built.add_edge(START, "planner").add_edge("planner", "writer").compile(checkpointer=InMemorySaver())
    for text in ("Write a poem.", "And another."):
        graph.invoke(says(text), KEYLESS)
    assert [agent.split("#")[1] for agent in agents(model)] == ["planner", "writer"]
    assert [turns(model, agent) for agent in agents(model)] == [2, 2]


def test_a_node_with_its_own_agent_does_not_affect_other_nodes(model: ChatDeltaMem) -> None:
    def planner(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"], agent_id="planner")]}

    def writer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke([*state["messages"], HumanMessage("Write it.")])]}

    built = StateGraph(MessagesState).add_node(planner).add_node(writer)
    graph = built.add_edge(START, "planner").add_edge("planner", "writer").compile(checkpointer=InMemorySaver())
    graph.invoke(says("A poem."), KEYLESS)
    assert agents(model) == ["planner", "thread:t"]


@pytest.mark.parametrize("kind", ["create_agent", "sub-graph"])
@pytest.mark.parametrize("streaming", [False, True])
def test_async_runs_stay_with_the_agent_too(kind: str, streaming: bool, model: ChatDeltaMem, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "a.sqlite")) as saver:
            graph = GRAPHS[kind](model, saver)

            async def talk(given: Any, config: Any) -> None:
                if not streaming:
                    await graph.ainvoke(given, config)
                    return
                async for _ in graph.astream(given, config, stream_mode="messages"):
                    pass

            await talk(says("I live in Oslo."), ADA)
            states = [state async for state in graph.aget_state_history(KEYLESS)]
            await talk(says("My cat is Miu."), KEYLESS)
            await talk(None, states[-2].config)

    asyncio.run(run())
    assert agents(model) == ["ada"] and turns(model) == 3
