"""Converts turns, tools and tool calls to the dicts that transformers' chat templates expect."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from deltamem_agents.chat.layout import Slot, description
from deltamem_agents.chat.spans import unused_mark
from deltamem_agents.types import Tool, ToolCall

Wire: TypeAlias = dict[str, object]

_ID_LENGTH = 9


@dataclass(frozen=True)
class Mask:
    """Placeholders for control tokens in text that the template itself writes, such as tool schemas."""

    stem: str
    texts: tuple[str, ...]

    @classmethod
    def of(cls, slots: Sequence[Slot], tools: Sequence[Tool], controls: Iterable[str]) -> Mask:
        passing = repr([tool_schema(tool) for tool in tools]) + repr([slot.calls for slot in slots])
        texts = sorted((text for text in controls if text in passing), key=len, reverse=True)
        return cls(unused_mark([passing, *(slot.content for slot in slots)]) + "c", tuple(texts))

    def hide(self, value: object) -> object:
        if isinstance(value, str):
            for number, text in enumerate(self.texts):
                value = value.replace(text, f"{self.stem}{number}z")
            return value
        if isinstance(value, Mapping):
            return {str(self.hide(str(key))): self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text with placeholders replaced, as (part, whether it was a placeholder)."""
        for position, part in enumerate(re.split(f"{self.stem}(\\d+)z", text)):
            yield (self.texts[int(part)], True) if position % 2 else (part, False)

    def shown(self, text: str) -> str:
        return "".join(part for part, _ in self.parts(text))


def tool_schema(tool: Tool) -> Wire:
    """A tool's description in OpenAI's form. Raises ConfigError if its parameters are not JSON."""
    return {"type": "function", "function": json.loads(description(tool))}


def wire_tool(tool: Tool, mask: Mask) -> Wire:
    schema = mask.hide(tool_schema(tool))
    assert isinstance(schema, dict)
    return schema


def wire_slot(slot: Slot, content: str, mask: Mask) -> Wire:
    row: Wire = {"role": slot.role, "content": content}
    if slot.calls:
        row["tool_calls"] = [_wire_call(position, call, mask) for position, call in enumerate(slot.calls)]
    if slot.role == "tool":
        row |= {"tool_call_id": _wire_id(slot.tool_call_id or ""), "name": mask.hide(slot.name or "")}
    return row


def _wire_call(position: int, call: ToolCall, mask: Mask) -> Wire:
    function = {"name": mask.hide(call.name), "arguments": mask.hide(call.arguments)}
    return {"id": _wire_id(call.id or str(position)), "type": "function", "function": function}


def _wire_id(given: str) -> str:
    """The id if it has nine letters and digits, else a hash of that form. The strictest templates require it."""
    fits = len(given) == _ID_LENGTH and given.isascii() and given.isalnum()
    return given if fits else hashlib.sha256(given.encode()).hexdigest()[:_ID_LENGTH]
