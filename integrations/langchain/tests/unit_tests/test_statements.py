"""Laws of statements with the middleware: a store keeps them, and a memory in the checkpoint stays small."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import before_model, wrap_model_call
from langchain_core.messages import HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents import InMemoryStore, Snapshot, WritePolicy
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Fingerprint, encode
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from deltamem_agents.types import ThreadLog
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from langchain_deltamem.middleware import STATE_KEY

ON: Any = {"configurable": {"thread_id": "t"}}
KEPT_AS = "checkpoint:t"
TOLD = ["I live in Oslo.", "My cat is Miu.", "I like tea."]


@pytest.fixture(scope="module")
def engine() -> DeltaMemEngine:
    return ScriptedEngine("Noted.", config=SELECTIVE, policy=WritePolicy(roles=("user", "tool")))


def made(engine: DeltaMemEngine, store: InMemoryStore | None, *others: Any) -> Any:
    model = ChatDeltaMem(engine=engine, max_tokens=20)
    return create_agent(model, middleware=[DeltaMemMiddleware(store), *others], checkpointer=InMemorySaver())


def tell(graph: Any, *texts: str, on: Any = ON) -> list[Any]:
    """Tells the agent these texts; returns the memory's report in each reply."""
    replies = [graph.invoke({"messages": [HumanMessage(text)]}, on)["messages"][-1] for text in texts]
    return [reply.response_metadata["deltamem"] for reply in replies]


def texts(engine: DeltaMemEngine, store: InMemoryStore, at: str | None = None) -> list[str]:
    return [each.text for each in engine.with_store(store).statements(KEPT_AS, at)]


def assert_places_differ(engine: DeltaMemEngine, store: InMemoryStore) -> None:
    """Checks that no two statements have the same place in a thread, by which they and their neighbours are found."""
    places = [(each.thread, each.place) for each in engine.with_store(store).statements(KEPT_AS)]
    assert len({*places}) == len(places)


def test_a_store_keeps_the_statements_and_a_reply_reports_the_recalled_ones(engine: DeltaMemEngine) -> None:
    store = InMemoryStore()
    graph = made(engine, store)
    *_, last = tell(graph, *TOLD, "Where do I live?")
    assert texts(engine, store) == [*TOLD, "Where do I live?"]
    assert {each["text"] for each in last["recalled"]} <= {*TOLD}
    assert last["recalled"]
    assert [each.place for each in engine.with_store(store).statements(KEPT_AS)] == [0, 1, 2, 3]


def test_every_checkpoint_keeps_the_statements_it_had(engine: DeltaMemEngine) -> None:
    store = InMemoryStore()
    graph = made(engine, store)
    tell(graph, *TOLD)
    held = [each.values[STATE_KEY] for each in graph.get_state_history(ON) if STATE_KEY in each.values]
    newest_first = list(dict.fromkeys(held))
    assert [texts(engine, store, at) for at in newest_first] == [TOLD, TOLD[:2], TOLD[:1]]
    ended = [each for each in graph.get_state_history(ON) if not each.next]
    past = next(each for each in ended if each.values[STATE_KEY] == newest_first[1])
    graph.invoke({"messages": [HumanMessage("I like milk.")]}, past.config)
    assert texts(engine, store) == [*TOLD[:2], "I like milk."]
    assert texts(engine, store, newest_first[0]) == TOLD


def test_a_statement_that_is_forgotten_stays_gone(engine: DeltaMemEngine) -> None:
    store = InMemoryStore()
    graph, own = made(engine, store), engine.with_store(store)
    tell(graph, *TOLD)
    own.forget_statement(KEPT_AS, own.statements(KEPT_AS)[1].id)
    tell(graph, "And coffee.")
    assert texts(engine, store) == [TOLD[0], TOLD[2], "And coffee."]


def test_an_edited_message_is_another_statement_and_the_others_stay(engine: DeltaMemEngine) -> None:
    store = InMemoryStore()
    graph = made(engine, store)
    tell(graph, *TOLD)
    edited = graph.get_state(ON).values["messages"][2]
    graph.update_state(ON, {"messages": [HumanMessage("My cat is Pip.", id=edited.id)]})
    tell(graph, "And coffee.")
    assert texts(engine, store) == [TOLD[0], "My cat is Pip.", TOLD[2], "And coffee."]
    assert_places_differ(engine, store)


def test_nothing_is_lost_if_messages_are_trimmed_and_others_reworded(engine: DeltaMemEngine) -> None:
    @before_model
    def trim(state: Any, runtime: Any) -> Any:
        return {"messages": [RemoveMessage(each.id) for each in state["messages"][:-3]]}

    @wrap_model_call
    def mask(request: Any, handler: Any) -> Any:
        masked = [each.model_copy(update={"content": each.content.replace("Oslo", "***")}) for each in request.messages]
        return handler(request.override(messages=masked))

    store = InMemoryStore()
    graph = made(engine, store, trim, mask)
    said = [f"Number {number} is in Oslo." for number in range(8)]
    tell(graph, *said)
    heard = texts(engine, store)
    assert [text for text in (each.replace("Oslo", "***") for each in said) if text not in heard] == []
    assert len(graph.get_state(ON).values["messages"]) <= 4
    assert_places_differ(engine, store)


@pytest.mark.slow
def test_an_inline_memory_stays_bounded_whatever_is_told(engine: DeltaMemEngine) -> None:
    graph = made(engine, None)
    *_, last = tell(graph, *TOLD, "Where do I live?")
    first = len(graph.get_state(ON).values[STATE_KEY])
    assert last["recalled"] == [] and last["state_norm"] > 0
    tell(graph, *(f"Number {number} is blue." for number in range(10)))
    # A digest of 17 bytes, in base64, per message.
    assert len(graph.get_state(ON).values[STATE_KEY]) - first <= 10 * 24


def test_an_inline_memory_of_the_default_adapter_is_less_than_100_kb() -> None:
    digests = tuple(f"u:{number:032x}" for number in range(ThreadLog.TAIL_MESSAGES))
    log = ThreadLog(10**6, digests, digests[: ThreadLog.OPENING_MESSAGES])
    state = MemoryState.zeros(1, 16, 1, 32)
    held = encode(Snapshot(state, Fingerprint("m" * 64, "t" * 64, "a" * 64), thread="conversation", absorbed=log))
    assert len(held) < 100_000
