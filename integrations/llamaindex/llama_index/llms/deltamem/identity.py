"""Finds the agent whose memory a call uses.

The first of these that is given decides: the keyword `agent_id`, an enclosing `use_agent`, the LLM's `agent_id`, which
`for_agent` sets. Without any of them the memory is temporary and ends with the call: there is no shared default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deltamem_agents.bridges import bound, which_thread, whose
from deltamem_agents.types import MemoryMode


@dataclass(frozen=True)
class Identity:
    """The agent, thread and memory mode of a call. `agent_id`: None for a temporary memory."""

    agent_id: str | None = None
    thread: str | None = None
    memory: MemoryMode = "readwrite"


def resolve(given: Mapping[str, Any], own: Identity, *, asks_for_itself: bool = False) -> Identity:
    """The identity of a call with these keywords. `own`: the LLM's identity.

    `asks_for_itself`: whether LlamaIndex uses this method for its own requests (condensing a question, selecting a
    tool). These are not part of the conversation, so they only read the memory, unless the keyword `memory` or an
    enclosing `use_agent` says otherwise.
    """
    memory: MemoryMode = "readonly" if asks_for_itself and own.memory == "readwrite" else own.memory
    binding = bound()
    if given.get("agent_id") is not None:
        identity = Identity(whose(given["agent_id"]), None, memory)
    elif binding is not None:
        identity = Identity(binding.agent_id, binding.thread, binding.memory or memory)
    else:
        identity = replace(own, memory=memory)
    return Identity(
        identity.agent_id or None,
        which_thread(given.get("thread")) or identity.thread,
        given.get("memory") or identity.memory,
    )
