"""What a store refuses, in one wording for every store."""

from __future__ import annotations

import os

from deltamem_agents.errors import (
    AgentNotFound,
    AlreadyExists,
    ConfigError,
    InvalidAgentId,
    SnapshotNotFoundError,
    StaleHead,
    StoreError,
)
from deltamem_agents.snapshots.snapshot import NAME_LENGTH, is_snapshot_id


def check_agent(agent: str) -> str:
    """The agent id; raises InvalidAgentId unless it is Unicode text of 1 to NAME_LENGTH characters."""
    fault = _fault(agent)
    if fault:
        raise InvalidAgentId(f"agent id {fault}, expected Unicode text of 1 to {NAME_LENGTH} characters; take another")
    return agent


def check_tag(name: str) -> str:
    """The tag; raises ConfigError unless it is text as an agent id is, and not a snapshot's id."""
    fault = _fault(name) or ("is a snapshot's id" if is_snapshot_id(name) else "")
    if fault:
        raise ConfigError(f"tag {fault}, expected Unicode text of 1 to {NAME_LENGTH} characters; choose another")
    return name


def require_head(agent: str, found: str | None, expected: str | None) -> None:
    """Raises StaleHead unless the agent's head is the expected one; None stands for no agent."""
    if found != expected:
        raise StaleHead(
            f"agent {agent!r} is at {_short(found)}, expected {_short(expected)}: another commit came first. "
            "Load the agent again, redo the work on its new head and save that"
        )


def require_free_tag(agent: str, name: str, found: str | None, wanted: str | None) -> None:
    """Raises AlreadyExists when the tag stands for another snapshot than the wanted one."""
    if wanted is not None and found not in (None, wanted):
        raise AlreadyExists(
            f"tag {name!r} of agent {agent!r} stands for {_short(found)}; untag it first or take another"
        )


def agent_exists(agent: str) -> AlreadyExists:
    return AlreadyExists(f"agent {agent!r} is in the store and was left alone; choose another id, or forget it first")


def no_agent(agent: str) -> AgentNotFound:
    return AgentNotFound(f"no agent {agent!r} in the store; `agents` lists those it has")


def no_snapshot(agent: str, at: str) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(
        f"agent {agent!r} has no snapshot {at!r}, expected an id, its first 6 or more digits, or a tag; "
        "`moves` and `tags` list them"
    )


def require_own_process(where: str, opened_by: int) -> None:
    """Raises StoreError in a process forked from the one that opened the store: its locks are the parent's."""
    if os.getpid() != opened_by:
        raise StoreError(f"{where} was opened before this process was forked, expected after; open it anew")


def closed(where: str) -> StoreError:
    return StoreError(f"{where} is closed; open the store again")


def _short(snapshot: str | None) -> str:
    return "no snapshot" if snapshot is None else f"{snapshot[:12]}…"


def _fault(name: object) -> str:
    if not isinstance(name, str):
        return f"is {type(name).__name__}"
    if not 1 <= len(name) <= NAME_LENGTH:
        return f"has {len(name)} characters"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair"
    return ""
