"""Errors of the engine that LangChain has a name of its own for."""

from __future__ import annotations

from langchain_core.exceptions import ContextOverflowError

from deltamem_agents import WindowError


class ContextOverflow(ContextOverflowError, WindowError):
    """The newest messages alone do not fit the window; caught as either library's error."""
