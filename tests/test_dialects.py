"""Other chat APIs' spellings of tools, choices and formats are converted; unknown spellings are refused."""

from __future__ import annotations

from typing import Any

import pytest

from deltamem_agents.bridges.dialects import (
    ANY_OBJECT,
    as_response_schema,
    as_tool,
    as_tool_choice,
    tool_result,
    turn_options,
)
from deltamem_agents.errors import ConfigError
from deltamem_agents.types import Sampling, Tool

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


def test_a_tool_may_stand_under_function() -> None:
    plain = {"name": "f", "description": None, "parameters": SCHEMA}
    assert as_tool(plain) == as_tool({"type": "function", "function": plain}) == Tool("f", "", SCHEMA)
    assert as_tool({"name": "f"}).parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, "auto"),
        (False, "auto"),
        (True, "any"),
        ("required", "any"),
        ("none", "none"),
        ("f", "f"),
        ({"type": "auto"}, "auto"),
        ({"type": "tool", "name": "f"}, "f"),
        ({"type": "function", "function": {"name": "f"}}, "f"),
    ],
)
def test_a_tool_choice_has_many_spellings(said: object, meant: str) -> None:
    assert as_tool_choice(said) == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ANY_OBJECT),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA),
        (SCHEMA, SCHEMA),
        ({"$ref": "#/$defs/X"}, {"$ref": "#/$defs/X"}),
    ],
)
def test_a_response_format_has_many_spellings(said: object, meant: object) -> None:
    assert as_response_schema(said) == meant


def test_unknown_spellings_are_refused() -> None:
    for choice in (3, {"type": "maybe"}, ["f"]):
        with pytest.raises(ConfigError, match="tool_choice"):
            as_tool_choice(choice)
    for response_format in ("yaml", 7, True, {}, {"type": "json_schema"}, {"type": "yaml"}, {"type": "function"}):
        with pytest.raises(ConfigError, match="response_format"):
            as_response_schema(response_format)


def test_a_calls_options_override_the_models() -> None:
    own = Sampling(max_tokens=7, temperature=0.5, stop=("x",))
    said: dict[str, Any] = {"temperature": 0.0, "stop": ["y"], "memory": "off", "thread": "t", "other": 1}
    options = turn_options(said, [Tool("f")], sampling=own, memory="readonly")
    assert options["sampling"] == Sampling(max_tokens=7, temperature=0.0, stop=("y",))
    assert (options["memory"], options["thread"], options["tool_choice"]) == ("off", "t", "auto")
    nothing = dict.fromkeys(said)
    assert turn_options(nothing, [], sampling=own, memory="readonly")["sampling"] == own
    assert turn_options(nothing, [], sampling=own, memory="readonly")["memory"] == "readonly"
    assert turn_options({"stop": []}, [], sampling=own, memory="off")["sampling"].stop == ()


def test_a_required_call_is_a_single_call_by_default() -> None:
    for choice, parallel, expected in (
        ("auto", None, True),
        ("any", None, False),
        ("any", True, True),
        ("f", 0, False),
    ):
        said = {"tool_choice": choice, "parallel_tool_calls": parallel}
        assert turn_options(said, [], sampling=Sampling(), memory="off")["parallel_tool_calls"] == expected


def test_a_failed_tools_result_starts_with_error_once() -> None:
    for text in ("no such city", "Error: no such city"):
        assert tool_result(text, call_id="c", name="f", failed=True).content == "Error: no such city"
    message = tool_result("fine", call_id="", name=None, failed=False)
    assert (message.role, message.content, message.tool_call_id, message.name) == ("tool", "fine", None, None)
