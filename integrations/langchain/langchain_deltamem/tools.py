"""Converts LangChain's tools and schemas to the engine's. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from typing_extensions import is_typeddict

from deltamem_agents import ConfigError, Tool
from deltamem_agents.bridges.dialects import as_tool
from deltamem_agents.bridges.schemas import Arguments, as_arguments, is_recursive, json_schema, schema_name

_NAMELESS = "answer"
# A dict with one of these keys describes a tool in some provider's form. It is not a JSON schema itself.
_TOOL_KEYS = frozenset(("name", "function", "toolSpec", "input_schema"))


@dataclass(frozen=True)
class Wanted:
    """A schema that a reply has to fit. `schema`: the JSON schema. `arguments`: the same as a tool's parameters."""

    name: str
    description: str
    schema: Mapping[str, Any]
    arguments: Arguments

    @property
    def described(self) -> dict[str, Any]:
        """The schema with its name, for traces."""
        return {**self.schema, "title": self.name, **({"description": self.description} if self.description else {})}

    @property
    def tool(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": self.arguments.parameters}
        return {"type": "function", "function": function}


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Converts tools in any form that LangChain accepts. Raises ConfigError for others and for non-object arguments."""
    return tuple(map(_to_tool, tools))


def wanted(schema: Any) -> Wanted:
    """The schema of a reply, from a pydantic class, a TypedDict, any other type, a JSON schema, or a tool.

    Raises ConfigError for anything else.
    """
    own = _own_schema(schema)
    if own is not None and not own:
        raise ConfigError("the schema is {}, which is empty; expected a JSON schema or a type")
    if own is not None and (is_typeddict(schema) or not _plain(own)):
        described = {key: value for key, value in own.items() if key not in ("title", "description")}
        name = schema_name(own) or (schema.__name__ if isinstance(schema, type) else _NAMELESS)
        return Wanted(name, str(own.get("description") or ""), own, as_arguments(described))
    tool = _converted(schema)
    return Wanted(tool.name, tool.description, tool.parameters, Arguments(tool.parameters))


def _to_tool(tool: Any) -> Tool:
    given = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    own = _own_schema(given)
    if not own or (_plain(own) and not is_typeddict(tool)):
        return _converted(tool)
    asked = wanted(given)
    if not isinstance(tool, BaseTool) and asked.name == _NAMELESS:
        raise ConfigError(f"a tool has no name: {tool!r}; give the schema a title")
    named = tool if isinstance(tool, BaseTool) else asked
    if asked.arguments.key is not None:
        raise ConfigError(
            f"tool {named.name!r} takes {asked.schema!r}, expected an object; put the value into one of its properties"
        )
    return Tool(named.name, named.description, asked.arguments.parameters)


def _own_schema(schema: Any) -> Mapping[str, Any] | None:
    """The JSON schema, or None if LangChain's own conversion reads `schema` better."""
    if isinstance(schema, Mapping):
        return None if _TOOL_KEYS & schema.keys() and "properties" not in schema else schema
    if not is_typeddict(schema) and not isinstance(schema, type) and callable(schema) and get_origin(schema) is None:
        return None
    try:
        if is_typeddict(schema) and not _needs_pydantic(schema):
            _converted(schema)
            return None
        return json_schema(schema)
    except ConfigError:
        if is_typeddict(schema):
            return json_schema(schema)
        if not callable(schema):
            raise
        return None  # a class that is used as a function


def _needs_pydantic(kind: Any, within: tuple[Any, ...] = ()) -> bool:
    """Whether a TypedDict contains a pydantic model or itself. LangChain reads TypedDicts with pydantic 1."""
    if is_typeddict(kind):
        parts = get_type_hints(kind).values()
        return kind in within or any(_needs_pydantic(part, (*within, kind)) for part in parts)
    if get_args(kind):
        return any(_needs_pydantic(part, within) for part in get_args(kind))
    return isinstance(kind, type) and is_basemodel_subclass(kind)


def _plain(schema: Mapping[str, Any]) -> bool:
    """Whether LangChain's own conversion keeps the whole schema."""
    named = "title" in schema and not _TOOL_KEYS & schema.keys()
    listed = isinstance(schema.get("properties"), Mapping) and schema.get("type", "object") == "object"
    return named and listed and not is_recursive(schema)


def _converted(schema: Any) -> Tool:
    try:
        return as_tool(convert_to_openai_tool(schema))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"{schema!r} is no tool or schema: {error}") from error
