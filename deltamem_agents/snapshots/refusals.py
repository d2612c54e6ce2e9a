"""Checks and error messages that all stores share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from deltamem_agents.errors import (
    AgentNotFoundError,
    AlreadyExistsError,
    ConfigError,
    InvalidAgentIdError,
    SnapshotNotFoundError,
    StaleHeadError,
    StoreError,
)
from deltamem_agents.names import NAME_LENGTH, name_fault
from deltamem_agents.snapshots.snapshot import is_snapshot_id

TIMEOUT = 30.0
"""Default number of seconds that a change waits for other writers."""

QUIET_SECONDS = 1.0
"""How long a writer waits for another before it logs a warning."""

_log = logging.getLogger("deltamem_agents.store")


def check_agent(agent: str) -> str:
    """Returns the agent id. Raises InvalidAgentIdError unless it is Unicode text of 1 to NAME_LENGTH characters."""
    fault = name_fault(agent)
    if fault:
        raise InvalidAgentIdError(
            f"agent id {fault}, expected Unicode text of 1 to {NAME_LENGTH} characters; choose another id"
        )
    return agent


def check_new_agent(agent: str) -> str:
    """Returns the id of a new agent. Raises InvalidAgentIdError if it is blank.

    `check_agent` allows blank ids, so that an agent made by an earlier version can still be forgotten.
    """
    if not check_agent(agent).strip():
        raise InvalidAgentIdError(f"agent id {agent!r} is blank, expected visible characters; choose another id")
    return agent


def check_tag(name: str) -> str:
    """Returns the tag. Raises ConfigError unless it would be a valid agent id and does not look like a snapshot id."""
    fault = name_fault(name) or ("is a snapshot id" if is_snapshot_id(name) else "")
    if fault:
        raise ConfigError(f"tag {fault}, expected Unicode text of 1 to {NAME_LENGTH} characters; choose another")
    return name


def require_head(agent: str, found: str | None, expected: str | None) -> None:
    """Raises StaleHeadError unless the agent's head is the expected one. None stands for no agent."""
    if found != expected:
        raise StaleHeadError(
            f"agent {agent!r} is at {_abridged(found)}, expected {_abridged(expected)}: another commit came first. "
            "Load the agent again, redo the work on its new head and save the result"
        )


def require_free_tag(agent: str, name: str, found: str | None, wanted: str | None) -> None:
    """Raises AlreadyExistsError if the tag names another snapshot than `wanted`."""
    if wanted is not None and found not in (None, wanted):
        raise AlreadyExistsError(
            f"tag {name!r} of agent {agent!r} already names {_abridged(found)}; untag it first or choose another name"
        )


def agent_exists(agent: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"agent {agent!r} is already in the store and was not changed; choose another id, or forget it first"
    )


def no_agent(agent: str) -> AgentNotFoundError:
    return AgentNotFoundError(
        f"no agent {agent!r} in the store; `store.agents()` or `deltamem memory list` lists all agents"
    )


def no_snapshot(agent: str, at: str) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(
        f"agent {agent!r} has no snapshot {at!r}, expected an id, its first 6 or more digits, or a tag; "
        "`moves` and `tags` list them"
    )


def require_own_process(where: str, opened_by: int) -> None:
    """Raises StoreError in a process forked from the one that opened the store, because the parent owns its locks."""
    if os.getpid() != opened_by:
        raise StoreError(f"{where} was opened before this process was forked, expected after; open it anew")


def check_timeout(timeout: float) -> float:
    """Returns the timeout in seconds. Raises ConfigError unless it is between 0 and one day."""
    if not 0 <= timeout <= 86_400:
        raise ConfigError(f"timeout is {timeout!r}, expected seconds from 0 to 86400")
    return timeout


class Deadline:
    """How long a change may still wait for other writers. It may wait `timeout` seconds in all."""

    def __init__(self, where: str, timeout: float) -> None:
        self._where, self._timeout = where, timeout
        self._until = monotonic() + timeout

    def wait(self, acquire: Callable[[float], bool], for_whom: str) -> None:
        """Calls `acquire` with the seconds it may take. Logs a warning after QUIET_SECONDS.

        `for_whom`: who holds the lock, for the messages. Raises StoreError when the time is up.
        """
        left = max(self._until - monotonic(), 0.0)
        if acquire(min(left, QUIET_SECONDS)):
            return
        if left > QUIET_SECONDS:
            _log.warning("%s waits for %s, at most %.0f s longer", self._where, for_whom, left - QUIET_SECONDS)
            if acquire(max(self._until - monotonic(), 0.0)):
                return
        raise StoreError(
            f"{self._where} was locked by {for_whom} for {self._timeout:g} s. The memory is as it was; "
            "stop the other writer and try again, or open the store with a longer timeout="
        )


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file or folder at `path`, None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def require_in_place(where: str, path: Path, opened: tuple[int, int] | None) -> None:
    """Raises StoreError unless `path` is still the file or folder it was when the store was opened."""
    found = file_identity(path)
    if found != opened:
        fault = "is not there any more" if found is None else "is a different file now"
        raise StoreError(
            f"{where} was moved, deleted or replaced since it was opened: its {path.name!r} {fault}. Nothing was "
            "written. Put it back, or open the store again to continue with the files that are there now"
        )


def closed(where: str) -> StoreError:
    return StoreError(f"{where} is closed; open the store again")


def _abridged(snapshot: str | None) -> str:
    return "no snapshot" if snapshot is None else f"{snapshot[:12]}…"
