"""Valid names of agents and threads: one rule for the engine, the stores and every framework."""

from __future__ import annotations

from numbers import Integral
from uuid import UUID

from deltamem_agents.errors import ConfigError, InvalidAgentIdError

NAME_LENGTH = 512
"""Maximum length of an agent id, a thread name or a tag, in characters."""

_EXPECTED = f"Unicode text of 1 to {NAME_LENGTH} characters that is not blank, a whole number or a UUID"


def agent_name(given: object) -> str | None:
    """The agent id as text, None for None. A whole number or a UUID is converted to text: 7 is "7".

    Raises InvalidAgentIdError for any other type, and for text that is blank or not valid (see `name_fault`).
    """
    if given is None:
        return None
    name = _as_text(given)
    fault = name_fault(name) or ("is blank" if isinstance(name, str) and not name.strip() else "")
    if fault or not isinstance(name, str):
        raise InvalidAgentIdError(f"agent id {given!r:.60} {fault}, expected {_EXPECTED}; choose another id")
    return name


def thread_name(given: object) -> str | None:
    """The thread name as text, by the same rule; None for blank text. Raises ConfigError."""
    name = _as_text(given)
    if name is None or (isinstance(name, str) and not name.strip()):
        return None
    fault = name_fault(name)
    if fault or not isinstance(name, str):
        raise ConfigError(f"thread {given!r:.60} {fault}, expected {_EXPECTED}; choose another name")
    return name


def name_fault(name: object) -> str:
    """Why this name is not valid, as a phrase for an error message; "" if it is valid."""
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
