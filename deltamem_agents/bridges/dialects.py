"""Converts other chat APIs' roles, tools, tool choices, response formats, tool results and options. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from deltamem_agents.bridges.binding import which_thread
from deltamem_agents.bridges.schemas import json_schema
from deltamem_agents.errors import ConfigError
from deltamem_agents.types import MemoryMode, Message, Recall, Role, Sampling, Tool, ToolChoice, TurnOptions

ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
SAMPLING_NAMES = tuple(field.name for field in fields(Sampling) if field.name != "stop")
"""Fields of `Sampling` that chat models have under the same name. `stop` is separate, because it has several forms."""

CALL_KEYWORDS = (
    "agent_id",
    "thread",
    "memory",
    "recall",
    "model",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    *SAMPLING_NAMES,
    "stop",
)
"""Keywords that a call of a chat model accepts besides its messages."""

_JSON_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def refuse_unknown(what: str, kind: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises ConfigError for an unknown name. Ignoring it silently would mislead the caller.

    `what`, `kind`: the object and the kind of name, for the message.
    """
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
            raise ConfigError(f"{what} has no {kind} {name!r}; {hint}")


def listed(tools: object) -> list[Any]:
    """The tools of a call as a list; empty for None. Raises ConfigError if it is not a list or tuple."""
    if tools is None or isinstance(tools, list | tuple):
        return list(tools or ())
    raise ConfigError(f"tools is {tools!r}, expected a list of tools")


def as_tool(described: Mapping[str, Any]) -> Tool:
    """Converts a {"name", "description", "parameters"} or {"function": {…}} dict to a tool.

    Without "parameters" the tool takes none. Raises ConfigError if the dict does not describe a tool.
    """
    function = described.get("function", described) if isinstance(described, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise ConfigError(f"a tool is {described!r}, expected a dict with its 'name', 'description' and 'parameters'")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return Tool(name, function.get("description") or "", parameters)


def as_tool_choice(choice: object) -> ToolChoice:
    """Converts a tool choice in any provider's spelling to the engine's. Raises ConfigError if it is unknown."""
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


def as_response_schema(response_format: object) -> Mapping[str, Any] | None:
    """The JSON schema of a `response_format`: a schema, a pydantic model, "json_object", or OpenAI's "json_schema"."""
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return ANY_OBJECT
        if kind == "json_schema":
            inner = response_format.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
            if isinstance(schema, Mapping):
                return schema
        elif response_format and (kind is None or isinstance(kind, list) or kind in _JSON_TYPES):
            return response_format
    elif not isinstance(response_format, str | bytes | int | float):
        return json_schema(response_format)
    raise ConfigError(
        f"response_format is {response_format!r}; expected a JSON schema, a pydantic model, {{'type': 'json_object'}} "
        "or {'type': 'json_schema', 'json_schema': {'schema': …}}"
    )


def as_recall(given: object) -> Recall | None:
    """Converts a `Recall`, or a JSON dict of its fields (`max_age` in seconds). None means the engine's setting.

    Raises ConfigError for anything else.
    """
    if given is None or isinstance(given, Recall):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"recall is {given!r}, expected a Recall, a dict of its fields, or None")
    refuse_unknown("Recall", "field", given, [field.name for field in fields(Recall)])
    values = dict(given)
    if isinstance(values.get("roles"), list):
        values["roles"] = tuple(values["roles"])
    age = values.get("max_age")
    if isinstance(age, int | float) and not isinstance(age, bool):
        values["max_age"] = timedelta(seconds=age)
    return Recall(**values)


def written_recall(recall: Recall | None) -> dict[str, Any] | None:
    """A `Recall` as JSON that `as_recall` reads."""
    if recall is None:
        return None
    age = recall.max_age
    return {
        **asdict(recall),
        "roles": list(recall.roles),
        "max_age": None if age is None else age.total_seconds(),
    }


def turn_options(
    given: Mapping[str, Any],
    tools: Sequence[Tool],
    *,
    sampling: Sampling,
    memory: MemoryMode,
    recall: Recall | None = None,
) -> TurnOptions:
    """The options of one call, from its keywords. `sampling`, `memory` and `recall` are the defaults.

    The keywords are `thread`, `memory`, `recall`, `tool_choice`, `parallel_tool_calls`, `response_format` and the
    fields of `Sampling`. Raises ConfigError for an invalid value.
    """
    choice, parallel = as_tool_choice(given.get("tool_choice")), given.get("parallel_tool_calls")
    if parallel not in (None, True, False):
        raise ConfigError(f"parallel_tool_calls is {parallel!r}, expected True, False or None")
    drawn = {name: given[name] for name in (*SAMPLING_NAMES, "stop") if given.get(name) is not None}
    return TurnOptions(
        thread=which_thread(given.get("thread")),
        memory=given.get("memory") or memory,
        sampling=replace(sampling, **drawn),
        tools=tools,
        tool_choice=choice,
        # A small model that is forced to call tools does not know when to stop, so it gets one call.
        parallel_tool_calls=choice == "auto" if parallel is None else bool(parallel),
        response_schema=as_response_schema(given.get("response_format")),
        recall=as_recall(given.get("recall")) or recall,
    )


def tool_result(text: str, *, call_id: str | None, name: str | None, failed: bool) -> Message:
    """The message with a tool's result. The text of a failure starts with "Error"."""
    if failed and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return Message("tool", text, tool_call_id=call_id or None, name=name)
