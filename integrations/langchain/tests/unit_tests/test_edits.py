"""Laws of edits, deletions and trimming with the middleware: the memory has shown and trimmed messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from brain import brain
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    after_model,
    before_model,
    wrap_model_call,
)
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, RemoveMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command

from deltamem_agents import InMemoryStore, SQLiteStore
from deltamem_agents.chat.history import digest
from deltamem_agents.snapshots import Snapshot, decode
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from langchain_deltamem.messages import to_messages
from langchain_deltamem.middleware import STATE_KEY


def slow_to_forget() -> ScriptedEngine:
    """An adapter with gates so weak that a whole conversation is still visible in its memory."""
    engine = ScriptedEngine(brain)
    with torch.no_grad():
        for name, value in engine.adapter.named_parameters():
            if name.endswith("beta_bias"):
                value.fill_(-6.0)
    return engine


ENGINE = slow_to_forget()
MODEL = ChatDeltaMem(engine=ENGINE, max_tokens=500)
ON: Any = {"configurable": {"thread_id": "a"}}
TOLD = ("I live in Oslo.", "My cat is Miu.", "I like tea.")


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def says(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as opened:
        yield opened


HELD = ("inline", "by reference")


def with_each_store(name: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` whose values alternate between the two ways to keep a memory, which do not depend on them."""
    return pytest.mark.parametrize(
        (name, "middleware"), [*zip(values, cycle(HELD), strict=False)], indirect=["middleware"]
    )


@pytest.fixture(params=HELD)
def middleware(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeltaMemMiddleware]:
    if request.param == "inline":
        yield DeltaMemMiddleware()
        return
    with SQLiteStore(tmp_path / "memory.sqlite") as store:
        yield DeltaMemMiddleware(store)


def made(middleware: DeltaMemMiddleware, saver: Any, *others: Any, **given: Any) -> Any:
    return create_agent(MODEL, middleware=[middleware, *others], checkpointer=saver, **given)


def shown(graph: Any) -> list[AnyMessage]:
    return list(graph.get_state(ON).values["messages"])


def told(graph: Any, *texts: str) -> list[AnyMessage]:
    for text in texts:
        graph.invoke(says(text), ON)
    return shown(graph)


def unpacked(middleware: DeltaMemMiddleware, held: bytes | str) -> Snapshot:
    if isinstance(held, bytes):
        return decode(held)
    assert middleware._store is not None
    (agent,) = middleware._store.agents()
    return middleware._store.load(agent, held).snapshot


def memory(graph: Any, middleware: DeltaMemMiddleware) -> Snapshot:
    return unpacked(middleware, graph.get_state(ON).values[STATE_KEY])


def having_heard(messages: Sequence[BaseMessage]) -> Snapshot:
    """A memory that absorbed these messages once each, in this order."""
    engine = ENGINE.with_store(InMemoryStore())
    engine.absorb_into("x", to_messages(messages))
    return engine.store.load("x").snapshot


def has_heard(snapshot: Snapshot, messages: Sequence[BaseMessage]) -> bool:
    """Whether a memory contains exactly these messages, once each."""
    expected = having_heard(messages)
    alike = bool((snapshot.state.matrices - expected.state.matrices).abs().max() < 1e-5)
    return alike and snapshot.counters.messages == len(messages)


def remembered(graph: Any, middleware: DeltaMemMiddleware, messages: Sequence[BaseMessage] | None = None) -> bool:
    return has_heard(memory(graph, middleware), shown(graph) if messages is None else messages)


def undone(graph: Any) -> int:
    """The numbers of undone messages that the replies to the newest question report."""
    messages = shown(graph)
    asked = max(place for place, message in enumerate(messages) if message.type == "human")
    facts = [message.response_metadata["deltamem"] for message in messages[asked:] if message.type == "ai"]
    return sum(each.get("undone_messages", 0) for each in facts)


