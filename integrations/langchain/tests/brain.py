"""What the scripted model says: enough judgement for tests, none of it learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltamem_agents import Message, Tool, ToolCall
from deltamem_agents.scripted import Asked


def brain(asked: Asked) -> Message | str:
    """Calls the first tool that fits when a person asks, and repeats what a tool returned."""
    last = asked.messages[-1]
    if asked.tools and last.role != "tool" and asked.tool_choice != "none":
        return Message("assistant", "", (_call(_chosen(asked), last.content),))
    if last.role == "tool":
        return f"It is {last.content}."
    if "JSON" in last.content:
        return '{"setup": "Why do cats purr?", "punchline": "They are engines."}'
    return f"You said: {last.content}"


def _chosen(asked: Asked) -> Tool:
    named = [tool for tool in asked.tools if tool.name == asked.tool_choice]
    mentioned = [tool for tool in asked.tools if tool.name in asked.messages[-1].content]
    return (named or mentioned or list(asked.tools))[0]


def _call(tool: Tool, text: str) -> ToolCall:
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", list(properties))
    return ToolCall(tool.name, {name: _value(properties[name], text) for name in required})


def _value(schema: Mapping[str, Any], text: str) -> object:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    numbers = re.findall(r"\d+", text)
    if kind in ("integer", "number"):
        return int(numbers[0]) if numbers else 0
    if kind == "boolean":
        return True
    foreign = re.search(r"[^\x00-\x7f]+", text)
    return foreign.group() if foreign else "Paris"
