"""Laws of LlamaIndex's chat engines with the LLM: messages are remembered once, the engine's own requests are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.memory import Memory

from deltamem_agents import Snapshot
from deltamem_agents.chat.history import digest
from deltamem_agents.testing import Asked, ScriptedEngine
from deltamem_agents.types import Message
from llama_index.llms.deltamem import DeltaMemLLM


def script(asked: Asked) -> str:
    last = asked.messages[-1].content
    return "A standalone question?" if "Standalone question" in last else f"You said: {last}"


@pytest.fixture
def llm() -> DeltaMemLLM:
    return DeltaMemLLM(engine=ScriptedEngine(script), max_tokens=500).for_agent("ada")


@pytest.fixture(scope="module")
def retriever() -> BaseRetriever:
    return SummaryIndex.from_documents([Document(text="Biscuit is a dog.")]).as_retriever()


Made = Callable[[DeltaMemLLM, BaseRetriever], BaseChatEngine]
ENGINES: dict[str, Made] = {
    "simple": lambda llm, _: SimpleChatEngine.from_defaults(llm=llm, memory=Memory.from_defaults()),
    "context": lambda llm, retriever: ContextChatEngine.from_defaults(
        retriever=retriever, llm=llm, memory=Memory.from_defaults()
    ),
    "condense": lambda llm, retriever: CondensePlusContextChatEngine.from_defaults(
        retriever=retriever, llm=llm, memory=Memory.from_defaults()
    ),
}


def heard_in(way: str, engine: BaseChatEngine, text: str) -> str:
    if way == "sync":
        return engine.chat(text).response
    if way == "stream":
        return "".join(engine.stream_chat(text).response_gen)

    async def ask() -> str:
        if way == "async":
            return (await engine.achat(text)).response
        reply = await engine.astream_chat(text)
        return "".join([piece async for piece in reply.async_response_gen()])

    return asyncio.run(ask())


def absorbed(llm: DeltaMemLLM) -> Snapshot:
    return llm.open_engine("ada").store.load("ada").snapshot


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("way", ["sync", "stream", "async", "astream"])
def test_a_conversation_is_remembered_once(kind: str, way: str, llm: DeltaMemLLM, retriever: BaseRetriever) -> None:
    engine = ENGINES[kind](llm, retriever)
    said = ["My dog is Biscuit.", "What is it called?", "And now?"]
    for text in said:
        assert heard_in(way, engine, text) == f"You said: {text}"
    expected = [m for text in said for m in (Message("user", text), Message("assistant", f"You said: {text}"))]
    assert absorbed(llm).absorbed.tail == tuple(map(digest, expected))
    assert absorbed(llm).counters.turns == 3


@pytest.mark.parametrize("kind", ENGINES)
def test_a_reset_engine_still_reads_the_memory(kind: str, llm: DeltaMemLLM, retriever: BaseRetriever) -> None:
    engine = ENGINES[kind](llm, retriever)
    engine.chat("My dog is Biscuit.")
    engine.reset()
    before = absorbed(llm)
    engine.chat("What is my dog called?")
    assert absorbed(llm).parent is not None and absorbed(llm).absorbed.count == before.absorbed.count + 2


@pytest.mark.slow
def test_a_long_conversation_outgrows_the_window_and_not_the_memory(retriever: BaseRetriever) -> None:
    llm = DeltaMemLLM(engine=ScriptedEngine("ok", window_tokens=400), max_tokens=20).for_agent("ada")
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=Memory.from_defaults(token_limit=100_000))
    for number in range(12):
        engine.chat(f"This is fact number {number}, told in so many words.")
    assert absorbed(llm).absorbed.count == 24 and absorbed(llm).state.nbytes == 64
