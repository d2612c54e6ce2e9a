"""A retriever over an agent's memory. It needs no embedding model."""

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
    """Finds the statements in an agent's memory that match a query. A reply to the query ranks them the same way.

    `llm`: a view of the agent, `llm.for_agent("bob")`; an enclosing `use_agent` selects another agent. Without an
    agent, or if it has no memory yet, there are no nodes. `similarity_top_k`: number of nodes.

    A node's text is a statement's text; the best match comes first. A node has the statement's id and a score. Its
    metadata: `role`, `thread` and `created`. Statements without a text are left out.
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
