"""Laws of losing nothing: however LlamaIndex's clients send their messages, each is written once and stays."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer

from deltamem_agents import Snapshot
from deltamem_agents.errors import AgentForgottenError
from deltamem_agents.testing import Asked, ScriptedEngine
from llama_index.llms.deltamem import DeltaMemLLM

TEXTS = ("Hi.", "I live in Oslo.", "My cat is Miu.", "I like tea.", "I have a bike.", "My sister is Eva.", "I run.")
THOUGHT = "<think>Hm.</think>"


def thinking(asked: Asked) -> str:
    return f"{THOUGHT}You said: {asked.messages[-1].content}"


@pytest.fixture
def llm() -> DeltaMemLLM:
    return DeltaMemLLM(engine=ScriptedEngine(thinking), max_tokens=500)


@pytest.fixture(params=[None, "t"], ids=["unnamed", "named thread"])
def ada(request: pytest.FixtureRequest, llm: DeltaMemLLM) -> DeltaMemLLM:
    return llm.for_agent("ada", thread=request.param)


@pytest.fixture(autouse=True)
def nothing_is_undone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """In none of these conversations does a memory go back."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def head(llm: DeltaMemLLM) -> Snapshot:
    return llm.open_engine("ada").store.load("ada").snapshot


def written(llm: DeltaMemLLM) -> int:
    """The number of messages in the agent's memory, without undone ones."""
    return head(llm).counters.messages


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


@pytest.mark.parametrize("streaming", [False, True])
def test_two_chat_engines_of_one_agent_keep_everything(llm: DeltaMemLLM, streaming: bool) -> None:
    view = llm.for_agent("ada")
    engines = {name: SimpleChatEngine.from_defaults(llm=view) for name in "AB"}
    for number, name in enumerate("ABBAAB"):
        if streaming:
            assert "".join(engines[name].stream_chat(f"Fact {number}.").response_gen)
        else:
            engines[name].chat(f"Fact {number}.")
    assert written(llm) == 12 and head(llm).counters.turns == 6


async def test_two_chat_engines_keep_everything_asynchronously(llm: DeltaMemLLM) -> None:
    view = llm.for_agent("ada")
    engines = {name: SimpleChatEngine.from_defaults(llm=view) for name in "AB"}
    for number, name in enumerate("ABBA"):
        await engines[name].achat(f"Fact {number}.")
    assert written(llm) == 8


PREFIXES = {
    "few shots": [user("2+2"), assistant("4"), user("2+3"), assistant("5")],
    "greeting": [assistant("Hello! How can I help?")],
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_fixed_prefix_is_written_once_and_later_messages_are_kept(ada: DeltaMemLLM, prefix: str) -> None:
    for text in TEXTS:
        facts = ada.chat([*PREFIXES[prefix], user(text)]).raw["deltamem"]
        assert facts["undone_messages"] == 0
    assert written(ada) == len(PREFIXES[prefix]) + 2 * len(TEXTS)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_chat_engine_with_prefix_messages_writes_them_once(llm: DeltaMemLLM, prefix: str) -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm.for_agent("ada"), prefix_messages=PREFIXES[prefix])
    for text in TEXTS:
        engine.chat(text)
    assert written(llm) == len(PREFIXES[prefix]) + 2 * len(TEXTS)


def test_a_greeting_repeated_on_another_day_drops_nothing(ada: DeltaMemLLM) -> None:
    for text in ("hi", "I live in Oslo.", "My cat is Miu.", "hi", "I like tea.", "hi"):
        assert ada.chat([user(text)]).raw["deltamem"]["undone_messages"] == 0
    assert written(ada) == 12


@pytest.mark.parametrize("shown", [1, 5, None], ids=["only new", "last five", "whole"])
@pytest.mark.parametrize("rewording", ["stripped", "disclaimer"])
def test_a_reply_that_the_app_rewords_is_no_edit(ada: DeltaMemLLM, shown: int | None, rewording: str) -> None:
    history: list[ChatMessage] = []
    for text in TEXTS:
        history.append(user(text))
        response = ada.chat(history if shown is None else history[-shown:])
        assert response.raw["deltamem"]["undone_messages"] == 0
        said = response.message.content or ""
        history.append(assistant(said.removeprefix(THOUGHT) if rewording == "stripped" else f"{said} No advice."))
    assert written(ada) == 2 * len(TEXTS)


def test_a_chat_memory_buffer_that_shows_the_newest_drops_nothing(ada: DeltaMemLLM) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=12, tokenizer_fn=str.split)
    for text in TEXTS:
        memory.put(user(text))
        response = ada.chat(memory.get())
        memory.put(assistant((response.message.content or "").removeprefix(THOUGHT)))
    assert len(memory.get()) < len(memory.get_all()) == 2 * len(TEXTS) == written(ada)


def test_an_agent_that_was_forgotten_during_a_stream_stays_forgotten(llm: DeltaMemLLM) -> None:
    view = llm.for_agent("ada")
    view.chat([user("I live in Oslo.")])
    stream: Any = view.stream_chat([user("Where do I live?")])
    next(stream)
    store = llm.open_engine("ada").store
    store.forget("ada")
    with pytest.raises(AgentForgottenError):
        list(stream)
    assert store.agents() == []


async def test_an_agent_that_was_forgotten_during_an_async_stream_stays_forgotten(llm: DeltaMemLLM) -> None:
    view = llm.for_agent("ada")
    view.chat([user("I live in Oslo.")])
    stream: Any = await view.astream_chat([user("Where do I live?")])
    await anext(stream)
    store = llm.open_engine("ada").store
    store.forget("ada")
    with pytest.raises(AgentForgottenError):
        async for _ in stream:
            pass
    assert store.agents() == []


@pytest.mark.parametrize("again", ["I live in Rome.", "I live in Oslo."], ids=["edit", "regenerate"])
def test_a_named_thread_that_goes_back_reports_undone_messages(
    again: str, llm: DeltaMemLLM, caplog: pytest.LogCaptureFixture
) -> None:
    view = llm.for_agent("ada", thread="t")
    first = view.chat([user("Hi.")]).message
    view.chat([user("Hi."), first, user("I live in Oslo.")])
    response = view.chat([user("Hi."), first, user(again)])
    assert response.raw["deltamem"]["undone_messages"] == (2 if again == "I live in Rome." else 1)
    assert written(llm) == 4 and "undone" in caplog.text
    caplog.clear()
