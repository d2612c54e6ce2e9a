"""Laws of `recall` in the engine and both frameworks: how a memory is read, and what a reply reports as recalled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("langchain_deltamem")
pytest.importorskip("llama_index.llms.deltamem")

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load import dumps, loads
from langchain_core.runnables import ConfigurableField
from llama_index.core.base.llms.types import ChatMessage
from pydantic import ValidationError

from deltamem_agents import ConfigError, Recall
from deltamem_agents.bridges.dialects import as_recall, written_recall
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.types import READ_MODES, ROLES
from langchain_deltamem import ChatDeltaMem
from llama_index.llms.deltamem import DeltaMemLLM, source_nodes
from tiny_engine import tiny_engine

ASKED = "What is the name of my dog?"


@pytest.fixture
def engine() -> DeltaMemEngine:
    """An engine whose agent ada was told two things."""
    made = tiny_engine(config=SELECTIVE)
    for text in ("My dog is called Biscuit.", "I live in Oslo."):
        made.absorb_into("ada", [{"role": "user", "content": text}])
    return made


def langchain(engine: DeltaMemEngine, call: dict[str, Any], **fields: Any) -> dict[str, Any]:
    model = ChatDeltaMem(engine=engine, agent_id="ada", memory="readonly", max_tokens=3, **fields)
    return model.invoke(ASKED, **call).response_metadata["deltamem"]


def llamaindex(engine: DeltaMemEngine, call: dict[str, Any], **fields: Any) -> dict[str, Any]:
    llm = DeltaMemLLM(engine=engine, agent_id="ada", memory="readonly", max_tokens=3, **fields)
    return llm.chat([ChatMessage(ASKED)], **call).raw["deltamem"]


FRAMEWORKS: dict[str, Callable[..., dict[str, Any]]] = {"langchain": langchain, "llamaindex": llamaindex}
recalls = st.builds(
    Recall,
    read=st.sampled_from(READ_MODES),
    window_tokens=st.integers(0, 4096),
    roles=st.lists(st.sampled_from(ROLES), unique=True).map(tuple),
    max_age=st.none() | st.integers(0, 10**9).map(lambda s: timedelta(seconds=s)),
)


@given(recalls)
def test_a_recall_survives_json(recall: Recall) -> None:
    assert as_recall(json.loads(json.dumps(written_recall(recall)))) == recall
    assert as_recall(recall) is recall
    assert as_recall(None) is None and written_recall(None) is None


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_recall_comes_from_the_call_then_the_model_then_the_engine(engine: DeltaMemEngine, framework: str) -> None:
    reply = FRAMEWORKS[framework]
    assert reply(engine, {})["recalled"]
    assert not reply(engine, {}, recall=Recall("none"))["recalled"]
    assert not reply(engine, {}, recall={"read": "none"})["recalled"]
    assert reply(engine, {"recall": Recall()}, recall=Recall("none"))["recalled"]
    assert not reply(engine, {"recall": {"read": "none"}}, recall=Recall())["recalled"]
    nothing, everything = (reply(engine, {"recall": Recall(read)})["state_norm"] for read in ("none", "all"))
    assert nothing == 0 < everything == pytest.approx(engine.store.load("ada").snapshot.state.norm())
    engine.recall = Recall("none")
    assert not reply(engine, {})["recalled"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("wrong", ["all", {"reed": "all"}, {"read": "some"}, {"window_tokens": "5"}, {"max_age": "1h"}])
def test_an_invalid_recall_is_refused(engine: DeltaMemEngine, framework: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"[Rr]ecall"):
        FRAMEWORKS[framework](engine, {"recall": wrong})
    with pytest.raises((ConfigError, ValidationError), match=r"[Rr]ecall"):
        FRAMEWORKS[framework](engine, {}, recall=wrong)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_recalled_statements_are_json_and_the_same_as_in_the_engine(engine: DeltaMemEngine, framework: str) -> None:
    report = FRAMEWORKS[framework](engine, {})
    assert json.loads(json.dumps(report)) == report
    turn = engine.run_turn("ada", [{"role": "user", "content": ASKED}], memory="readonly")
    assert report["recalled"] == turn.report["recalled"]
    assert [(each["id"], each["text"]) for each in report["recalled"]] == [
        (each.id, each.text) for each in turn.facts.recalled
    ]


def test_streams_report_recalled_statements_too(engine: DeltaMemEngine) -> None:
    model = ChatDeltaMem(engine=engine, agent_id="ada", memory="readonly", max_tokens=3)
    llm = DeltaMemLLM(engine=engine, agent_id="ada", memory="readonly", max_tokens=3)
    whole = model.invoke(ASKED).response_metadata["deltamem"]["recalled"]
    pieces = list(model.stream(ASKED))
    joined = pieces[0]
    for piece in pieces[1:]:
        joined = joined + piece

    async def streamed() -> list[Any]:
        return [piece async for piece in model.astream(ASKED)]

    assert joined.response_metadata["deltamem"]["recalled"] == whole
    assert asyncio.run(streamed())[-1].response_metadata["deltamem"]["recalled"] == whole
    assert list(llm.stream_chat([ChatMessage(ASKED)]))[-1].raw["deltamem"]["recalled"] == whole


def test_llamaindex_returns_recalled_statements_as_source_nodes(engine: DeltaMemEngine) -> None:
    llm = DeltaMemLLM(engine=engine, agent_id="ada", memory="readonly", max_tokens=3)
    for response in (llm.chat([ChatMessage(ASKED)]), llm.complete(ASKED)):
        (found,) = source_nodes(response)
        told = response.raw["deltamem"]["recalled"][0]
        assert (found.node.id_, found.text, found.score) == (told["id"], told["text"], told["score"])
        assert found.metadata == {"role": "user", "thread": "", "created": told["created"], "read_from": "state"}
    assert source_nodes(llm.chat([ChatMessage(ASKED)], memory="off")) == []


def test_langchain_binds_configures_and_serialises_recall(engine: DeltaMemEngine) -> None:
    model = ChatDeltaMem(engine=engine, agent_id="ada", memory="readonly", max_tokens=3)

    def recalled(runnable: Any, **config: Any) -> Any:
        return runnable.invoke(ASKED, config or None).response_metadata["deltamem"]["recalled"]

    assert not recalled(model.bind(recall={"read": "none"}))
    chosen = model.configurable_fields(recall=ConfigurableField(id="recall"))
    assert recalled(chosen) and not recalled(chosen, configurable={"recall": {"read": "none"}})
    read = Recall("all", window_tokens=99, roles=("user",), max_age=timedelta(hours=1))
    named = ChatDeltaMem(model="scripted", recall=read)
    again = loads(dumps(named), allowed_objects=[ChatDeltaMem], valid_namespaces=["langchain_deltamem"])
    assert again.recall == read
    assert json.dumps(named._identifying_params) and named._identifying_params["recall"] == written_recall(read)
    assert ChatDeltaMem(**named.model_dump()).recall == read


def test_llamaindex_serialises_recall() -> None:
    read = Recall("all", window_tokens=99, roles=("user",), max_age=timedelta(hours=1))
    llm = DeltaMemLLM(model="scripted", recall=read)
    assert DeltaMemLLM.from_json(llm.to_json()).recall == read
    assert llm.for_agent("ada").recall == read


def test_without_writes_statements_are_found_by_their_words() -> None:
    engine = tiny_engine()
    for text in ("My dog is called Biscuit.", "I live in Oslo."):
        engine.absorb_into("ada", [{"role": "user", "content": text}])
    found = engine.search_statements("ada", "Where is Oslo?")
    assert [each.text for each, _ in found] == ["I live in Oslo.", "My dog is called Biscuit."]
    assert found[0][1] > found[1][1]
