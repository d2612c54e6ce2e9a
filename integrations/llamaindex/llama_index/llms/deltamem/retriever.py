"""A retriever over what an agent remembers. No second model takes part."""

from __future__ import annotations

import asyncio

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from deltamem_agents import ConfigError
from deltamem_agents.bridges import remembered
from llama_index.llms.deltamem.identity import Identity, resolve
from llama_index.llms.deltamem.llm import DeltaMemLLM
from llama_index.llms.deltamem.replies import statement_node


class DeltaMemRetriever(BaseRetriever):
    """Finds the statements of an agent's memory that a query is about, as a reply to the query would.

    `llm`: a view of the agent, `llm.for_agent("bob")`; an enclosing `use_agent` names another one. Nobody, and an agent
    that has no memory yet, have no nodes. `similarity_top_k`: how many nodes.

    A node is what was said, best match first, with its score. Its id is the statement's, and its metadata `role`,
    `thread` and `created`. Statements without a text are left out.
    """

    def __init__(self, llm: DeltaMemLLM, similarity_top_k: int = 4) -> None:
        super().__init__()
        if similarity_top_k < 1:
            raise ConfigError(f"similarity_top_k is {similarity_top_k}, expected at least 1")
        self.llm = llm
        self.similarity_top_k = similarity_top_k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._found(query_bundle.query_str, self._agent())

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._found, query_bundle.query_str, self._agent())

    def _agent(self) -> str | None:
        return resolve({}, Identity(self.llm.agent_id)).agent_id

    def _found(self, query: str, agent: str | None) -> list[NodeWithScore]:
        found = remembered(self.llm.open_engine(agent), agent, query, self.similarity_top_k)
        return [
            statement_node(
                id=each.id, text=each.text, score=score, role=each.role, thread=each.thread, created=each.created
            )
            for each, score in found
        ]
