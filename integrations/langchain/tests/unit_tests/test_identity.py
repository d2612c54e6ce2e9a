"""Which agent's memory a call uses, for every public method."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ensure_config
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from scripted_chat import scripted, store, turns

from deltamem_agents import ConfigError, InMemoryStore, StoreError
from deltamem_agents.testing import Asked
from langchain_deltamem import ChatDeltaMem, use_agent
from langchain_deltamem.identity import Identity, resolve, thread_name, threads_of

# Version 3 of the event stream is a beta and is tested on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


class Answer(BaseModel):
    """An answer."""

    text: str


@pytest.fixture
def model() -> ChatDeltaMem:
    return scripted()


def agents(model: ChatDeltaMem) -> list[str]:
    return store(model).agents()


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def _drain_v3(opening: Any) -> None:
    await (await opening)


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda m, c: m.invoke("hi", c),
    "ainvoke": lambda m, c: asyncio.run(m.ainvoke("hi", c)),
    "stream": lambda m, c: list(m.stream("hi", c)),
    "astream": lambda m, c: asyncio.run(_drain(m.astream("hi", c))),
    "batch": lambda m, c: m.batch(["hi"], c),
    "abatch": lambda m, c: asyncio.run(m.abatch(["hi"], c)),
    "astream_events v2": lambda m, c: asyncio.run(_drain(m.astream_events("hi", c, version="v2"))),
    "stream_events v3": lambda m, c: m.stream_events("hi", c, version="v3").output,
    "astream_events v3": lambda m, c: asyncio.run(_drain_v3(m.astream_events("hi", c, version="v3"))),
}
WRAPPED: dict[str, Callable[[ChatDeltaMem], Any]] = {
    "plain": lambda m: m,
    "bind_tools": lambda m: m.bind_tools([Answer]),
    "with_structured_output": lambda m: m.with_structured_output(Answer),
    "with_retry": lambda m: m.with_retry(),
    "with_fallbacks": lambda m: m.with_fallbacks([m]),
    "with_config": lambda m: m.with_config(tags=["x"]),
    "LCEL": lambda m: ChatPromptTemplate.from_messages([("human", "{input}")]) | m | StrOutputParser(),
}


# Only chat models have version 3 of the event stream.
COMBINED = [
    (way, wrapped)
    for way, wrapped in product(WAYS, WRAPPED)
    if wrapped in ("plain", "bind_tools") or not way.endswith("v3")
]
# One in three is among the fast tests: each method and each wrapper.
MARKED = [pytest.param(*one, marks=[pytest.mark.slow] if n % 3 else []) for n, one in enumerate(COMBINED)]


@pytest.mark.parametrize(("way", "wrapped"), MARKED)
def test_every_method_finds_the_agent_of_the_config(model: ChatDeltaMem, way: str, wrapped: str) -> None:
    runnable = WRAPPED[wrapped](model)
    WAYS[way](runnable, {"configurable": {"deltamem_agent_id": "ada"}})
    assert agents(model) == ["ada"] and turns(model, "ada") == 1
    WAYS[way](runnable, {"configurable": {"thread_id": "t1"}})
    assert agents(model) == ["ada", "thread:t1"]
    with use_agent("bob"):
        WAYS[way](runnable, {"configurable": {"deltamem_agent_id": "ada"}})
    assert agents(model) == ["ada", "bob", "thread:t1"] and turns(model, "ada") == 1


@pytest.mark.parametrize("way", WAYS)
def test_without_an_identity_nothing_is_kept(model: ChatDeltaMem, way: str) -> None:
    WAYS[way](model, None)
    assert agents(model) == []


def test_the_first_given_identity_decides() -> None:
    config = {"configurable": {"deltamem_agent_id": "configured", "thread_id": "t"}}
    thread_only = {"configurable": {"thread_id": "t"}}
    with use_agent("bound", memory="readonly"):
        assert resolve(config, {"agent_id": "explicit"}, "own").agent_id == "explicit"
        assert resolve(config, {}, "own") == Identity("bound", "t", "readonly")
        assert resolve(config, {"memory": "off"}, "own").memory == "off"
    assert resolve(config, {}, "own") == Identity("configured", "t")
    assert resolve(thread_only, {}, "own") == Identity("thread:t", "t")
    assert resolve({}, {}, "own") == Identity("own")
    assert resolve({}, {}, None) == Identity("")
    assert resolve({}, {}, "own", "off") == Identity("own", None, "off")
    assert resolve({}, {"thread": "x", "agent_id": "a"}, None) == Identity("a", "x")


def test_an_empty_agent_id_opens_no_agents_memory() -> None:
    empty = {"configurable": {"deltamem_agent_id": "", "thread_id": "t"}}
    assert resolve(empty, {}, "own").agent_id == resolve({}, {"agent_id": ""}, "own").agent_id == ""
    none = {"configurable": {"deltamem_agent_id": None}}
    assert resolve(none, {"agent_id": None}, "own").agent_id == "own"


def test_an_agent_id_may_be_a_number(model: ChatDeltaMem) -> None:
    model.invoke("hi", agent_id=7)
    model.invoke("hello", {"configurable": {"deltamem_agent_id": 7}})
    assert agents(model) == ["7"] and turns(model, "7") == 2


def test_different_places_of_a_graph_have_different_names() -> None:
    def name(thread: str, agent: str | None = None, place: str = "") -> str | None:
        metadata = {} if agent is None else {"lc_agent_name": agent}
        return thread_name({"configurable": {"thread_id": thread, "checkpoint_ns": place}, "metadata": metadata})

    names = [
        name("t"),
        name("t", place="tools:1|model:2"),
        name("t", "lead"),
        name("t", "lead", "tools:1|model:2"),
        name("t", "tools"),
        name("t#lead"),
        name("t%23lead"),
        name("u"),
    ]
    assert len(set(names)) == len(names)
    assert name("t", place="model:1") == name("t", place="model:2") == "t"
    assert name("") is None and thread_name({}) is None
    known = [n for n in names if n is not None]
    assert threads_of("t", known) == known[:5] and threads_of("u", known) == ["u"]


@pytest.mark.slow
@pytest.mark.parametrize("sync", [True, False])
def test_batched_agents_never_share(model: ChatDeltaMem, sync: bool) -> None:
    names = [f"agent {n}" for n in range(8)]
    texts, configs = [f"I am {n}" for n in names], [{"configurable": {"deltamem_agent_id": n}} for n in names]
    if sync:
        model.batch(texts, configs)
    else:
        asyncio.run(model.abatch(texts, configs))
    assert agents(model) == names
    states = [store(model).load(name).snapshot.state.matrices for name in names]
    for name, state in zip(names, states, strict=True):
        alone = scripted()
        alone.invoke(f"I am {name}", agent_id=name)
        assert (store(alone).load(name).snapshot.state.matrices - state).abs().max() < 1e-5


def test_a_retry_and_a_fallback_write_once_and_for_the_same_agent(
    model: ChatDeltaMem, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, failures = store(model).save, [StoreError("full"), StoreError("full")]

    def save(*given: Any, **named: Any) -> str:
        if failures:
            raise failures.pop()
        return genuine(*given, **named)

    monkeypatch.setattr(store(model), "save", save)
    config = {"configurable": {"deltamem_agent_id": "ada"}}
    retrying = model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    retrying.with_fallbacks([model.bind(temperature=0.1)]).invoke("hi", config)
    assert agents(model) == ["ada"] and turns(model, "ada") == 1


def test_generate_uses_the_enclosing_config_and_use_agent(model: ChatDeltaMem) -> None:
    model.generate([[HumanMessage("hi")]])
    assert agents(model) == []
    with use_agent("ada"):
        model.generate([[HumanMessage("hi")]])
    assert agents(model) == ["ada"]


def test_a_store_may_be_bound_too(model: ChatDeltaMem) -> None:
    other = InMemoryStore()
    with use_agent("ada", store=other):
        model.invoke("hi")
        model.invoke("hi", agent_id="bob")
    assert other.agents() == ["ada"] and agents(model) == ["bob"]


def test_a_thread_of_an_agent_is_its_own_conversation(model: ChatDeltaMem) -> None:
    for thread in ("a", "b"):
        model.invoke("hi", {"configurable": {"deltamem_agent_id": "ada", "thread_id": thread}})
    assert {e.snapshot.thread for e in store(model).log("ada")} == {"a", "b"}


@pytest.mark.parametrize("mark", [{"lc_source": "summarization"}, {"lc_internal_call": True}])
def test_the_frameworks_own_requests_are_read_only(model: ChatDeltaMem, mark: dict[str, Any]) -> None:
    config = {"configurable": {"deltamem_agent_id": "ada"}, "metadata": mark}
    assert model.invoke("hi", config).response_metadata["deltamem"]["memory"] == "readonly"
    assert agents(model) == []
    assert model.invoke("hi", config, memory="off").response_metadata["deltamem"]["memory"] == "off"
    frozen = ChatDeltaMem(engine=model.engine, memory="off")
    assert frozen.invoke("hi", config).response_metadata["deltamem"]["memory"] == "off"


def test_summaries_do_not_reach_the_memory() -> None:
    model = scripted(max_tokens=100)
    summary = SummarizationMiddleware(model=model, trigger=("messages", 4), keep=("messages", 2))
    graph = create_agent(model, middleware=[summary], checkpointer=InMemorySaver())
    for number in range(4):
        graph.invoke({"messages": [HumanMessage(f"Fact {number}.")]}, {"configurable": {"thread_id": "t"}})
    assert agents(model) == ["thread:t"] and turns(model, "thread:t") == 4


@pytest.fixture
def global_cache() -> Iterator[InMemoryCache]:
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


def test_a_global_cache_loses_no_write(global_cache: InMemoryCache) -> None:
    said: list[Asked] = []
    model = scripted(lambda asked: said.append(asked) or "ok")
    for agent in ("ada", "bob", "ada"):
        model.invoke("hi", agent_id=agent)
        asyncio.run(model.ainvoke("hi", agent_id=agent))
        list(model.stream("hi", agent_id=agent))
        model.batch(["hi"], agent_id=agent)
    assert len(said) == 12 and agents(model) == ["ada", "bob"] and not global_cache._cache


@pytest.mark.parametrize("memory", ["readwrite", "readonly"])
@pytest.mark.parametrize("cache", [True, InMemoryCache()])
def test_a_cache_of_the_model_is_refused_with_a_memory(cache: Any, memory: Any) -> None:
    with pytest.raises(ValueError, match="cache"):
        ChatDeltaMem(model="scripted", cache=cache, memory=memory)
    frozen = ChatDeltaMem(model="scripted", cache=InMemoryCache(), memory="off")
    frozen.invoke("hi")
    with pytest.raises(ConfigError, match="cache"):
        frozen.invoke("hi", memory=memory)
    with use_agent("ada", memory=memory), pytest.raises(ConfigError, match="cache"):
        frozen.generate([[HumanMessage("hi")]])


def test_the_global_cache_is_refused_with_a_memory(global_cache: InMemoryCache) -> None:
    with pytest.raises(ConfigError, match="cache"):
        ChatDeltaMem(model="scripted", cache=None).invoke("hi")
    said: list[Asked] = []
    frozen = scripted(lambda asked: said.append(asked) or "ok", cache=None, memory="off")
    assert frozen.invoke("hi").content == frozen.invoke("hi").content == "ok" and len(said) == 1


def test_memory_modes_of_the_model_and_of_a_call(model: ChatDeltaMem) -> None:
    frozen = ChatDeltaMem(engine=model.engine, memory="readonly", agent_id="ada")
    frozen.invoke("hi")
    assert agents(model) == []
    frozen.invoke("hi", memory="readwrite")
    assert agents(model) == ["ada"]


def test_identity_is_traced_as_plain_text_only() -> None:
    config = ensure_config({"configurable": {"deltamem_agent_id": "ada", "thread_id": 7}})
    assert resolve(config, {}, None).keywords() == {"agent_id": "ada", "thread": "7", "memory": "readwrite"}
    assert resolve({}, {}, "own").keywords() == {"agent_id": "own", "memory": "readwrite"}
    assert isinstance(ChatDeltaMem(model="scripted"), BaseChatModel)
