"""A memory block that adds no text to the prompt: it absorbs messages that leave LlamaIndex's short-term memory."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemoryBlock
from pydantic import Field, SkipValidation, model_validator

from deltamem_agents import ConfigError
from llama_index.llms.deltamem.llm import DeltaMemLLM
from llama_index.llms.deltamem.messages import to_messages


class DeltaMemoryBlock(BaseMemoryBlock[str]):
    """Absorbs the messages that LlamaIndex's `Memory` flushes. Reading them costs no prompt tokens.

    `llm`: a view of the agent that remembers them, `llm.for_agent("bob")`. Later calls for that agent read them from
    its memory, also in another process. Messages that the agent has already written are not absorbed again. With a
    view that only reads (`memory="readonly"`), only the block writes, and only messages that have left the prompt.
    """

    name: str = "deltamem"
    llm: SkipValidation[DeltaMemLLM] = Field(exclude=True, repr=False)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.llm.agent_id:
            raise ConfigError("the block's llm has no agent, so nothing would be remembered; pass llm.for_agent(…)")
        return self

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        """Returns "", because the model reads the memory itself, not as text in its prompt."""
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Raises MessageError for content that is not text, and the errors of opening the engine or the store."""
        await asyncio.to_thread(self._absorb, messages)

    def _absorb(self, messages: list[ChatMessage]) -> None:
        assert self.llm.agent_id is not None
        engine = self.llm.open_engine(self.llm.agent_id)
        engine.absorb_into(self.llm.agent_id, to_messages(messages), thread=self.llm.thread)
