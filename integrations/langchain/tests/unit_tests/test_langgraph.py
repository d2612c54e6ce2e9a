"""Laws of the memory in LangGraph: it is saved, resumed, forked and deleted together with the messages."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brain import brain
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    wrap_model_call,
)
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from deltamem_agents import SQLiteStore
from deltamem_agents.chat.history import digest
from deltamem_agents.errors import AgentForgottenError
from deltamem_agents.snapshots import Snapshot, decode
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from langchain_deltamem.messages import to_messages
from langchain_deltamem.middleware import STATE_KEY

ENGINE = ScriptedEngine(brain)
MODEL = ChatDeltaMem(engine=ENGINE, max_tokens=500)


def says(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def on(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as opened:
        yield opened


@pytest.fixture(params=["inline", "by reference"])
def middleware(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeltaMemMiddleware]:
    if request.param == "inline":
        yield DeltaMemMiddleware()
        return
    with SQLiteStore(tmp_path / "memory.sqlite") as store:
        yield DeltaMemMiddleware(store)


def memory(graph: Any, middleware: DeltaMemMiddleware, config: Any) -> Snapshot:
    """The memory in the checkpoint that `config` names."""
    held = graph.get_state(config).values[STATE_KEY]
    if isinstance(held, bytes):
        return decode(held)
    assert middleware._store is not None
    (agent,) = (a for a in middleware._store.agents() if a.endswith(config["configurable"]["thread_id"]))
    return middleware._store.load(agent, held).snapshot


def expected(*texts: str) -> Snapshot:
    """The memory after these messages in one conversation."""
    engine = ScriptedEngine(brain)
    model = ChatDeltaMem(engine=engine, max_tokens=500, agent_id="x")
    history: list[Any] = []
    for text in texts:
        history.append(HumanMessage(text))
        history.append(model.invoke(history, thread="conversation"))
    return engine.store.load("x").snapshot


def same(a: Snapshot, b: Snapshot) -> bool:
    return bool((a.state.matrices - b.state.matrices).abs().max() < 1e-5) and a.absorbed == b.absorbed


def test_a_second_process_resumes_messages_and_memory(tmp_path: Path, middleware: DeltaMemMiddleware) -> None:
    path = str(tmp_path / "c.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        create_agent(MODEL, middleware=[middleware], checkpointer=saver).invoke(says("I live in Oslo."), on("a"))
    with SqliteSaver.from_conn_string(path) as saver:
        graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
        graph.invoke(says("My cat is Miu."), on("a"))
        assert same(memory(graph, middleware, on("a")), expected("I live in Oslo.", "My cat is Miu."))
    assert ENGINE.store.agents() == []


SECOND_PROCESS = """
import sys
from brain import brain
from langchain.agents import create_agent
from langgraph.checkpoint.sqlite import SqliteSaver
from deltamem_agents import SQLiteStore
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware

checkpoints, memories, text = sys.argv[1:]
model = ChatDeltaMem(engine=ScriptedEngine(brain), max_tokens=500)
middleware = DeltaMemMiddleware(memories or None)
with SqliteSaver.from_conn_string(checkpoints) as saver:
    graph = create_agent(model, middleware=[middleware], checkpointer=saver)
    graph.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": "a"}})
