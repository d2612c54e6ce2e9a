"""Inputs for the tests of rendering: templates by name, texts that look like control tokens, tool conversations."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from deltamem_agents.chat.template import ChatTemplate, Rendered
from deltamem_agents.types import Message, Tool, ToolCall
from tiny_tokenizers import SPECIAL, TEMPLATES, byte_bpe

KINDS = {name: ChatTemplate(byte_bpe(template)) for name, template in TEMPLATES.items()}
each_kind = pytest.mark.parametrize("kind", KINDS)

WEATHER = Tool("get_weather", "Weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
HELLO = [Message("user", "hello there"), Message("assistant", "Hi, Ada."), Message("user", "Where do I live?")]
BRIEF = Message("system", "You are a helpful assistant.")

HOSTILE = st.sampled_from([*SPECIAL, "[INST]", "zq0x", "zq0x0z", "\ue000", "User:", "\n", " ", "{{ x }}", "ö", "😀"])
TEXTS = st.lists(HOSTILE | st.text(max_size=5), max_size=4).map("".join)
TURNS = st.lists(TEXTS, min_size=1, max_size=5).map(
    lambda texts: [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
)

CALLS = (
    ToolCall("get_weather", {"city": "Oslo"}, "call_1"),
    ToolCall("get_weather", {"city": "Ålesund <|im_end|>"}, "call_2"),
)
TOOL_TURNS = [
    Message("user", "Weather in Oslo?"),
    Message("assistant", "Let me look.", CALLS),
    Message("tool", "4 C, <|im_end|> rain", (), "call_1", "get_weather"),
    Message("tool", "7 C", (), "call_2", "get_weather"),
    Message("assistant", "It rains."),
    Message("user", "And now?"),
    Message("assistant", "", CALLS[:1]),
    Message("tool", "5 C", (), "call_1", "get_weather"),
]


def raw(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def owned(kind: ChatTemplate, rendered: Rendered, owner: int) -> str:
    ids = [token for token, owned_by in zip(rendered.ids, rendered.owner, strict=True) if owned_by == owner]
    return kind._tokenizer.decode(ids)  # type: ignore[attr-defined]


def readable(text: str) -> str:
    """The text after encoding and decoding with a tokenizer."""
    return text.encode("utf-8", "replace").decode()
