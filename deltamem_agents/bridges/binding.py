"""Whose memory a block of code uses: for chat models of frameworks that tell them nothing about their callers."""

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
"""How frameworks' users name agents and threads; see `deltamem_agents.names`."""

EPHEMERAL = ""
"""The agent id of a memory that ends with the call; no stored agent can have it."""


@dataclass(frozen=True)
class Binding:
    """What `use_agent` says. `store`: where this agent lives, None for the chat model's own store."""

    agent_id: str
    thread: str | None = None
    memory: MemoryMode | None = None
    store: StoreLike = None


def whose(given: object) -> str:
    """The agent of an id in any form that a framework passes on; EPHEMERAL for None, False and blank text.

    Such an id is nobody's: an empty user id must not open another's memory, nor make an agent of that name.
    Raises InvalidAgentIdError for what names nobody clearly and is no agent id either.
    """
    nobody = given is None or given is False or (isinstance(given, str) and not given.strip())
    return EPHEMERAL if nobody else agent_name(given) or EPHEMERAL


def own_agent(given: object) -> str | None:
    """The agent that a chat model is made with, by the same rule; None where it is made without one."""
    return None if given is None else whose(given)


def which_thread(given: object) -> str | None:
    """The thread's name in any form that a framework passes on; None for False and blank text too."""
    return None if given is False else thread_name(given)


_bound: ContextVar[Binding | None] = ContextVar("deltamem_agent", default=None)


def bound() -> Binding | None:
    """What the enclosing `use_agent` says."""
    return _bound.get()


@contextmanager
def use_agent(
    agent_id: AgentId, *, thread: AgentId | None = None, memory: MemoryMode | None = None, store: StoreLike = None
) -> Iterator[None]:
    """Every chat model on δ-mem called inside uses this agent's memory, unless its call names another.

    `thread`: which of the agent's conversations. `memory`: "readonly" or "off" instead of what the model
    says. `store`: where the agent lives, instead of the model's store. Raises InvalidAgentIdError or ConfigError for
    ids and names that are none; a blank id is nobody's.
    """
    token = _bound.set(Binding(whose(agent_id), which_thread(thread), memory, store))
    try:
        yield
    finally:
        _bound.reset(token)
