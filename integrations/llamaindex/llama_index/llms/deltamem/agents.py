"""Agents that keep their memory in the workflow's context, where it is saved, restored and copied with it."""

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
"""Key in the context's store. Its value is a dict from an agent's name to its snapshot's bytes in base64."""

_THREAD = "conversation"


class SaidAction(ActionReasoningStep):
    """A ReAct step that calls a tool, with the model's exact text in `said`."""

    said: str

    def get_content(self) -> str:
        return self.said


class SaidResponse(ResponseReasoningStep):
    """A ReAct step that answers, with the model's exact text in `said`."""

    said: str

    def get_content(self) -> str:
        return self.said


class VerbatimParser(ReActOutputParser):
    """Parses ReAct replies as LlamaIndex does, and keeps the model's exact text."""

    def parse(self, output: str, is_streaming: bool = False) -> BaseReasoningStep:
        step = super().parse(output, is_streaming)
        fields: dict[str, Any] = {**step.model_dump(), "said": output}
        return SaidAction(**fields) if isinstance(step, ActionReasoningStep) else SaidResponse(**fields)


class MemoryInContext(BaseWorkflowAgent):
    """A workflow agent that keeps its memory in the `Context`, separate from other agents' memories there.

    `Context.to_dict`, JSON and `Context.from_dict` include the memory, and restored copies are independent. The agent
    is shown its conversation's history, so an edit of an older message reaches the memory. If the llm names an agent
    (`for_agent`), or inside `use_agent`, the memory is kept in the store instead.

    The context keeps the full state, at most 100 KB per agent, however much was told. It has no separate statements: a
    reply reads the full state, and no statement can be listed, forgotten or corrected. A store has statements.
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
            # Read again, because other agents may have changed it meanwhile.
            memories = await ctx.store.get(MEMORIES_KEY, default={})
            await ctx.store.set(MEMORIES_KEY, {**memories, self.name: held})
        return output


class DeltaMemFunctionAgent(MemoryInContext, FunctionAgent):
    """LlamaIndex's `FunctionAgent` with its memory in the context."""


class DeltaMemReActAgent(MemoryInContext, ReActAgent):
    """LlamaIndex's `ReActAgent` with its memory in the context.

    Its history keeps the exact text of every message. `ReActAgent` rewords the replies and joins them, so the memory
    would not recognise them and would write them again.
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
    """A temporary store with the agent's memory, so that a failed or retried step starts from the same memory."""
    carried = InMemoryStore()
    if held is not None:
        carried.save(agent, decode(b64decode(held)), expected=None)
    return carried


def packed(agent: str, carried: InMemoryStore) -> str | None:
    """The memory in a temporary store as text for the context; None if there is none."""
    if carried.head(agent) is None:
        return None
    return b64encode(encode(inline(carried.load(agent).snapshot))).decode("ascii")
