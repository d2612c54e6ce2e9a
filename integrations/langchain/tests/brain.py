"""What the scripted model says: enough judgement for tests, none of it learned."""

from __future__ import annotations

from deltamem_agents import Message
from deltamem_agents.testing import Asked, oblige


def brain(asked: Asked) -> Message | str:
    """Obliges, and has a joke ready where JSON is asked for and no tool is on offer."""
    last = asked.messages[-1]
    if "JSON" in last.content and last.role != "tool" and (not asked.tools or asked.tool_choice == "none"):
        return '{"setup": "Why do cats purr?", "punchline": "They are engines."}'
    return oblige(asked)
