"""Laws of the agent a call uses: named agents remember, unnamed memories end with the call, none are shared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole

from deltamem_agents import InMemoryStore, InvalidAgentIdError, SQLiteStore
from deltamem_agents.testing import ScriptedEngine, oblige
from llama_index.llms.deltamem import DeltaMemLLM, use_agent
from llama_index.llms.deltamem.conformance import WAYS, heard

HELLO = [ChatMessage(role=MessageRole.USER, content="Hello.")]


@pytest.fixture
def llm() -> DeltaMemLLM:
    return DeltaMemLLM(engine=ScriptedEngine(oblige), max_tokens=500)


def stored(llm: DeltaMemLLM) -> list[str]:
    return llm.open_engine(None).store.agents()


@pytest.mark.parametrize("way", WAYS)
def test_the_first_given_identity_decides(llm: DeltaMemLLM, way: str) -> None:
    def facts(who: DeltaMemLLM, **given: Any) -> Any:
        return heard(who, "chat", way, HELLO, **given)[-1].raw["deltamem"]

    assert facts(llm)["agent"] is None
    assert facts(llm.for_agent("own", thread="t"))["agent"] == "own"
    with use_agent("block", thread="b"):
        bound, named = facts(llm.for_agent("own")), facts(llm.for_agent("own"), agent_id="call", thread="c")
    assert (bound["agent"], bound["thread"]) == ("block", "b")
    assert (named["agent"], named["thread"]) == ("call", "c")
    assert stored(llm) == ["block", "call", "own"]


def test_a_thread_belongs_to_its_agent(llm: DeltaMemLLM) -> None:
    view = llm.for_agent("own", thread="t")
    assert view.chat(HELLO).raw["deltamem"]["thread"] == "t"
    assert view.chat(HELLO, agent_id="other").raw["deltamem"]["thread"] is None
    with use_agent("block"):
        assert view.chat(HELLO).raw["deltamem"]["thread"] is None


@pytest.mark.parametrize("way", WAYS)
def test_without_an_identity_nothing_is_kept(llm: DeltaMemLLM, way: str) -> None:
    for given in ({}, {"agent_id": ""}):
        facts = heard(llm, "chat", way, HELLO, **given)[-1].raw["deltamem"]
        assert facts["agent"] is None and facts["snapshot"] is None
    with use_agent(""):
        assert heard(llm.for_agent("own"), "chat", way, HELLO)[-1].raw["deltamem"]["agent"] is None
    assert stored(llm) == []


def test_a_view_shares_the_engine_and_never_the_memory(llm: DeltaMemLLM) -> None:
    ada, bob = llm.for_agent("ada"), llm.for_agent("bob")
    ada.chat(HELLO)
    assert stored(bob) == ["ada"] and ada.open_engine("ada").model is bob.open_engine("bob").model
    state = bob.chat(HELLO, memory="readonly").raw["deltamem"]
    assert state["alignment"] == "fresh" and llm.agent_id is None


def test_views_of_an_llm_by_name_share_its_store() -> None:
    llm = DeltaMemLLM(model="scripted", store="memory:", max_tokens=500)
    llm.for_agent("ada").chat(HELLO)
    assert stored(llm) == ["ada"] and stored(llm.for_agent("bob")) == ["ada"]
    assert stored(DeltaMemLLM(model="scripted", store="memory:")) == []


def test_a_call_may_name_another_model() -> None:
    llm = DeltaMemLLM(engine=ScriptedEngine(oblige, name="mine"), max_tokens=500)
    assert llm.chat(HELLO).raw["model"] == "mine"
    reply = llm.for_agent("ada").chat(HELLO, model="scripted")
    assert reply.raw["model"] == "scripted" and stored(llm) == ["ada"]


def test_for_agent_refuses_a_blank_id(llm: DeltaMemLLM) -> None:
    with pytest.raises(InvalidAgentIdError, match="expected a name"):
        llm.for_agent("")


@pytest.mark.parametrize("way", WAYS)
def test_completions_only_read_unless_told_otherwise(llm: DeltaMemLLM, way: str) -> None:
    ada = llm.for_agent("ada")
    ada.chat(HELLO)
    before = ada.open_engine("ada").store.head("ada")
    facts = heard(ada, "complete", way, "Condense this.")[-1].raw["deltamem"]
    assert facts["memory"] == "readonly" and facts["agent"] == "ada" and facts["tokens_read"] > 0
    assert ada.open_engine("ada").store.head("ada") == before
    told = heard(ada, "complete", way, "Remember this.", memory="readwrite")[-1].raw["deltamem"]
    assert told["snapshot"] == ada.open_engine("ada").store.head("ada") != before
    with use_agent("bob", memory="readwrite"):
        assert heard(llm, "complete", way, "And this.")[-1].raw["deltamem"]["snapshot"] is not None
    assert heard(ada.for_agent("ada", memory="off"), "complete", way, "x")[-1].raw["deltamem"]["memory"] == "off"


def test_memory_modes_come_from_call_block_and_view(llm: DeltaMemLLM) -> None:
    quiet = llm.for_agent("ada", memory="readonly")
    assert quiet.chat(HELLO).raw["deltamem"]["memory"] == "readonly"
    assert quiet.chat(HELLO, memory="off").raw["deltamem"]["memory"] == "off"
    with use_agent("ada", memory="off"):
        assert quiet.chat(HELLO).raw["deltamem"]["memory"] == "off"
    assert stored(llm) == []


def test_a_block_may_name_the_store(llm: DeltaMemLLM) -> None:
    elsewhere = InMemoryStore()
    with use_agent("ada", store=elsewhere):
        llm.chat(HELLO)
        llm.chat(HELLO, agent_id="bob")
    assert elsewhere.agents() == ["ada"] and stored(llm) == ["bob"]


def test_the_memory_survives_its_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'm.sqlite'}"
    first = DeltaMemLLM(model="scripted", store=url, max_tokens=500).for_agent("ada").chat(HELLO)
    again = DeltaMemLLM(model="scripted", store=url, max_tokens=500).for_agent("ada")
    facts = again.chat([ChatMessage(role=MessageRole.USER, content="Who am I?")]).raw["deltamem"]
    assert facts["alignment"] == "windowed"
    with SQLiteStore(tmp_path / "m.sqlite") as store:
        log = [entry.id for entry in store.log("ada")]
    assert log == [facts["snapshot"], first.raw["deltamem"]["snapshot"]]


async def test_concurrent_agents_do_not_share_memories(llm: DeltaMemLLM) -> None:
    async def talk(name: str) -> str:
        with use_agent(name):
            for fact in range(3):
                await llm.achat([ChatMessage(role=MessageRole.USER, content=f"{name} says {fact}.")])
        return name

    names = await asyncio.gather(*(talk(name) for name in ("ada", "bob", "cy")))
    store = llm.open_engine(None).store
    assert [store.load(name).snapshot.absorbed.count for name in names] == [6, 6, 6]
    assert len({store.load(name).snapshot.absorbed.tail for name in names}) == 3
