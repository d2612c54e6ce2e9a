"""What may name an agent or a thread: one rule for the engine, the stores and every framework."""

from __future__ import annotations

from numbers import Integral
from uuid import UUID

from deltamem_agents.errors import ConfigError, InvalidAgentIdError

NAME_LENGTH = 512
"""Most characters of an agent id, a thread's name or a tag."""

_EXPECTED = f"Unicode text of 1 to {NAME_LENGTH} characters that is not blank, a whole number or a UUID"


def agent_name(given: object) -> str | None:
    """The agent of an id, None for None. A whole number or a UUID is the agent of that text: 7 is "7".

    Raises InvalidAgentIdError for anything else that is not text, and for text that is blank or that no store keeps.
    """
    if given is None:
        return None
    name = _as_text(given)
    fault = name_fault(name) or ("is blank" if isinstance(name, str) and not name.strip() else "")
    if fault or not isinstance(name, str):
        raise InvalidAgentIdError(f"agent id {given!r:.60} {fault}, expected {_EXPECTED}; take another")
    return name


def thread_name(given: object) -> str | None:
    """The name of a thread, by the same rule; blank text names none. Raises ConfigError."""
    name = _as_text(given)
    if name is None or (isinstance(name, str) and not name.strip()):
        return None
    fault = name_fault(name)
    if fault or not isinstance(name, str):
        raise ConfigError(f"thread {given!r:.60} {fault}, expected {_EXPECTED}; take another")
    return name


def name_fault(name: object) -> str:
    """Why no store can keep this name; "" where one can."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}"
    if not 1 <= len(name) <= NAME_LENGTH:
        return f"has {len(name)} characters"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair"
    return ""


def _as_text(given: object) -> object:
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    return str(given) if whole or isinstance(given, UUID) else given
