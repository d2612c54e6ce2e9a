"""Laws of losing nothing: however LangChain's clients send their messages, each is written once and stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from scripted_chat import scripted, store, turns

from deltamem_agents.errors import AgentForgottenError
from deltamem_agents.testing import Asked
from langchain_deltamem import ChatDeltaMem

# LangChain's message histories are deprecated, but many applications still use them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated"),
    pytest.mark.filterwarnings("ignore:The class `InMemoryChatMessageHistory` was deprecated"),
]

ADA: Any = {"configurable": {"deltamem_agent_id": "ada"}}
THREAD: Any = {"configurable": {"thread_id": "ada"}}
IDENTITIES = {"agent": (ADA, "ada"), "thread": (THREAD, "thread:ada")}
TEXTS = ("Hi.", "I live in Oslo.", "My cat is Miu.", "I like tea.", "I have a bike.", "My sister is Eva.", "I run.")


def thinking(asked: Asked) -> str:
    return f"<think>Hm.</think>You said: {asked.messages[-1].content}"


@pytest.fixture
def model() -> ChatDeltaMem:
    return scripted(lambda asked: f"You said: {asked.messages[-1].content}")


@pytest.fixture(autouse=True)
def nothing_is_undone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """In none of these conversations does a memory go back."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def written(model: ChatDeltaMem, agent: str = "ada") -> int:
    """The number of messages in the agent's memory, without undone ones."""
    return store(model).load(agent).snapshot.counters.messages


def undone(reply: BaseMessage) -> object:
    return reply.response_metadata["deltamem"]["undone_messages"]


@pytest.mark.parametrize("sync", [True, False])
def test_two_sessions_of_one_agent_keep_everything(model: ChatDeltaMem, sync: bool) -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}
    talk = RunnableWithMessageHistory(
        model, lambda session_id: histories.setdefault(session_id, InMemoryChatMessageHistory())
    )
    for number, session in enumerate("ABBAAB"):
        config: Any = {"configurable": {"deltamem_agent_id": "ada", "session_id": session}}
        said = HumanMessage(f"Fact {number}.")
        reply = talk.invoke(said, config) if sync else asyncio.run(talk.ainvoke(said, config))
        assert undone(reply) == 0
    assert turns(model, "ada") == 6 and written(model) == 12


def test_sessions_with_equal_beginnings_keep_everything(model: ChatDeltaMem) -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}
    talk = RunnableWithMessageHistory(
        model, lambda session_id: histories.setdefault(session_id, InMemoryChatMessageHistory())
    )
    for session, text in [("A", "Hi."), ("A", "I am Ada."), ("B", "Hi."), ("B", "I am a cook."), ("A", "I am 40.")]:
        config: Any = {"configurable": {"deltamem_agent_id": "ada", "session_id": session}}
        assert undone(talk.invoke(HumanMessage(text), config)) == 0
    # The second "Hi." with its reply may be taken for the first one, but nothing after it may.
    assert written(model) in (8, 10)


FEW_SHOT = [("human", "2+2"), ("ai", "4"), ("human", "2+3"), ("ai", "5")]
PREFIXES = {"few shots": FEW_SHOT, "greeting": [("ai", "Hello! How can I help?")]}


@pytest.mark.parametrize("who", IDENTITIES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_fixed_prefix_is_written_once_and_later_messages_are_kept(model: ChatDeltaMem, prefix: str, who: str) -> None:
    config, agent = IDENTITIES[who]
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), *PREFIXES[prefix], ("human", "{input}")]) | model
    for text in TEXTS:
        assert undone(chain.invoke({"input": text}, config)) == 0
    assert written(model, agent) == len(PREFIXES[prefix]) + 2 * len(TEXTS)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_before_a_growing_history_is_written_once(model: ChatDeltaMem, prefix: str) -> None:
    template: Any = [*PREFIXES[prefix], MessagesPlaceholder("history"), ("human", "{input}")]
    chain, history = ChatPromptTemplate.from_messages(template) | model, list[BaseMessage]()
    for text in TEXTS:
        reply = chain.invoke({"input": text, "history": history}, ADA)
        history += [HumanMessage(text), reply]
    assert written(model) == len(PREFIXES[prefix]) + 2 * len(TEXTS)


