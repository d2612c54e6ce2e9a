"""A retriever over an agent's memory. It needs no embedding model."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, ensure_config, run_in_executor
from pydantic import BeforeValidator, Field, SkipValidation

from deltamem_agents.bridges import EPHEMERAL, own_agent, remembered, whose
from langchain_deltamem.chat_models import ChatDeltaMem
from langchain_deltamem.errors import as_model_errors
from langchain_deltamem.identity import resolve


class DeltaMemRetriever(BaseRetriever):
    """Finds the statements in an agent's memory that match a query. A reply to the query ranks them the same way.

    `model`: the chat model whose agents are searched. `k`: number of documents; a call may also pass `k=`.
    `agent_id`: the agent, if a call does not name one; the rules are those of the chat model
    (`langchain_deltamem.identity`). Without an agent, or if it has no memory yet, there are no documents.

    A document's content is a statement's text; the best match comes first. Its metadata: `id`, `role`, `thread`,
    `created` and `score`. Statements without a text are left out.
    """

    model: SkipValidation[ChatDeltaMem]
    k: int = Field(default=4, ge=1)
    agent_id: Annotated[str | None, BeforeValidator(own_agent)] = None

    # The config never reaches _get_relevant_documents, so every public method resolves the agent.

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return super().invoke(input, config, **self._identified(config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return await super().ainvoke(input, config, **self._identified(config, kwargs))

    def _identified(self, config: RunnableConfig | None, given: dict[str, Any]) -> dict[str, Any]:
        own = self.model.agent_id if self.agent_id is None else self.agent_id
        with as_model_errors():
            return {**given, "agent_id": resolve(ensure_config(config), given, own).agent_id}

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        agent_id: object = None,
    ) -> list[Document]:
        agent = whose(EPHEMERAL if agent_id is None else agent_id)
        with as_model_errors():
            found = remembered(self.model.open_engine(agent), agent, query, self.k if k is None else k)
        return [
            Document(
                id=each.id,
                page_content=each.text,
                metadata={
                    "id": each.id,
                    "role": each.role,
                    "thread": each.thread,
                    "created": each.created,
                    "score": score,
                },
            )
            for each, score in found
        ]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        agent_id: object = None,
    ) -> list[Document]:
        return await run_in_executor(
            None,
            lambda: self._get_relevant_documents(query, run_manager=run_manager.get_sync(), k=k, agent_id=agent_id),
        )
