"""Checks the fields and keywords of `ChatDeltaMem`. An unknown name is an error, because ignoring it would mislead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deltamem_agents import ConfigError
from deltamem_agents.bridges.dialects import CALL_KEYWORDS, refuse_unknown

# LangChain's standard parameters for chat models on a server. Here no request leaves the process.
UNUSED_FIELDS = ("timeout", "max_retries", "api_key")
# LangChain passes these to every chat model. A grammar is always strict, and LangChain itself handles "stream".
UNUSED_KEYWORDS = ("strict", "stream")


def check_fields(given: Mapping[str, Any], fields: Collection[str]) -> None:
    """Raises ConfigError for a constructor argument that is not in `fields`."""
    refuse_unknown("ChatDeltaMem", "field", given, (*fields, *UNUSED_FIELDS))


def check_keywords(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown keyword of a call. Keywords with the value None are ignored."""
    asked = {name: value for name, value in given.items() if value is not None}
    if asked.pop("n", 1) != 1:
        raise ConfigError(f"n is {given['n']!r}, but a turn has one reply, which is remembered; use batch instead")
    refuse_unknown("a call of ChatDeltaMem", "keyword", asked, (*CALL_KEYWORDS, *UNUSED_KEYWORDS))
