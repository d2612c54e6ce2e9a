"""Finds the agent whose memory a call uses.

The first of these that is given decides: the keyword `agent_id`, an enclosing `use_agent`,
`configurable["deltamem_agent_id"]`, the LangGraph thread together with the agent's name and place in the graph, the
chat model's `agent_id`. Without any of them the memory is temporary and ends with the call: there is no shared default.

An agent named in the config of a LangGraph run stays with the run's checkpoints. A later run that continues one of them
and whose config names no agent uses the same agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from deltamem_agents.bridges import EPHEMERAL, bound, use_agent, which_thread, whose
from deltamem_agents.types import MemoryMode
from langchain_deltamem.checkpoints import lineage

__all__ = ["AGENT_KEY", "Identity", "resolve", "thread_name", "threads_of", "use_agent"]

AGENT_KEY = "deltamem_agent_id"
CHECKPOINTS_SEARCHED = 32
"""Maximum number of checkpoints searched for a run's agent, if its messages do not name the agent."""

_INTERNAL_MARKS = ("lc_source", "lc_internal_call")


@dataclass(frozen=True)
class Identity:
    """The agent, thread and memory mode of a call, as plain text that may appear in traces."""

    agent_id: str
    thread: str | None = None
    memory: MemoryMode = "readwrite"

    def keywords(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def resolve(
    config: RunnableConfig, keywords: Mapping[str, Any], own: str | None, memory: MemoryMode = "readwrite"
) -> Identity:
    """The identity of a call with this config and these keywords.

    `own`, `memory`: the model's agent id and memory mode, used if nothing else is given. A blank agent id, or False,
    means a temporary memory and is not replaced by a later rule: an empty user id must not open another user's memory.
    Raises InvalidAgentIdError or ConfigError for invalid ids and names.
    """
    configurable = config.get("configurable") or {}
    metadata = config.get("metadata") or {}
    thread = thread_name(config)
    identity = Identity(EPHEMERAL, thread, memory)
    binding = bound()
    if keywords.get("agent_id") is not None:
        identity = Identity(whose(keywords["agent_id"]), thread, memory)
    elif binding is not None:
        identity = Identity(binding.agent_id, binding.thread or thread, binding.memory or memory)
    elif configurable.get(AGENT_KEY) is not None:
        identity = Identity(whose(configurable[AGENT_KEY]), thread, memory)
    elif thread is not None:
        identity = Identity(_of_thread(thread), thread, memory)
    elif own is not None:
        identity = Identity(whose(own), None, memory)
    asked = keywords.get("memory") or identity.memory
    if asked == "readwrite" and any(metadata.get(mark) for mark in _INTERNAL_MARKS):
        # Summaries and tool selections that the framework requests are not part of the conversation.
        asked = "readonly"
    return replace(identity, thread=which_thread(keywords.get("thread")) or identity.thread, memory=asked)


def of_run(config: RunnableConfig) -> str | None:
    """The agent named in the config of the running graph, None if it names none."""
    named = (config.get("configurable") or {}).get(AGENT_KEY)
    return None if named is None else whose(named)


def of_checkpoint(agent: str, config: RunnableConfig, messages: Sequence[BaseMessage]) -> str | None:
    """The agent that an earlier run of this thread named, if `agent` was only derived from the thread; None otherwise.

    It is read from the newest reply among the messages. If no reply has it, it is read from the metadata of the
    checkpoints before this step, where LangGraph keeps a run's config.
    """
    thread = thread_name(config)
    if thread is None or agent != _of_thread(thread):
        return None
    for message in reversed(messages):
        facts = message.response_metadata.get("deltamem")
        if isinstance(facts, Mapping) and facts.get("agent") == agent:
            return None
        if isinstance(facts, Mapping) and facts.get("named_by_run") and _root(facts.get("thread")) == _root(thread):
            return str(facts["agent"])
    for saved in islice(lineage(config, outermost=True), CHECKPOINTS_SEARCHED):
        if saved.metadata.get(AGENT_KEY) is not None:
            return whose(saved.metadata[AGENT_KEY])
    return None


def thread_name(config: RunnableConfig) -> str | None:
    """The LangGraph thread of a run, with the agent's name and its place in the graph, if any.

    A sub-agent has its caller's thread id, and an unnamed one also its caller's name. So the nodes that lead to it are
    part of the thread name.
    """
    configurable = config.get("configurable") or {}
    metadata = config.get("metadata") or {}
    thread = which_thread(configurable.get("thread_id"))
    if thread is None:
        return None
    steps = str(configurable.get("checkpoint_ns") or metadata.get("langgraph_checkpoint_ns") or "").split("|")
    place = [step.split(":")[0] for step in steps[:-1]]
    name = metadata.get("lc_agent_name")
    parts = [thread, *([] if name is None else [str(name)]), *place]
    if len(parts) == 1:
        return _escaped(parts[0])
    return "#".join(map(_escaped, [parts[0], "" if name is None else parts[1], *place]))


def threads_of(thread_id: object, names: Iterable[str]) -> list[str]:
    """The names among `names` that `thread_name` gives to runs of this LangGraph thread."""
    thread = which_thread(thread_id)
    if thread is None:
        return []
    own = _escaped(thread)
    return [name for name in names if name == own or name.startswith(f"{own}#")]


def _of_thread(name: str) -> str:
    return f"thread:{name}"


def _root(name: object) -> str:
    return str(name).split("#")[0]


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("#", "%23")
