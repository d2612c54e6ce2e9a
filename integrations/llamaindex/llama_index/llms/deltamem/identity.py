"""Whose memory a call uses.

The first of these that is given decides: the keyword `agent_id`, an enclosing `use_agent`, the LLM's own
`agent_id`, which `for_agent` sets. Without any the memory ends with the call: there is no shared default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deltamem_agents.bridges import bound, which_thread, whose
from deltamem_agents.types import MemoryMode


@dataclass(frozen=True)
class Identity:
    """Whose memory, which of its conversations, and what may be done with it. `agent_id` None: nobody's."""

    agent_id: str | None = None
    thread: str | None = None
    memory: MemoryMode = "readwrite"


def resolve(given: Mapping[str, Any], own: Identity, *, asks_for_itself: bool = False) -> Identity:
    """The identity of a call with these keywords; `own` is the LLM's.

    `asks_for_itself`: a call of a kind by which LlamaIndex makes requests of its own (a question to be
    condensed, a choice between tools). These are no part of the conversation, so they only read, unless
    the keyword `memory` or an enclosing `use_agent` says otherwise.
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