@pytest.mark.parametrize("who", IDENTITIES)
def test_a_greeting_repeated_on_another_day_drops_nothing(model: ChatDeltaMem, who: str) -> None:
    config, agent = IDENTITIES[who]
    for text in ("hi", "I live in Oslo.", "My cat is Miu.", "hi", "I like tea.", "hi"):
        assert undone(model.invoke([HumanMessage(text)], config)) == 0
    assert written(model, agent) == 12 and turns(model, agent) == 6


@pytest.mark.parametrize("who", IDENTITIES)
@pytest.mark.parametrize("shown", [1, 5, None], ids=["only new", "last five", "whole"])
@pytest.mark.parametrize("rewording", ["stripped", "disclaimer"])
def test_a_reply_that_the_app_rewords_is_no_edit(who: str, shown: int | None, rewording: str) -> None:
    model, (config, agent) = scripted(thinking), IDENTITIES[who]
    history: list[BaseMessage] = []
    for text in TEXTS:
        history.append(HumanMessage(text))
        reply = model.invoke(history if shown is None else history[-shown:], config)
        assert undone(reply) == 0
        stripped = reply.text.removeprefix("<think>Hm.</think>")
        history.append(AIMessage(stripped if rewording == "stripped" else f"{reply.text} No advice."))
    assert written(model, agent) == 2 * len(TEXTS) and turns(model, agent) == len(TEXTS)


def test_a_graph_that_rewords_its_replies_writes_each_message_once() -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    model = scripted(thinking)

    def chatbot(state: MessagesState) -> dict[str, Any]:
        reply = model.invoke(state["messages"])
        return {"messages": [AIMessage(reply.text.removeprefix("<think>Hm.</think>"))]}

    graph = StateGraph(MessagesState).add_node(chatbot).add_edge(START, "chatbot").compile(checkpointer=InMemorySaver())
    for text in TEXTS:
        graph.invoke({"messages": [HumanMessage(text)]}, THREAD)
    assert written(model, "thread:ada") == 2 * len(TEXTS)


def test_alternating_threads_of_one_agent_keep_everything(model: ChatDeltaMem) -> None:
    graph = create_agent(model, checkpointer=InMemorySaver())
    for number, thread in enumerate("ABBAAB"):
        config: Any = {"configurable": {"deltamem_agent_id": "ada", "thread_id": thread}}
        graph.invoke({"messages": [HumanMessage(f"Fact {number}.")]}, config)
    assert written(model) == 12


def test_a_chain_around_the_model_changes_none_of_these_laws(model: ChatDeltaMem) -> None:
    chain = RunnableLambda(lambda text: [HumanMessage(text)]) | model.with_retry()
    for text in ("hi", "I live in Oslo.", "hi"):
        chain.invoke(text, THREAD)
    assert written(model, "thread:ada") == 6


def test_an_agent_that_was_forgotten_during_a_stream_stays_forgotten(model: ChatDeltaMem) -> None:
    model.invoke("I live in Oslo.", ADA)
    stream = model.stream("Where do I live?", ADA)
    next(stream)
    store(model).forget("ada")
    with pytest.raises(AgentForgottenError):
        list(stream)
    assert store(model).agents() == []


def test_an_agent_that_was_forgotten_during_an_async_stream_stays_forgotten(model: ChatDeltaMem) -> None:
    async def talk() -> None:
        stream = model.astream("Where do I live?", ADA)
        await anext(stream)
        store(model).forget("ada")
        with pytest.raises(AgentForgottenError):
            async for _ in stream:
                pass

    model.invoke("I live in Oslo.", ADA)
    asyncio.run(talk())
    assert store(model).agents() == []


@pytest.mark.parametrize("first_text", ["I live in Rome.", "I live in Oslo."], ids=["edit", "regenerate"])
def test_a_named_thread_that_goes_back_reports_undone_messages(
    first_text: str, model: ChatDeltaMem, caplog: pytest.LogCaptureFixture
) -> None:
    graph = create_agent(model, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"deltamem_agent_id": "ada", "thread_id": "t"}}
    graph.invoke({"messages": [HumanMessage("Hi.")]}, config)
    graph.invoke({"messages": [HumanMessage("I live in Oslo.", id="told")]}, config)
    past = next(s for s in graph.get_state_history(config) if s.next == ("model",))
    forked = graph.update_state(past.config, {"messages": [HumanMessage(first_text, id="told")]})
    reply = graph.invoke(None, forked)["messages"][-1]
    assert undone(reply) == (2 if first_text == "I live in Rome." else 1)
    assert written(model) == 4 and "undone" in caplog.text
    caplog.clear()
