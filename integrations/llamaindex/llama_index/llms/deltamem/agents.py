"""Agents whose memory is part of the workflow's context: saved, restored and copied with it."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import (
    ActionReasoningStep,
    BaseReasoningStep,
    ObservationReasoningStep,
    ResponseReasoningStep,
)
from llama_index.core.agent.workflow import AgentOutput, BaseWorkflowAgent, FunctionAgent, ReActAgent
from llama_index.core.agent.workflow.agent_context import AgentContext
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool
from llama_index.core.workflow import Context
from pydantic import Field

from deltamem_agents import InMemoryStore
from deltamem_agents.bridges import bound, use_agent
from deltamem_agents.snapshots import decode, encode, inline

MEMORIES_KEY = "deltamem_memories"
"""Where the context keeps the agents' memories: by the agent's name, each snapshot's bytes in base64."""

_THREAD = "conversation"


class SaidAction(ActionReasoningStep):
    """A call as the model spelled it."""

    said: str

    def get_content(self) -> str:
        return self.said


class SaidResponse(ResponseReasoningStep):
    """An answer as the model spelled it."""

    said: str

    def get_content(self) -> str:
        return self.said


class VerbatimParser(ReActOutputParser):
    """Reads ReAct replies as LlamaIndex does, and keeps their wording."""

    def parse(self, output: str, is_streaming: bool = False) -> BaseReasoningStep:
        step = super().parse(output, is_streaming)
        fields: dict[str, Any] = {**step.model_dump(), "said": output}
        return SaidAction(**fields) if isinstance(step, ActionReasoningStep) else SaidResponse(**fields)


class MemoryInContext(BaseWorkflowAgent):
    """A workflow agent that keeps its memory in the `Context`, apart from those of other agents there.

    `Context.to_dict`, JSON and `Context.from_dict` carry it along, and restored copies go separate ways. What
    an agent is shown is its conversation's history, so that an edit of an older message reaches the memory. An
    llm that names an agent (`for_agent`), or an enclosing `use_agent`, keeps the memory in its store instead.

    What the context keeps is the whole state, at most 100 KB for each agent whatever was told. Single statements are
    left out: a reply reads all of the state, and none can be listed, forgotten or corrected. A store has them.
    """

    async def take_step(
        self, ctx: AgentContext, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        if bound() is not None or getattr(self.llm, "agent_id", None) is not None:
            return await super().take_step(ctx, llm_input, tools, memory)  # type: ignore[safe-super]
        memories: dict[str, str] = await ctx.store.get(MEMORIES_KEY, default={})
        carried = await asyncio.to_thread(unpacked, self.name, memories.get(self.name))
        with use_agent(self.name, thread=_THREAD, store=carried):
            output = await super().take_step(ctx, llm_input, tools, memory)  # type: ignore[safe-super]
        held = await asyncio.to_thread(packed, self.name, carried)
        if held is not None:
            # Read again, as other agents may have been at it meanwhile.
            memories = await ctx.store.get(MEMORIES_KEY, default={})
            await ctx.store.set(MEMORIES_KEY, {**memories, self.name: held})
        return output


class DeltaMemFunctionAgent(MemoryInContext, FunctionAgent):
    """LlamaIndex's `FunctionAgent` with its memory in the context."""


class DeltaMemReActAgent(MemoryInContext, ReActAgent):
    """LlamaIndex's `ReActAgent` with its memory in the context.

    Its history holds what was said, word by word and message by message. `ReActAgent` reformulates the
    replies and joins them, so that the memory would take them for others and write them again.
    """

    output_parser: ReActOutputParser = Field(default_factory=VerbatimParser)

    async def finalize(self, ctx: Context, output: AgentOutput, memory: BaseMemory) -> AgentOutput:
        reasoning: list[BaseReasoningStep] = await ctx.store.get(self.reasoning_key, default=[])
        if reasoning and isinstance(reasoning[-1], ResponseReasoningStep):
            await memory.aput_messages([self._said(step) for step in reasoning])
            output.response = ChatMessage(role=MessageRole.ASSISTANT, content=reasoning[-1].response)
        await ctx.store.set(self.reasoning_key, [])
        return output

    def _said(self, step: BaseReasoningStep) -> ChatMessage:
        observed = isinstance(step, ObservationReasoningStep)
        role = self.formatter.observation_role if observed else MessageRole.ASSISTANT
        return ChatMessage(role=role, content=step.get_content())


def unpacked(agent: str, held: str | None) -> InMemoryStore:
    """A store of the step's own, so that a step which fails or is run again starts where the first try did."""
    carried = InMemoryStore()
    if held is not None:
        carried.save(agent, decode(b64decode(held)), expected=None)
    return carried


def packed(agent: str, carried: InMemoryStore) -> str | None:
    """The memory in a store as text for the context; None where there is none."""
    if carried.head(agent) is None:
        return None
    return b64encode(encode(inline(carried.load(agent).snapshot))).decode("ascii")
