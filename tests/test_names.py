"""Laws of ids: one rule for the engine and both frameworks, checked before the model is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("langchain_deltamem")
pytest.importorskip("llama_index.llms.deltamem")

from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from pydantic import ValidationError

from deltamem_agents import ConfigError, InMemoryStore, InvalidAgentIdError
from deltamem_agents.bridges import use_agent, which_thread, whose
from deltamem_agents.names import NAME_LENGTH, agent_name, thread_name
from deltamem_agents.snapshots.codec import encode, snapshot_id
from deltamem_agents.snapshots.records import Move
from deltamem_agents.snapshots.snapshot import utc_now
from deltamem_agents.testing import AWKWARD_IDS, ScriptedEngine, example_snapshot
from langchain_deltamem import ChatDeltaMem
from llama_index.llms.deltamem import DeltaMemLLM

SAID = [{"role": "user", "content": "hi"}]
HI = [ChatMessage("hi")]
IDENTIFIER = UUID("12345678-1234-5678-1234-567812345678")
NOBODY = (False, "", " ", "\n\t", "\u2003")
NO_NAMES = (True, 1.5, b"ada", ["ada"], object(), "half \ud800", "x" * (NAME_LENGTH + 1))

engine = ScriptedEngine(lambda asked: "Hello.", "memory:")


async def _drained(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


def _bound(agent: Any, ask: Callable[[], Any], **given: Any) -> Any:
    with use_agent(agent, **given):
        return ask()


def langchain(**fields: Any) -> ChatDeltaMem:
    return ChatDeltaMem(engine=engine, max_tokens=20, **fields)


def llamaindex(**fields: Any) -> DeltaMemLLM:
    return DeltaMemLLM(engine=engine, max_tokens=20, **fields)


def _as_configured(**configurable: Any) -> dict[str, Any]:
    return {"configurable": configurable}


AGENTS: dict[str, Callable[[Any], Any]] = {
    "langchain keyword": lambda name: langchain().invoke("hi", agent_id=name),
    "langchain stream": lambda name: list(langchain().stream("hi", agent_id=name)),
    "langchain ainvoke": lambda name: asyncio.run(langchain().ainvoke("hi", agent_id=name)),
    "langchain generate": lambda name: langchain().generate([[HumanMessage("hi")]], agent_id=name),
    "langchain use_agent": lambda name: _bound(name, lambda: langchain().invoke("hi")),
    "langchain config": lambda name: langchain().invoke("hi", _as_configured(deltamem_agent_id=name)),
    "langchain constructor": lambda name: langchain(agent_id=name).invoke("hi"),
    "llamaindex keyword": lambda name: llamaindex().chat(HI, agent_id=name),
    "llamaindex stream": lambda name: list(llamaindex().stream_chat(HI, agent_id=name)),
    "llamaindex use_agent": lambda name: _bound(name, lambda: llamaindex().chat(HI)),
    "llamaindex constructor": lambda name: llamaindex(agent_id=name).chat(HI),
}
VIEWS: dict[str, Callable[[Any], Any]] = {"llamaindex for_agent": lambda name: llamaindex().for_agent(name).chat(HI)}
ENGINES: dict[str, Callable[[Any], Any]] = {
    "run_turn": lambda name: engine.run_turn(name, SAID),
    "stream_turn": lambda name: engine.stream_turn(name, SAID),
    "arun_turn": lambda name: asyncio.run(engine.arun_turn(name, SAID)),
    "astream_turn": lambda name: engine.astream_turn(name, SAID),
    "memory off": lambda name: engine.run_turn(name, SAID, memory="off"),
    "absorb_into": lambda name: engine.absorb_into(name, SAID),
}
THREADS: dict[str, Callable[[Any], Any]] = {
    "run_turn": lambda name: engine.run_turn("ada", SAID, thread=name),
    "stream_turn": lambda name: list(engine.stream_turn("ada", SAID, thread=name)),
    "langchain keyword": lambda name: langchain().invoke("hi", agent_id="ada", thread=name),
    "langchain use_agent": lambda name: _bound("ada", lambda: langchain().invoke("hi"), thread=name),
    "langchain thread_id": lambda name: langchain().invoke(
        "hi", _as_configured(deltamem_agent_id="ada", thread_id=name)
    ),
    "llamaindex keyword": lambda name: llamaindex().chat(HI, agent_id="ada", thread=name),
    "llamaindex use_agent": lambda name: _bound("ada", lambda: llamaindex().chat(HI), thread=name),
    "llamaindex for_agent": lambda name: llamaindex().for_agent("ada", thread=name).chat(HI),
    "llamaindex constructor": lambda name: llamaindex(agent_id="ada", thread=name).chat(HI),
}


@pytest.fixture(autouse=True)
def forget_all() -> Any:
    yield
    for agent in engine.store.agents():
        engine.store.forget(agent)


@pytest.mark.parametrize("way", [*AGENTS, *VIEWS, "run_turn", "arun_turn", "absorb_into"])
def test_a_number_and_its_text_are_one_agent_everywhere(way: str) -> None:
    for name in (7, "7", IDENTIFIER, " a", "a"):
        (AGENTS | VIEWS | ENGINES)[way](name)
    assert engine.store.agents() == sorted(["7", str(IDENTIFIER), " a", "a"])


@pytest.mark.parametrize("way", AGENTS)
def test_a_blank_id_leaves_no_memory(way: str) -> None:
    for name in NOBODY:
        AGENTS[way](name)
    assert engine.store.agents() == []


def test_a_blank_id_is_not_replaced_by_a_later_rule() -> None:
    for name in NOBODY:
        langchain(agent_id="ada").invoke("hi", agent_id=name)
        langchain(agent_id="ada").invoke("hi", _as_configured(deltamem_agent_id=name, thread_id="t"))
        llamaindex(agent_id="ada").chat(HI, agent_id=name)
        with use_agent(name):
            langchain(agent_id="ada").invoke("hi")
            llamaindex(agent_id="ada").chat(HI)
    assert engine.store.agents() == []


@pytest.mark.parametrize("way", [*AGENTS, *VIEWS])
def test_an_invalid_id_is_refused_in_both_frameworks(way: str) -> None:
    for name in NO_NAMES:
        with pytest.raises((InvalidAgentIdError, ValidationError), match="agent id"):
            (AGENTS | VIEWS)[way](name)
    for name in NOBODY if way in VIEWS else ():
        with pytest.raises(InvalidAgentIdError):
            VIEWS[way](name)
    assert engine.store.agents() == []


@pytest.mark.parametrize("way", ENGINES)
def test_the_engine_refuses_an_invalid_id_when_it_is_called(way: str) -> None:
    for name in (*NOBODY, *NO_NAMES):
        with pytest.raises(InvalidAgentIdError, match="agent id"):
            ENGINES[way](name)
    assert engine.store.agents() == []


@pytest.mark.parametrize("way", THREADS)
def test_threads_are_named_by_the_same_rule(way: str) -> None:
    for name in (7, "7", IDENTIFIER):
        THREADS[way](name)
    assert {entry.snapshot.thread for entry in engine.store.log("ada")} == {"7", str(IDENTIFIER)}


@pytest.mark.parametrize("way", THREADS)
def test_a_blank_thread_is_none_and_an_invalid_name_is_refused_at_once(way: str) -> None:
    for name in ("", " "):
        THREADS[way](name)
    before = engine.store.head("ada")
    for name in NO_NAMES:
        with pytest.raises((ConfigError, ValidationError), match="thread"):
            THREADS[way](name)
    assert engine.store.head("ada") == before
    assert {entry.snapshot.thread for entry in engine.store.log("ada")} == {""}


def test_a_langgraph_thread_of_nobody_has_no_memory() -> None:
    for thread in NOBODY:
        langchain().invoke("hi", _as_configured(thread_id=thread))
    assert engine.store.agents() == []
    langchain().invoke("hi", _as_configured(thread_id=7))
    langchain().invoke("hi", _as_configured(thread_id="7"))
    assert engine.store.agents() == ["thread:7"]


def test_a_memory_block_of_nobody_is_refused() -> None:
    from llama_index.llms.deltamem import DeltaMemoryBlock

    for name in (None, "", False):
        with pytest.raises(ValueError, match="no agent"):
            DeltaMemoryBlock(llm=llamaindex(agent_id=name))


@given(st.text())
def test_every_text_is_an_agent_or_is_refused_and_never_changed(text: str) -> None:
    try:
        named = agent_name(text)
    except InvalidAgentIdError:
        named = None
    storable = 0 < len(text) <= NAME_LENGTH and text.encode("utf-8", "replace").decode() == text and text.strip()
    assert named == (text if storable else None)
    assert whose(text) == (text if storable else "") if named or not text.strip() else True
    if named:
        assert thread_name(text) == which_thread(text) == text


def test_unusual_ids_are_valid() -> None:
    assert [agent_name(name) for name in AWKWARD_IDS] == list(AWKWARD_IDS)


def test_a_blank_agent_of_an_earlier_version_can_be_looked_at_and_forgotten() -> None:
    store, data = InMemoryStore(), encode(example_snapshot())
    store._append(" ", Move("turn", snapshot_id(data), utc_now()), data, None)
    with pytest.raises(InvalidAgentIdError):
        store.fork(" ", "\n")
    assert store.load(" ").id == store.fork(" ", "ada")
    store.forget(" ")
    assert store.agents() == ["ada"]