"""


@pytest.mark.slow
def test_a_separate_process_resumes_too(tmp_path: Path, middleware: DeltaMemMiddleware) -> None:
    path = str(tmp_path / "c.sqlite")
    memories = "" if middleware._store is None else f"sqlite:///{tmp_path / 'memory.sqlite'}"
    with SqliteSaver.from_conn_string(path) as saver:
        create_agent(MODEL, middleware=[middleware], checkpointer=saver).invoke(says("I live in Oslo."), on("a"))
    command = [sys.executable, "-c", SECOND_PROCESS, path, memories, "My cat is Miu."]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with SqliteSaver.from_conn_string(path) as saver:
        graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
        assert same(memory(graph, middleware, on("a")), expected("I live in Oslo.", "My cat is Miu."))


def test_time_travel_includes_the_memory(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
    graph.invoke(says("I live in Oslo."), on("a"))
    past = graph.get_state(on("a")).config
    graph.invoke(says("My cat is Miu."), on("a"))
    graph.invoke(says("I moved to Rome."), past)
    assert same(memory(graph, middleware, on("a")), expected("I live in Oslo.", "I moved to Rome."))


def test_threads_never_share_and_a_deleted_thread_is_gone(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
    graph.invoke(says("I am Ada."), on("a"))
    graph.invoke(says("I am Bob."), on("b"))
    saver.delete_thread("a")
    forgotten = middleware.forget("a")
    assert len(forgotten) == (middleware._store is not None)
    graph.invoke(says("I am Cy."), on("a"))
    assert same(memory(graph, middleware, on("a")), expected("I am Cy."))
    assert same(memory(graph, middleware, on("b")), expected("I am Bob."))


@pytest.mark.parametrize("sync", [True, False])
def test_a_thread_that_was_forgotten_during_a_turn_stays_forgotten(sync: bool, tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "memory.sqlite") as store:
        middleware = DeltaMemMiddleware(store)

        def brain_that_is_interrupted(asked: Any) -> Any:
            if "forget" in asked.messages[-1].content:
                middleware.forget("a")
            return brain(asked)

        model = ChatDeltaMem(engine=ScriptedEngine(brain_that_is_interrupted), max_tokens=500)
        graph = create_agent(model, middleware=[middleware], checkpointer=InMemorySaver())
        graph.invoke(says("I live in Oslo."), on("a"))
        graph.invoke(says("I live in Rome."), on("b"))
        with pytest.raises(AgentForgottenError, match="'a'"):
            last = says("Please forget me.")
            graph.invoke(last, on("a")) if sync else asyncio.run(graph.ainvoke(last, on("a")))
        assert store.agents() == ["checkpoint:b"]


def test_an_edited_history_is_remembered_as_edited(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
    graph.invoke(says("I live in Oslo."), on("a"))
    graph.invoke(says("My cat is Miu."), on("a"))
    messages = graph.get_state(on("a")).values["messages"]
    graph.update_state(on("a"), {"messages": [RemoveMessage(m.id) for m in messages[2:]]})
    graph.invoke(says("I moved to Rome."), on("a"))
    assert same(memory(graph, middleware, on("a")), expected("I live in Oslo.", "I moved to Rome."))


def test_a_retry_writes_once(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    failures = ["once", "twice"]

    @wrap_model_call
    def flaky(request: Any, handler: Any) -> Any:
        response = handler(request)
        if failures:
            raise ConnectionError(failures.pop())
        return response

    retry = ModelRetryMiddleware(max_retries=3, initial_delay=0)
    for order in ([retry, middleware, flaky], [middleware, retry, flaky]):
        failures[:] = ["once", "twice"]
        graph = create_agent(MODEL, middleware=order, checkpointer=InMemorySaver())
        graph.invoke(says("I live in Oslo."), on("a"))
        assert same(memory(graph, middleware, on("a")), expected("I live in Oslo."))


def test_a_failed_turn_does_not_change_the_memory(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
    graph.invoke(says("I live in Oslo."), on("a"))
    with pytest.raises(ValueError, match="image"):
        graph.invoke({"messages": [HumanMessage([{"type": "image", "url": "x"}])]}, on("a"))
    assert same(memory(graph, middleware, on("a")), expected("I live in Oslo."))


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def test_a_tool_loop_ends_and_is_remembered_whole(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = create_agent(MODEL, tools=[get_weather], middleware=[middleware], checkpointer=saver)
    said = graph.invoke(says("How is the weather in Paris?"), on("a"))["messages"]
    assert [m.type for m in said] == ["human", "ai", "tool", "ai"] and said[-1].content == "It is sunny in Paris."
    assert memory(graph, middleware, on("a")).absorbed.count == 4


def test_an_interrupt_keeps_the_memory_of_the_turn_it_interrupts(
    middleware: DeltaMemMiddleware, saver: SqliteSaver
) -> None:
    approval = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    graph = create_agent(MODEL, tools=[get_weather], middleware=[middleware, approval], checkpointer=saver)
    graph.invoke(says("How is the weather in Paris?"), on("a"))
    assert memory(graph, middleware, on("a")).absorbed.count == 2
    done = graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), on("a"))
    assert done["messages"][-1].content == "It is sunny in Paris."
    assert memory(graph, middleware, on("a")).absorbed.count == 4


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (
            {"type": "edit", "edited_action": {"name": "get_weather", "args": {"city": "Rome"}}},
            "It is sunny in Rome.",
        ),
        ({"type": "reject", "message": "not allowed"}, "It is not allowed."),
    ],
)
def test_a_human_in_the_loop_decides_what_is_remembered(
    decision: Any, said: str, middleware: DeltaMemMiddleware, saver: SqliteSaver
) -> None:
    approval = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    graph = create_agent(MODEL, tools=[get_weather], middleware=[middleware, approval], checkpointer=saver)
    graph.invoke(says("How is the weather in Paris?"), on("a"))
    messages = graph.invoke(Command(resume={"decisions": [decision]}), on("a"))["messages"]
    assert messages[-1].content.endswith(said.removeprefix("It is "))
    snapshot = memory(graph, middleware, on("a"))
    assert list(snapshot.absorbed.tail) == [digest(message) for message in to_messages(messages)]


@pytest.mark.slow
def test_summaries_and_tool_selections_are_not_remembered(middleware: DeltaMemMiddleware, saver: SqliteSaver) -> None:
    asked_aside = ChatDeltaMem(engine=ENGINE, max_tokens=80)
    summary = SummarizationMiddleware(model=asked_aside, trigger=("messages", 4), keep=("messages", 2))
    choice = LLMToolSelectorMiddleware(model=asked_aside, max_tools=1)
    graph = create_agent(
        ChatDeltaMem(engine=ScriptedEngine("ok")),
        tools=[get_weather],
        middleware=[middleware, choice, summary],
        checkpointer=saver,
    )
    texts = [f"Fact {number}." for number in range(4)]
    for text in texts:
        said = graph.invoke(says(text), on("a"))["messages"]
    assert len(said) < 8, "nothing was summarised"
    assert memory(graph, middleware, on("a")).counters.messages == 8
    assert ENGINE.store.agents() == []


def test_async_and_streaming_hold_the_same_laws(tmp_path: Path, middleware: DeltaMemMiddleware) -> None:
    async def talk() -> Snapshot:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "a.sqlite")) as saver:
            graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
            await graph.ainvoke(says("I live in Oslo."), on("a"))
            stream = graph.astream(says("My cat is Miu."), on("a"), stream_mode="messages")
            text = "".join([chunk.text async for chunk, _ in stream])
            assert text == "You said: My cat is Miu."
            held = (await graph.aget_state(on("a"))).values[STATE_KEY]
            if isinstance(held, bytes):
                return decode(held)
            assert middleware._store is not None
            return middleware._store.load(middleware._store.agents()[0], held).snapshot

    assert same(asyncio.run(talk()), expected("I live in Oslo.", "My cat is Miu."))


def test_the_memory_is_private_to_the_graph(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = create_agent(MODEL, middleware=[middleware], checkpointer=saver)
    assert STATE_KEY not in graph.invoke(says("Hi."), on("a"))
    assert STATE_KEY not in graph.get_output_jsonschema().get("properties", {})


def test_sub_agents_keep_separate_memories() -> None:
    engine = ScriptedEngine(brain)
    model = ChatDeltaMem(engine=engine, max_tokens=500)

    @tool
    def ask_expert(question: str) -> str:
        """Ask the expert."""
        expert = create_agent(ChatDeltaMem(engine=engine, max_tokens=500), name="expert")
        return str(expert.invoke(says("What is a delta rule?"))["messages"][-1].content)

    lead = create_agent(model, tools=[ask_expert], name="lead", checkpointer=InMemorySaver())
    lead.invoke(says("Please find out."), on("t1"))
    lead.invoke(says("Please find out."), on("t2"))
    agents = engine.store.agents()
    assert len(agents) == 4 and {agent.split("#")[0] for agent in agents} == {"thread:t1", "thread:t2"}
    assert {agent.split("#")[1] for agent in agents} == {"lead", "expert"}


def test_sub_agents_with_the_middleware_keep_separate_memories(tmp_path: Path, saver: SqliteSaver) -> None:
    with SQLiteStore(tmp_path / "memory.sqlite") as store:
        middleware = DeltaMemMiddleware(store)

        @tool
        def ask_expert(question: str) -> str:
            """Ask the expert."""
            expert = create_agent(MODEL, middleware=[middleware], name="expert")
            return str(expert.invoke(says("What is a delta rule?"))["messages"][-1].content)

        lead = create_agent(MODEL, tools=[ask_expert], middleware=[middleware], name="lead", checkpointer=saver)
        lead.invoke(says("Please find out."), on("t"))
        found = {agent.split("#")[1]: store.load(agent).snapshot for agent in store.agents()}
        assert {name: snapshot.absorbed.count for name, snapshot in found.items()} == {"lead": 4, "expert": 2}
        assert not set(found["lead"].absorbed.tail) & set(found["expert"].absorbed.tail)
        assert len(middleware.forget("t")) == 2 and store.agents() == []


def test_an_agent_id_is_one_memory_across_threads() -> None:
    engine = ScriptedEngine(brain)
    graph = create_agent(ChatDeltaMem(engine=engine, max_tokens=500), checkpointer=InMemorySaver())
    for thread in ("monday", "tuesday"):
        config = {"configurable": {"thread_id": thread, "deltamem_agent_id": "ada"}}
        graph.invoke(says(f"It is {thread}."), config)
        graph.invoke(says("Still here."), config)
    assert engine.store.agents() == ["ada"]
    snapshot = engine.store.load("ada").snapshot
    assert snapshot.counters.messages == 8 and snapshot.counters.turns == 4


def test_another_providers_model_is_not_affected() -> None:
    from langchain_core.language_models import GenericFakeChatModel

    middleware = DeltaMemMiddleware()
    graph = create_agent(
        GenericFakeChatModel(messages=iter([AIMessage("Hello.")])),
        middleware=[middleware],
        checkpointer=InMemorySaver(),
    )
    graph.invoke(says("Hi."), on("a"))
    assert STATE_KEY not in graph.get_state(on("a")).values
