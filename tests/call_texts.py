"""Replies that contain tool calls, or look as if they did."""

from hypothesis import strategies as st

from deltamem_agents.types import ToolCall

HOSTILE = st.sampled_from(
    ["</tool_call>", "<tool_call>", '"}', "\\", "\n", "[TOOL_CALLS]", "é", "😀", "{", "<|python_tag|>"]
)
TEXT = st.lists(HOSTILE | st.text(max_size=4), max_size=4).map("".join)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
CALLS = st.lists(
    st.builds(ToolCall, name=TEXT.filter(bool), arguments=st.dictionaries(TEXT, JSON, max_size=3)),
    min_size=1,
    max_size=3,
)
FRAGMENTS = """Hello|<|<tool|<tool_call>|</tool_call>|[|{|}|,|;|"|1|null|[TOOL_CALLS]|{"a": 1}|{"name": "f"}
{"name": "f", "arguments": {"x": 1}}|[{"name": "g", "parameters": {}}]|{"name": "f", "arguments": "{}"}"""
PROSE = st.lists(
    st.sampled_from(["<|python_tag|>", " ", "\n", *FRAGMENTS.replace("\n", "|").split("|")]), max_size=8
).map("".join)