def test_the_check_of_these_laws_distinguishes_memories(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = made(middleware, saver)
    messages = told(graph, *TOLD)
    assert remembered(graph, middleware)
    assert not remembered(graph, middleware, [HumanMessage("I live in Rome."), *messages[1:]])
    assert not remembered(graph, middleware, messages[2:])
    assert not remembered(graph, middleware, [*messages[2:4], *messages[:2], *messages[4:]])


@pytest.mark.slow
@with_each_store("place", range(6))
def test_an_edited_message_is_replaced_in_the_memory(
    place: int, saver: SqliteSaver, middleware: DeltaMemMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    graph = made(middleware, saver)
    old = told(graph, *TOLD)[place]
    graph.update_state(ON, {"messages": [type(old)(content="It was edited.", id=old.id)]})
    with caplog.at_level(logging.INFO, "langchain_deltamem"):
        graph.invoke(says("And now?"), ON)
    assert shown(graph)[place].content == "It was edited." and remembered(graph, middleware)
    assert undone(graph) == 1
    (record,) = caplog.records
    assert record.levelno == (logging.INFO if place == 5 else logging.WARNING) and "'a'" in record.getMessage()
    graph.invoke(says("Thanks."), ON)
    assert remembered(graph, middleware) and undone(graph) == 0


@pytest.mark.slow
@with_each_store("places", [[2], [3], [2, 3], [4], [5], [4, 5], [1, 4, 5], [1, 2, 3, 4, 5]])
def test_a_message_deleted_after_others_is_removed_from_the_memory(
    places: list[int], saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    graph = made(middleware, saver)
    messages = told(graph, *TOLD)
    graph.update_state(ON, {"messages": [RemoveMessage(messages[place].id or "") for place in places]})
    graph.invoke(says("And now?"), ON)
    assert len(shown(graph)) == 8 - len(places) and remembered(graph, middleware) and undone(graph) == len(places)


def test_a_deletion_in_the_input_of_a_run_counts(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = made(middleware, saver)
    messages = told(graph, *TOLD)
    removed = [RemoveMessage(message.id or "") for message in messages[2:4]]
    graph.invoke({"messages": [*removed, HumanMessage("And now?")]}, ON)
    assert len(shown(graph)) == 6 and remembered(graph, middleware)


@pytest.mark.slow
def test_an_edit_deletes_and_another_edit_does_not_bring_it_back(
    saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    graph = made(middleware, saver)
    first, _, second, *_ = told(graph, *TOLD)
    graph.update_state(ON, {"messages": [HumanMessage("I live in Rome.", id=first.id)]})
    told(graph, "Next.", "And then.")
    graph.update_state(ON, {"messages": [HumanMessage("My dog is Rex.", id=second.id)]})
    told(graph, "What else?")
    assert remembered(graph, middleware)
    graph.update_state(ON, {"messages": [RemoveMessage(second.id or "")]})
    told(graph, "Well?")
    graph.update_state(ON, {"messages": [HumanMessage("I live in Oslo.", id=first.id)]})
    told(graph, "So?")
    assert remembered(graph, middleware)


def test_an_edit_while_the_graph_is_interrupted_counts(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    approval = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    graph = made(middleware, saver, approval, tools=[get_weather])
    told(graph, "I live in Oslo.", "How is the weather in Paris?")
    first = shown(graph)[0]
    graph.update_state(ON, {"messages": [HumanMessage("I live in Rome.", id=first.id)]})
    graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), ON)
    assert [m.type for m in shown(graph)] == ["human", "ai", "human", "ai", "tool", "ai"]
    assert remembered(graph, middleware)


def test_a_deletion_while_the_graph_is_interrupted_counts_as_trimmed(
    saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    approval = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    graph = made(middleware, saver, approval, tools=[get_weather])
    before = told(graph, "I live in Oslo.", "How is the weather in Paris?")
    graph.update_state(ON, {"messages": [RemoveMessage(before[1].id)]})
    graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), ON)
    said = [*before, *shown(graph)[3:]]
    assert len(shown(graph)) == len(said) - 1 and remembered(graph, middleware, said)
    graph.invoke(says("So?"), ON)
    assert remembered(graph, middleware, [*said, *shown(graph)[5:]])


def test_time_travel_goes_back_before_an_edit(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    graph = made(middleware, saver)
    messages = told(graph, *TOLD)
    past = graph.get_state(ON).config
    graph.update_state(ON, {"messages": [HumanMessage("I live in Rome.", id=messages[0].id)]})
    told(graph, "And now?")
    graph.invoke(says("Once more."), past)
    assert remembered(graph, middleware) and shown(graph)[0].content == "I live in Oslo."


@before_model
def keeps_the_newest(state: Any, runtime: Any) -> dict[str, Any] | None:
    messages = state["messages"]
    return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *messages[-3:]]} if len(messages) > 4 else None


@before_model
def keeps_the_first_and_the_newest(state: Any, runtime: Any) -> dict[str, Any] | None:
    messages = state["messages"]
    kept = [messages[0], *messages[-3:]]
    return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *kept]} if len(messages) > 4 else None


@after_model
def drops_the_oldest(state: Any, runtime: Any) -> dict[str, Any] | None:
    messages = state["messages"]
    return {"messages": [RemoveMessage(m.id) for m in messages[:2]]} if len(messages) > 4 else None


@wrap_model_call
def shows_the_newest(request: Any, handler: Any) -> Any:
    return handler(request.override(messages=request.messages[-3:]))


