"""Laws of the memory block: messages that leave the short-term memory are absorbed once and cost no prompt tokens."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import InsertMethod, Memory, StaticMemoryBlock

from deltamem_agents import MessageError, Snapshot, SQLiteStore
from deltamem_agents.testing import ScriptedEngine
from llama_index.llms.deltamem import DeltaMemLLM, DeltaMemoryBlock


@pytest.fixture
def bob() -> DeltaMemLLM:
    return DeltaMemLLM(engine=ScriptedEngine("Noted."), max_tokens=50).for_agent("bob")


def small_memory(*blocks: Any, **fields: Any) -> Memory:
    """A memory that holds a few words and flushes the rest."""
    return Memory.from_defaults(
        session_id="s",
        token_limit=40,
        token_flush_size=10,
        chat_history_token_ratio=0.5,
        memory_blocks=list(blocks),
        tokenizer_fn=str.split,
        **fields,
    )


def says(text: str, role: MessageRole = MessageRole.USER) -> ChatMessage:
    return ChatMessage(role=role, content=text)


def exchange(number: int) -> list[ChatMessage]:
    return [
        says(f"This is fact number {number} told in ten words here."),
        says(f"I have written down number {number}.", MessageRole.ASSISTANT),
    ]


def head(llm: DeltaMemLLM) -> Snapshot:
    return llm.open_engine("bob").store.load("bob").snapshot


async def test_flushed_messages_are_absorbed(bob: DeltaMemLLM) -> None:
    memory = small_memory(DeltaMemoryBlock(llm=bob))
    for number in range(5):
        await memory.aput_messages(exchange(number))
    kept = await memory.aget()
    assert head(bob).absorbed.count == 10 - len(kept) > 0
    assert head(bob).origin == "absorb"
    engine = bob.open_engine("bob")
    flushed = [{"role": message.role.value, "content": message.content} for n in range(5) for message in exchange(n)][
        : 10 - len(kept)
    ]
    assert head(bob).counters.tokens == engine.count_tokens(flushed)


@pytest.mark.parametrize("insert", InsertMethod)
async def test_reading_costs_no_tokens(bob: DeltaMemLLM, insert: InsertMethod) -> None:
    memory = small_memory(DeltaMemoryBlock(llm=bob), insert_method=insert)
    for number in range(5):
        await memory.aput_messages(exchange(number))
    kept = await memory.aget()
    assert [message.content for message in kept] == [m.content for n in range(5) for m in exchange(n)][-len(kept) :]
    assert all(message.role in (MessageRole.USER, MessageRole.ASSISTANT) for message in kept)


async def test_it_works_beside_other_blocks(bob: DeltaMemLLM) -> None:
    memory = small_memory(StaticMemoryBlock(name="static", static_content="Be kind."), DeltaMemoryBlock(llm=bob))
    for number in range(5):
        await memory.aput_messages(exchange(number))
    first = (await memory.aget())[0]
    assert first.role == MessageRole.SYSTEM and "Be kind." in (first.content or "") and "deltamem" not in str(first)
    assert head(bob).absorbed.count > 0


def test_messages_the_agent_has_written_are_not_absorbed_again(bob: DeltaMemLLM) -> None:
    engine = SimpleChatEngine.from_defaults(llm=bob, memory=small_memory(DeltaMemoryBlock(llm=bob)))
    for number in range(6):
        engine.chat(f"This is fact number {number} told in ten words here.")
    assert head(bob).absorbed.count == 12 and head(bob).counters.turns == 6


def test_with_a_readonly_agent_only_the_block_writes(bob: DeltaMemLLM) -> None:
    reader, memory = bob.for_agent("bob", memory="readonly"), small_memory(DeltaMemoryBlock(llm=bob))
    engine = SimpleChatEngine.from_defaults(llm=reader, memory=memory)
    for number in range(6):
        engine.chat(f"This is fact number {number} told in ten words here.")
    assert head(bob).absorbed.count == 12 - len(memory.get()) > 0
    reply = reader.chat([says("What do you know?")])
    assert reply.raw["deltamem"]["state_norm"] == pytest.approx(head(bob).state.norm())


async def test_a_new_process_reads_what_was_flushed(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'm.sqlite'}"
    bob = DeltaMemLLM(model="scripted", store=url, max_tokens=50).for_agent("bob")
    memory = small_memory(DeltaMemoryBlock(llm=bob))
    for number in range(5):
        await memory.aput_messages(exchange(number))
    again = DeltaMemLLM(model="scripted", store=url, max_tokens=50).for_agent("bob", memory="readonly")
    reply = await again.achat([says("What do you know?")])
    with SQLiteStore(tmp_path / "m.sqlite") as store:
        assert reply.raw["deltamem"]["state_norm"] == pytest.approx(store.load("bob").snapshot.state.norm())
    assert reply.raw["usage"]["prompt_tokens"] < 100


async def test_content_that_is_not_text_is_refused(bob: DeltaMemLLM) -> None:
    block = DeltaMemoryBlock(llm=bob)
    with pytest.raises(MessageError, match="'image'"):
        await block.aput([says("See:"), ChatMessage(blocks=[ImageBlock(url="http://x/y.png")])])
    assert bob.open_engine("bob").store.agents() == []


def test_a_block_without_an_agent_is_refused(bob: DeltaMemLLM) -> None:
    with pytest.raises(ValueError, match="for_agent"):
        DeltaMemoryBlock(llm=DeltaMemLLM(engine=bob.engine))


async def test_short_term_memory_can_be_left_out(bob: DeltaMemLLM) -> None:
    block = DeltaMemoryBlock(llm=bob, accept_short_term_memory=False)
    await block.aput(exchange(0), from_short_term_memory=True)
    assert bob.open_engine("bob").store.agents() == []
    await block.aput(exchange(0))
    assert head(bob).absorbed.count == 2
