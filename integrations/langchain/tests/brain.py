"""The script of the scripted model: fixed rules with enough judgement for the tests."""

from __future__ import annotations

from deltamem_agents import Message
from deltamem_agents.testing import Asked, oblige


def brain(asked: Asked) -> Message | str:
    """Follows `oblige`, but replies with a joke as JSON if JSON is requested and no tool is available."""
    last = asked.messages[-1]
    if "JSON" in last.content and last.role != "tool" and (not asked.tools or asked.tool_choice == "none"):
        return '{"setup": "Why do cats purr?", "punchline": "They are engines."}'
    return oblige(asked)
