"""Laws of the retriever: it searches the memory of the call's agent, and LangChain's own tests pass."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests

from deltamem_agents import InvalidAgentIdError
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from langchain_deltamem import ChatDeltaMem, DeltaMemRetriever, use_agent

TOLD = ("My dog is called Biscuit.", "I live in Oslo.", "Pia works in Bergen.", "Tea is what I drink.")


def model(**fields: Any) -> ChatDeltaMem:
    """A chat model whose agent ada was told four facts, and bob one."""
    made = ChatDeltaMem(engine=ScriptedEngine("Noted.", config=SELECTIVE), **fields)
    engine = made.open_engine("ada")
    for text in TOLD:
        engine.absorb_into("ada", [{"role": "user", "content": text}], thread="home")
    engine.absorb_into("bob", [{"role": "user", "content": "I live in Rome."}])
    return made


class TestStandard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[DeltaMemRetriever]:
        return DeltaMemRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"model": model(), "agent_id": "ada"}

    @property
    def retriever_query_example(self) -> str:
        return "Where do I live?"


def texts(documents: list[Document]) -> list[str]:
    return [each.page_content for each in documents]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_document_is_a_statement_with_its_metadata(way: str) -> None:
    retriever = DeltaMemRetriever(model=model(agent_id="ada"), k=2)
    found = retriever.invoke("Oslo") if way == "invoke" else asyncio.run(retriever.ainvoke("Oslo"))
    engine = retriever.model.open_engine("ada")
    expected = engine.search_statements("ada", "Oslo", limit=2)
    assert texts(found) == [each.text for each, _ in expected]
    for document, (statement, score) in zip(found, expected, strict=True):
        assert document.id == statement.id
        assert document.metadata == {
            "id": statement.id,
            "role": "user",
            "thread": "home",
            "created": statement.created,
            "score": score,
        }
        assert json.dumps(document.metadata)


def test_the_agent_is_found_as_for_the_chat_model() -> None:
    told = model()
    retriever = DeltaMemRetriever(model=told)
    bob: Any = {"configurable": {"deltamem_agent_id": "bob"}}
    assert retriever.invoke("Where?") == []
    assert texts(retriever.invoke("Where?", bob)) == ["I live in Rome."]
    assert texts(retriever.invoke("Where?", agent_id="bob")) == ["I live in Rome."]
    assert len(retriever.invoke("Where?", bob, agent_id="ada")) == 4
    with use_agent("bob"):
        assert texts(retriever.invoke("Where?")) == ["I live in Rome."]
    assert len(DeltaMemRetriever(model=told, agent_id="ada").invoke("Where?")) == 4
    assert DeltaMemRetriever(model=told, agent_id="ada").invoke("Where?", agent_id="") == []
    assert retriever.invoke("Where?", agent_id="nobody yet") == []
    chain = {"found": retriever, "asked": RunnablePassthrough()}
    assert texts((RunnablePassthrough() | chain).invoke("Where?", bob)["found"]) == ["I live in Rome."]
    with pytest.raises(InvalidAgentIdError):
        retriever.invoke("Where?", agent_id=1.5)


def test_searching_changes_nothing() -> None:
    retriever = DeltaMemRetriever(model=model(agent_id="ada"))
    store = retriever.model.open_engine("ada").store
    before = store.head("ada")
    retriever.invoke("Oslo")
    assert store.head("ada") == before and store.agents() == ["ada", "bob"]
