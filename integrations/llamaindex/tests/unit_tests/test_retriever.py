"""Laws of the retriever: it searches the memory of its LLM's agent, and chat engines show the nodes as sources."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.query_engine import RetrieverQueryEngine

from deltamem_agents import ConfigError
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from llama_index.llms.deltamem import DeltaMemLLM, DeltaMemRetriever, use_agent

TOLD = ("My dog is called Biscuit.", "I live in Oslo.", "Pia works in Bergen.")


@pytest.fixture
def llm() -> DeltaMemLLM:
    """An LLM whose agent ada was told three facts, and bob one."""
    made = DeltaMemLLM(engine=ScriptedEngine("Noted.", config=SELECTIVE), max_tokens=20)
    engine = made.open_engine("ada")
    for text in TOLD:
        engine.absorb_into("ada", [{"role": "user", "content": text}], thread="home")
    engine.absorb_into("bob", [{"role": "user", "content": "I live in Rome."}])
    return made


async def test_a_node_is_a_statement_with_its_score(llm: DeltaMemLLM) -> None:
    retriever = DeltaMemRetriever(llm.for_agent("ada"), similarity_top_k=2)
    expected = llm.open_engine("ada").search_statements("ada", "Oslo", limit=2)
    for found in (retriever.retrieve("Oslo"), await retriever.aretrieve("Oslo")):
        assert [(each.node.node_id, each.text, each.score) for each in found] == [
            (statement.id, statement.text, score) for statement, score in expected
        ]
        assert found[0].metadata == {"role": "user", "thread": "home", "created": expected[0][0].created}


async def test_the_agent_is_found_as_for_the_llm(llm: DeltaMemLLM) -> None:
    assert DeltaMemRetriever(llm).retrieve("Where?") == []
    assert DeltaMemRetriever(llm.for_agent("nobody yet")).retrieve("Where?") == []
    assert len(DeltaMemRetriever(llm.for_agent("ada")).retrieve("Where?")) == 3
    with use_agent("bob"):
        assert [each.text for each in DeltaMemRetriever(llm).retrieve("Where?")] == ["I live in Rome."]
        assert [each.text for each in await DeltaMemRetriever(llm).aretrieve("Where?")] == ["I live in Rome."]


def test_chat_and_query_engines_show_the_nodes_as_sources(llm: DeltaMemLLM) -> None:
    ada = llm.for_agent("ada", memory="readonly")
    retriever = DeltaMemRetriever(ada, similarity_top_k=1)
    chat = ContextChatEngine.from_defaults(retriever=retriever, llm=ada)
    found = [each.text for each, _ in llm.open_engine("ada").search_statements("ada", "Oslo?", limit=1)]
    assert [each.text for each in chat.chat("Oslo?").source_nodes] == found
    query = RetrieverQueryEngine.from_args(retriever, llm=ada)
    assert [each.text for each in query.query("Oslo?").source_nodes] == found


def test_similarity_top_k_below_one_is_refused(llm: DeltaMemLLM) -> None:
    with pytest.raises(ConfigError, match="similarity_top_k"):
        DeltaMemRetriever(llm, similarity_top_k=0)


def test_searching_changes_nothing(llm: DeltaMemLLM) -> None:
    store = llm.open_engine("ada").store
    before = store.head("ada")
    DeltaMemRetriever(llm.for_agent("ada")).retrieve("Oslo")
    assert store.head("ada") == before
    assert llm.for_agent("ada").chat([ChatMessage("Hi")]).raw["deltamem"]["snapshot"] != before
