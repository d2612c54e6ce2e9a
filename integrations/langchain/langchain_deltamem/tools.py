"""LangChain's ways to ask for tools and schemas, as the engine's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from deltamem_agents import Tool
from deltamem_agents.bridges.dialects import as_tool


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools in any form that LangChain knows."""
    return tuple(as_tool(convert_to_openai_tool(tool)) for tool in tools)


def schema_of(schema: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class, a TypedDict, a function, or a schema as it is."""
    if isinstance(schema, Mapping) and "properties" in schema and "title" not in schema:
        return dict(schema)
    parameters: dict[str, Any] = convert_to_openai_tool(schema)["function"]["parameters"]
    return parameters
