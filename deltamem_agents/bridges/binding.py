"""Selects the agent for a block of code. Needed where a framework tells a chat model nothing about its caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from deltamem_agents.names import agent_name, thread_name
from deltamem_agents.snapshots import StoreLike
from deltamem_agents.types import MemoryMode

AgentId: TypeAlias = str | int | UUID
"""The types accepted as agent id and thread name; see `deltamem_agents.names`."""

EPHEMERAL = ""
"""The agent id of a temporary memory that ends with the call. No stored agent can have it."""


@dataclass(frozen=True)
class Binding:
    """The arguments of `use_agent`. `store`: the agent's store, None for the chat model's store."""

    agent_id: str
    thread: str | None = None
    memory: MemoryMode | None = None
    store: StoreLike = None


def whose(given: object) -> str:
    """The agent id, from any value that a framework passes on. EPHEMERAL for None, False and blank text.

    An empty user id must not open another user's memory, nor create an agent of that name.
    Raises InvalidAgentIdError for any other value that is not an agent id.
    """
    nobody = given is None or given is False or (isinstance(given, str) and not given.strip())
    return EPHEMERAL if nobody else agent_name(given) or EPHEMERAL


def own_agent(given: object) -> str | None:
    """The agent id in a chat model's constructor, by the rule of `whose`. None if it was made without one."""
    return None if given is None else whose(given)


def which_thread(given: object) -> str | None:
    """The thread name, from any value that a framework passes on. None for None, False and blank text."""
    return None if given is False else thread_name(given)


_bound: ContextVar[Binding | None] = ContextVar("deltamem_agent", default=None)


def bound() -> Binding | None:
    """The arguments of the enclosing `use_agent`, None outside of one."""
    return _bound.get()


@contextmanager
def use_agent(
    agent_id: AgentId, *, thread: AgentId | None = None, memory: MemoryMode | None = None, store: StoreLike = None
) -> Iterator[None]:
    """Inside this block every δ-mem chat model uses this agent's memory, unless a call names another agent.

    `thread`: which of the agent's conversations. `memory`: "readonly" or "off", instead of the model's setting.
    `store`: the agent's store, instead of the model's store. A blank `agent_id` is a temporary memory that ends with
    the call. Raises InvalidAgentIdError or ConfigError for invalid ids and names.
    """
    token = _bound.set(Binding(whose(agent_id), which_thread(thread), memory, store))
    try:
        yield
    finally:
        _bound.reset(token)
