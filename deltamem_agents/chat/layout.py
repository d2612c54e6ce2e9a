"""Converts messages to the turns that a given chat template can render.

Templates differ in what they accept: some refuse system messages, two messages of the same role in a row or an
assistant message at the start, and most do not support tools. `lay_out` rewrites what a template would refuse or drop,
and records which message each piece of text belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

from deltamem_agents.chat.tool_calls import format_tool_calls
from deltamem_agents.errors import ConfigError
from deltamem_agents.types import Message, Role, Tool, ToolCall

NOBODY = -1
_GAP = "\n\n"
_SPOKEN_BEFORE = "…"

_TOOL_INSTRUCTIONS = """You can use these tools, described by one JSON object a line:
<tools>
{tools}
</tools>
To use a tool, write its name and its arguments as JSON between these marks, once for each use, and stop:
<tool_call>
{{"name": "…", "arguments": {{…}}}}
</tool_call>
What the tool returns comes back between <tool_response> and </tool_response>. If no tool is needed, answer in words."""


@dataclass(frozen=True)
class Traits:
    """The features that a chat template supports.

    `system`: a system message at the start. `system_anywhere`: system messages later too. `repeats`: messages of the
    same role in a row. `assistant_first`: an assistant message at the start. `tools`: tool descriptions, a text with
    several calls, and results, none of them dropped.
    """

    system: bool = True
    system_anywhere: bool = True
    repeats: bool = True
    assistant_first: bool = True
    tools: bool = True


@dataclass(frozen=True)
class Segment:
    """A piece of text and the index of the message it belongs to; NOBODY for text that was added."""

    text: str
    owner: int = NOBODY


@dataclass(frozen=True)
class Slot:
    """One turn as the template sees it. `calls`: tool calls of message `owner` that the template itself writes."""

    role: Role
    segments: tuple[Segment, ...]
    owner: int = NOBODY
    calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def content(self) -> str:
        return "".join(segment.text for segment in self.segments)


def lay_out(messages: Sequence[Message], tools: Sequence[Tool], traits: Traits) -> list[Slot]:
    """The turns for these messages, in a form that the template accepts."""
    slots = [_slot(index, message, traits) for index, message in enumerate(messages)]
    slots = _join_results(slots) if not traits.tools else slots
    if tools and not traits.tools:
        slots = _instruct(slots, tools)
    slots = _place_system(slots, traits)
    if not traits.repeats:
        slots = _merge(slots)
    if not traits.assistant_first and _first_speaker(slots) == "assistant":
        lead = sum(slot.role == "system" for slot in slots[:1])
        slots.insert(lead, Slot("user", (Segment(_SPOKEN_BEFORE),)))
    return slots


def _slot(index: int, message: Message, traits: Traits) -> Slot:
    text = (Segment(message.content, index),) if message.content else ()
    if traits.tools:
        return Slot(message.role, text, index, message.tool_calls, message.tool_call_id, message.name)
    if message.role == "tool":
        return Slot("tool", (Segment("<tool_response>\n"), *text, Segment("\n</tool_response>")), index)
    if message.tool_calls:
        calls = format_tool_calls(message.tool_calls)
        text = (*text, Segment(f"\n{calls}" if text else calls, index))
    return Slot(message.role, text, index)


def _join_results(slots: Sequence[Slot]) -> list[Slot]:
    """Joins the tool results that follow one message into one user turn."""
    joined: list[Slot] = []
    for position, slot in enumerate(slots):
        if slot.role != "tool":
            joined.append(slot)
        elif position and slots[position - 1].role == "tool":
            joined[-1] = _joined(joined[-1], slot, "\n")
        else:
            joined.append(Slot("user", slot.segments, slot.owner))
    return joined


def _instruct(slots: Sequence[Slot], tools: Sequence[Tool]) -> list[Slot]:
    described = "\n".join(description(tool) for tool in tools)
    instructions = Slot("system", (Segment(_TOOL_INSTRUCTIONS.format(tools=described)),))
    if slots and slots[0].role == "system":
        return [_joined(slots[0], instructions, _GAP), *slots[1:]]
    return [instructions, *slots]


def _place_system(slots: Sequence[Slot], traits: Traits) -> list[Slot]:
    """Moves system messages to where the template accepts them: joined at the start, or before a user message."""
    placed: list[Slot] = []
    held: list[Slot] = []
    for slot in slots:
        first = not placed and not held
        if slot.role == "system" and traits.system and (first or traits.system_anywhere):
            placed.append(slot)
        elif slot.role == "system" and traits.system and len(placed) == 1 and placed[0].role == "system":
            placed[0] = _joined(placed[0], slot, _GAP)
        elif slot.role == "system":
            held.append(slot)
        elif held and slot.role == "user":
            placed.append(_folded([*held, slot]))
            held = []
        elif held and slot.role == "assistant":
            placed += [_folded(held), slot]
            held = []
        else:
            # Nothing may come between a call and its result, so instructions move to the next turn.
            placed.append(slot)
    return [*placed, _folded(held)] if held else placed


def _folded(slots: Sequence[Slot]) -> Slot:
    """One user turn that contains the instructions and the user's message."""
    whole = reduce(partial(_joined, gap=_GAP), slots)
    return Slot("user", whole.segments, whole.owner)


def _merge(slots: Sequence[Slot]) -> list[Slot]:
    merged: list[Slot] = []
    for slot in slots:
        if merged and merged[-1].role == slot.role and slot.role != "tool" and not merged[-1].calls:
            merged[-1] = _joined(merged[-1], slot, _GAP)
        else:
            merged.append(slot)
    return merged


def _joined(first: Slot, second: Slot, gap: str) -> Slot:
    between = (Segment(gap),) if first.segments and second.segments else ()
    segments = (*first.segments, *between, *second.segments)
    return Slot(first.role, segments, second.owner, second.calls)


def _first_speaker(slots: Sequence[Slot]) -> Role | None:
    return next((slot.role for slot in slots if slot.role != "system"), None)


def description(tool: Tool) -> str:
    """A tool as a JSON object on one line. Raises ConfigError if its parameters are not JSON."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    try:
        return json.dumps(function, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"tool {tool.name!r} has parameters that are not JSON ({error}); expected a JSON schema of type object"
        ) from None
