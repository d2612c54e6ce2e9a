"""A memory block without a text: what leaves LlamaIndex's short-term memory goes into the model's state."""

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
    """Absorbs the messages that LlamaIndex's `Memory` flushes. Reading it costs no prompt tokens.

    `llm`: a view of the agent that remembers them, `llm.for_agent("bob")`. Whatever is asked of that agent
    later reads them in its state, also in another process. What the agent wrote itself, as it heard it, is
    not absorbed again; let it read only (`memory="readonly"`) to have the block write alone, what has left
    the prompt and nothing before.
    """

    name: str = "deltamem"
    llm: SkipValidation[DeltaMemLLM] = Field(exclude=True, repr=False)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.llm.agent_id:
            raise ConfigError("the block's llm has no agent, so nobody would remember; pass llm.for_agent(…)")
        return self

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        """Nothing: the memory is read by the model, and not in its prompt."""
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Raises MessageError for what is not text, and what opening the engine or the store raises."""
        await asyncio.to_thread(self._absorb, messages)

    def _absorb(self, messages: list[ChatMessage]) -> None:
        assert self.llm.agent_id is not None
        engine = self.llm.open_engine(self.llm.agent_id)
        engine.absorb_into(self.llm.agent_id, to_messages(messages), thread=self.llm.thread)
