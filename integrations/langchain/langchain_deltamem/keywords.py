"""Names that mean something to `ChatDeltaMem`. One that means nothing is refused: ignored, it would mislead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deltamem_agents import ConfigError
from deltamem_agents.bridges.dialects import CALL_KEYWORDS, refuse_unknown

# LangChain's standard parameters of a chat model that talks to a server; here no request leaves the process.
UNUSED_FIELDS = ("timeout", "max_retries", "api_key")
# Said to every chat model: a grammar is always strict, and LangChain itself acts on "stream".
UNUSED_KEYWORDS = ("strict", "stream")


def check_fields(given: Mapping[str, Any], fields: Collection[str]) -> None:
    """Raises ConfigError for a constructor's argument that is none of `fields`."""
    refuse_unknown("ChatDeltaMem", "field", given, (*fields, *UNUSED_FIELDS))


def check_keywords(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a keyword of a call that means nothing; one that is None asks for nothing."""
    asked = {name: value for name, value in given.items() if value is not None}
    if asked.pop("n", 1) != 1:
        raise ConfigError(f"n is {given['n']!r}, but a turn has one reply, which the memory keeps; call batch instead")
    refuse_unknown("a call of ChatDeltaMem", "keyword", asked, (*CALL_KEYWORDS, *UNUSED_KEYWORDS))
