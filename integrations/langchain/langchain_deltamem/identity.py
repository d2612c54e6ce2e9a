"""Whose memory a call uses.

The first of these that is given decides: the keyword `agent_id`, an enclosing `use_agent`,
`configurable["deltamem_agent_id"]`, the LangGraph thread together with the agent's name and place in the
graph, the chat model's own `agent_id`. Without any the memory ends with the call: there is no shared default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.runnables import RunnableConfig

from deltamem_agents import Store
from deltamem_agents.types import MemoryMode

AGENT_KEY = "deltamem_agent_id"
EPHEMERAL = ""
"""The agent id of a memory that ends with the call; no stored agent can have it."""

_INTERNAL_MARKS = ("lc_source", "lc_internal_call")


@dataclass(frozen=True)
class Binding:
    """What `use_agent` says. `store`: where this agent lives, None for the engine's own store."""

    agent_id: str
    thread: str | None = None
    memory: MemoryMode | None = None
    store: Store | None = None


@dataclass(frozen=True)
class Identity:
    """Whose memory a call uses, in plain texts that may be traced. `memory` None: as the model says."""

    agent_id: str
    thread: str | None = None
    memory: MemoryMode | None = None

    def keywords(self) -> dict[str, str]:
        given = {"agent_id": self.agent_id, "thread": self.thread, "memory": self.memory}
        return {name: value for name, value in given.items() if value is not None}


_bound: ContextVar[Binding | None] = ContextVar("deltamem_agent", default=None)


def bound() -> Binding | None:
    """What the enclosing `use_agent` says."""
    return _bound.get()


@contextmanager
def use_agent(
    agent_id: str, *, thread: str | None = None, memory: MemoryMode | None = None, store: Store | None = None
) -> Iterator[None]:
    """Every `ChatDeltaMem` called inside uses this agent's memory, unless its call names another.

    `thread`: which of the agent's conversations. `memory`: "readonly" or "off" instead of what the model
    says. `store`: where the agent lives, instead of the model's store.
    """
    token = _bound.set(Binding(agent_id, thread, memory, store))
    try:
        yield
    finally:
        _bound.reset(token)


def resolve(config: RunnableConfig, keywords: Mapping[str, Any], default: str | None) -> Identity:
    """The identity of a call with this config and these keywords; `default` is the model's own agent id."""
    configurable = config.get("configurable") or {}
    metadata = config.get("metadata") or {}
    thread = thread_name(config)
    identity = Identity(EPHEMERAL, thread)
    binding = bound()
    if keywords.get("agent_id") is not None:
        identity = Identity(keywords["agent_id"], thread)
    elif binding is not None:
        identity = Identity(binding.agent_id, binding.thread or thread, binding.memory)
    elif configurable.get(AGENT_KEY):
        identity = Identity(str(configurable[AGENT_KEY]), thread)
    elif thread is not None:
        identity = Identity(f"thread:{thread}", thread)
    elif default is not None:
        identity = Identity(default)
    memory = keywords.get("memory") or identity.memory
    if any(metadata.get(mark) for mark in _INTERNAL_MARKS) and memory in (None, "readwrite"):
        # A summary or a choice of tools that the framework asks for is no part of the conversation.
        memory = "readonly"
    return replace(identity, thread=keywords.get("thread") or identity.thread, memory=memory)


def thread_name(config: RunnableConfig) -> str | None:
    """The LangGraph thread of a run, with the agent's name and place in the graph where there are any.

    A sub-agent shares its caller's thread id, and an unnamed one inherits its name, so both are told
    apart by the nodes that lead to them.
    """
    configurable = config.get("configurable") or {}
    metadata = config.get("metadata") or {}
    thread = configurable.get("thread_id")
    if thread is None or str(thread) == "":
        return None
    steps = str(configurable.get("checkpoint_ns") or metadata.get("langgraph_checkpoint_ns") or "").split("|")
    place = [step.split(":")[0] for step in steps[:-1]]
    name = metadata.get("lc_agent_name")
    parts = [str(thread), *([] if name is None else [str(name)]), *place]
    if len(parts) == 1:
        return _escaped(parts[0])
    return "#".join(map(_escaped, [parts[0], "" if name is None else parts[1], *place]))


def threads_of(thread_id: str, names: Iterable[str]) -> list[str]:
    """Those of these names that `thread_name` gives to runs of one LangGraph thread."""
    own = _escaped(thread_id)
    return [name for name in names if name == own or name.startswith(f"{own}#")]


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("#", "%23")