def summarises(kept: int) -> SummarizationMiddleware:
    aside = ChatDeltaMem(engine=ScriptedEngine("They talked."), max_tokens=80)
    return SummarizationMiddleware(model=aside, trigger=("messages", 4), keep=("messages", kept))


TRIMMING = {
    "newest": keeps_the_newest,
    "first and newest": keeps_the_first_and_the_newest,
    "after the model": drops_the_oldest,
    "in the request": shows_the_newest,
    "summary": summarises(2),
    "summary of all but the question": summarises(1),
}
TEXTS = (*TOLD, "I have a bike.", "My sister is Eva.", "I work at night.")


def whole(texts: Sequence[str]) -> list[BaseMessage]:
    return [each for text in texts for each in (HumanMessage(text), AIMessage(f"You said: {text}"))]


@pytest.mark.slow
@with_each_store("trimming", TRIMMING)
def test_trimmed_or_summarised_messages_stay_in_the_memory(
    trimming: str, saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    graph = made(middleware, saver, TRIMMING[trimming])
    told(graph, *TEXTS)
    assert len(shown(graph)) < 12 or trimming == "in the request"
    snapshot = memory(graph, middleware)
    assert list(snapshot.absorbed.tail)[-2:] == [digest(each) for each in to_messages(whole(TEXTS)[-2:])]
    assert snapshot.counters.messages == 12 and undone(graph) == 0


@pytest.mark.slow
@with_each_store("trimming", TRIMMING)
def test_an_edit_of_what_is_shown_loses_nothing_that_was_trimmed(
    trimming: str, saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    graph = made(middleware, saver, TRIMMING[trimming])
    edited = told(graph, *TEXTS)[-2]
    graph.update_state(ON, {"messages": [HumanMessage("I work by day.", id=edited.id)]})
    told(graph, "And now?")
    heard = [*whole(TEXTS[:-1]), HumanMessage("I work by day."), AIMessage("You said: I work at night.")]
    assert undone(graph) == 1
    assert remembered(graph, middleware, [*heard, *whole(["And now?"])])


@pytest.mark.slow
def test_without_an_older_memory_trimmed_messages_are_counted_as_undone(
    middleware: DeltaMemMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    saver = InMemorySaver()
    graph = made(middleware, saver, summarises(2))
    visible = [message for message in told(graph, *TEXTS) if "lc_source" not in message.additional_kwargs]
    edited, lost = visible[-2], 12 - len(visible)
    newest = graph.get_state(ON).config["configurable"]["checkpoint_id"]
    for checkpoint in [*saver.list(ON)]:
        if checkpoint.config["configurable"]["checkpoint_id"] != newest:
            del saver.storage["a"][""][checkpoint.config["configurable"]["checkpoint_id"]]
    graph.update_state(ON, {"messages": [HumanMessage("I work by day.", id=edited.id)]})
    told(graph, "And now?")
    assert undone(graph) == 1 + lost and lost > 0 and f"{lost} messages are lost" in caplog.text
    # Only the summary is left of them, so it is written, once.
    told(graph, "Thanks.")
    assert memory(graph, middleware).counters.messages == 1 + len(visible) + 4


def test_a_reply_that_middleware_rewords_is_remembered_as_reworded(
    saver: SqliteSaver, middleware: DeltaMemMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    @after_model
    def masks(state: Any, runtime: Any) -> dict[str, Any]:
        last = state["messages"][-1]
        return {"messages": [AIMessage(last.text.replace("Oslo", "[place]"), id=last.id)]}

    graph = made(middleware, saver, masks)
    told(graph, "I live in Oslo, Oslo.", "Is Oslo large?", "And now?", "Well?")
    assert [m.text for m in shown(graph)][1] == "You said: I live in [place], [place]."
    heard = shown(graph)
    assert remembered(graph, middleware, heard) and not caplog.records


def test_a_reply_that_the_run_withdraws_is_removed_from_the_memory(
    saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    refusals = [True]

    @after_model(can_jump_to=["model"])
    def withdraws(state: Any, runtime: Any) -> dict[str, Any] | None:
        if len(state["messages"]) < 4 or not refusals:
            return None
        refusals.clear()
        hint = HumanMessage("Say it again.")
        return {"messages": [RemoveMessage(state["messages"][-1].id), hint], "jump_to": "model"}

    graph = made(middleware, saver, withdraws)
    told(graph, "I live in Oslo.", "My cat is Miu.")
    assert [m.type for m in shown(graph)] == ["human", "ai", "human", "human", "ai"] and remembered(graph, middleware)


def test_a_store_holds_the_log_of_what_a_thread_remembers(saver: SqliteSaver, tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "memory.sqlite") as store:
        graph = made(DeltaMemMiddleware(store), saver, keeps_the_newest)
        edited = told(graph, *TEXTS)[-2]
        entries = list(store.log("checkpoint:a"))
        assert [entry.snapshot.counters.messages for entry in entries] == [12, 10, 8, 6, 4, 2]
        graph.update_state(ON, {"messages": [HumanMessage("I work by day.", id=edited.id)]})
        told(graph, "And now?")
        newest, *older = store.log("checkpoint:a")
        assert [entry.id for entry in older] == [entry.id for entry in entries[1:]]
        assert newest.snapshot.counters.messages == 14


@pytest.mark.slow
def test_a_retry_after_an_edit_writes_once(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    failures: list[str] = []

    @wrap_model_call
    def flaky(request: Any, handler: Any) -> Any:
        response = handler(request)
        if failures:
            raise ConnectionError(failures.pop())
        return response

    retry = ModelRetryMiddleware(max_retries=3, initial_delay=0)
    for order in ([retry, middleware, flaky], [middleware, retry, flaky]):
        graph = create_agent(MODEL, middleware=order, checkpointer=InMemorySaver())
        first = told(graph, *TOLD)[0]
        graph.update_state(ON, {"messages": [HumanMessage("I live in Rome.", id=first.id)]})
        failures[:] = ["once", "twice"]
        told(graph, "And now?")
        assert remembered(graph, middleware)


@pytest.mark.parametrize("memory_mode", ["readonly", "off"])
def test_an_edit_seen_by_a_readonly_model_is_made_by_the_next_that_writes(
    memory_mode: Any, saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    graph = made(middleware, saver)
    messages = told(graph, *TOLD)
    before = memory(graph, middleware)
    graph.update_state(ON, {"messages": [RemoveMessage(message.id or "") for message in messages[2:4]]})
    reader = ChatDeltaMem(engine=ENGINE, max_tokens=500, memory=memory_mode)
    create_agent(reader, middleware=[middleware], checkpointer=saver).invoke(says("Who am I?"), ON)
    assert memory(graph, middleware).state.matrices.equal(before.state.matrices)
    told(graph, "And now?")
    assert remembered(graph, middleware)


def test_a_checkpoint_without_ids_can_be_continued(saver: SqliteSaver, middleware: DeltaMemMiddleware) -> None:
    """Version 0.1 stored no ids."""
    graph = made(middleware, saver)
    told(graph, *TOLD)
    graph.update_state(ON, {"deltamem_messages": None})
    told(graph, "And now?")
    assert remembered(graph, middleware)


async def _edited(graph: Any, talk: Callable[[str], Any]) -> None:
    for text in TOLD:
        await talk(text)
    first, *_ = (await graph.aget_state(ON)).values["messages"]
    await graph.aupdate_state(ON, {"messages": [HumanMessage("I live in Rome.", id=first.id)]})
    await talk("And now?")


@pytest.mark.parametrize("streaming", [False, True])
def test_async_and_streams_hold_these_laws(streaming: bool, tmp_path: Path, middleware: DeltaMemMiddleware) -> None:
    async def run() -> tuple[Snapshot, list[BaseMessage]]:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "a.sqlite")) as saver:
            graph = made(middleware, saver)

            async def talk(text: str) -> None:
                if not streaming:
                    await graph.ainvoke(says(text), ON)
                    return
                async for _ in graph.astream(says(text), ON, stream_mode="messages"):
                    pass

            await _edited(graph, talk)
            values = (await graph.aget_state(ON)).values
            return unpacked(middleware, values[STATE_KEY]), values["messages"]

    snapshot, messages = asyncio.run(run())
    assert messages[0].content == "I live in Rome." and has_heard(snapshot, messages)


@pytest.mark.slow
def test_a_sub_agent_with_its_own_history_is_edited_separately(
    tmp_path: Path, saver: SqliteSaver, middleware: DeltaMemMiddleware
) -> None:
    expert = create_agent(MODEL, middleware=[DeltaMemMiddleware()], name="expert", checkpointer=True)

    @tool
    def ask_expert(question: str) -> str:
        """Ask the expert."""
        return str(expert.invoke(says("What is a delta rule?"))["messages"][-1].content)

    graph = made(middleware, saver, tools=[ask_expert], name="lead")
    messages = told(graph, "Please find out.", "Please find out.")
    graph.update_state(ON, {"messages": [HumanMessage("Hello.", id=messages[0].id)]})
    told(graph, "And now?")
    snapshot = memory(graph, middleware)
    assert snapshot.counters.messages == len(shown(graph)) and undone(graph) == 1
