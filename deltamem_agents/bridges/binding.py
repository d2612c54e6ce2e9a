"""Whose memory a block of code uses: for chat models of frameworks that tell them nothing about their callers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from deltamem_agents.snapshots import StoreLike
from deltamem_agents.types import MemoryMode

EPHEMERAL = ""
"""The agent id of a memory that ends with the call; no stored agent can have it."""


@dataclass(frozen=True)
class Binding:
    """What `use_agent` says. `store`: where this agent lives, None for the chat model's own store."""

    agent_id: str
    thread: str | None = None
    memory: MemoryMode | None = None
    store: StoreLike = None


_bound: ContextVar[Binding | None] = ContextVar("deltamem_agent", default=None)


def bound() -> Binding | None:
    """What the enclosing `use_agent` says."""
    return _bound.get()


@contextmanager
def use_agent(
    agent_id: str, *, thread: str | None = None, memory: MemoryMode | None = None, store: StoreLike = None
) -> Iterator[None]:
    """Every chat model on δ-mem called inside uses this agent's memory, unless its call names another.

    `thread`: which of the agent's conversations. `memory`: "readonly" or "off" instead of what the model
    says. `store`: where the agent lives, instead of the model's store.
    """
    token = _bound.set(Binding(agent_id, thread, memory, store))
    try:
        yield
    finally:
        _bound.reset(token)
