"""LangChain's ways to ask for tools and schemas, as the engine's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from deltamem_agents import ConfigError, Tool

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools in any form that LangChain knows."""
    return tuple(_tool(convert_to_openai_tool(tool)["function"]) for tool in tools)


def to_choice(choice: object) -> str:
    """The engine's word for a tool choice in any provider's spelling. Raises ConfigError for one it does not know."""
    if choice is None or choice is False:
        return "auto"
    if choice is True or choice in ("required", "any"):
        return "any"
    if isinstance(choice, str):
        return choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if isinstance(name, str):
            return name
        if choice.get("type") in ("auto", "any", "none"):
            return str(choice["type"])
    raise ConfigError(f"tool_choice is {choice!r}; expected 'auto', 'any', 'none', True, a tool's name, or its dict")


def to_schema(response_format: object) -> Mapping[str, Any] | None:
    """The JSON schema of a `response_format`: a schema, "json_object", or OpenAI's "json_schema" dict."""
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind == "json_object":
            return ANY_OBJECT
        if kind == "text":
            return None
        if kind == "json_schema":
            inner = response_format.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
            if isinstance(schema, Mapping):
                return schema
        elif kind in ("object", "array") or "properties" in response_format or "$ref" in response_format:
            return response_format
    raise ConfigError(
        f"response_format is {response_format!r}; expected a JSON schema, {{'type': 'json_object'}} or "
        "{'type': 'json_schema', 'json_schema': {'schema': …}}"
    )


def schema_of(schema: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class, a TypedDict, a function, or a schema as it is."""
    if isinstance(schema, Mapping) and "properties" in schema and "title" not in schema:
        return dict(schema)
    parameters: dict[str, Any] = convert_to_openai_tool(schema)["function"]["parameters"]
    return parameters


def _tool(function: Mapping[str, Any]) -> Tool:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return Tool(function["name"], function.get("description") or "", parameters)
