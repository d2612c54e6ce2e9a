"""Laws of schemas: a reply fits any form of schema, or the schema is refused with an error that names the fault."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, RootModel, TypeAdapter, create_model
from typing_extensions import TypedDict

pytest.importorskip("llguidance")

from deltamem_agents import ConfigError, GrammarError, Tool, ToolCall
from deltamem_agents.bridges.schemas import as_arguments, is_recursive, json_schema, schema_name
from deltamem_agents.chat.grammar import Vocabulary, reply_grammar
from deltamem_agents.chat.tool_calls import format_tool_calls
from deltamem_agents.testing import ScriptedEngine
from tiny_engine import byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER.backend_tokenizer.to_str(), 300, {257})


class Point(BaseModel):
    """A place."""

    x: int
    y: int = 0


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Place(TypedDict):
    at: Point
    label: str


@dataclass
class Spot:
    x: int
    name: str = "here"


class Opaque:
    pass


Names = RootModel[list[str]]
Late = create_model("Late", tags=(list[Literal["a", "b"]], ...))


def fits(schema: Any, value: object) -> bool:
    grammar = reply_grammar((), schema=schema)
    assert grammar is not None
    ids = TOKENIZER(json.dumps(value), add_special_tokens=False)["input_ids"]
    return VOCABULARY.matcher(grammar).accepts(ids)


@pytest.mark.parametrize(
    ("given", "name", "recursive"),
    [
        (Point, "Point", False),
        (Node, "Node", True),
        (Names, "RootModel[list[str]]", False),
        (Late, "Late", False),
        (Colour, "Colour", False),
        (Place, "Place", False),
        (Spot, "Spot", False),
        (list[Point], None, False),
        (Point | Node, None, True),
        (Point | None, None, False),
        (int, None, False),
    ],
)
def test_any_type_that_pydantic_knows_has_a_schema(given: Any, name: str | None, recursive: bool) -> None:
    schema = json_schema(given)
    assert schema_name(schema) == name and is_recursive(schema) == recursive


@pytest.mark.parametrize("given", [7, "yaml", True, b"bytes", Point(x=1), Opaque, lambda x: x])
def test_types_without_a_schema_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="schema"):
        json_schema(given)


@pytest.mark.parametrize(
    ("schema", "wrapped"),
    [
        (Point.model_json_schema(), False),
        (Node.model_json_schema(), False),
        (TypeAdapter(Point | Node).json_schema(), False),
        ({"properties": {"x": {"type": "integer"}}}, False),
        ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"type": "object"}}}, False),
        (Names.model_json_schema(), True),
        (TypeAdapter(list[Point]).json_schema(), True),
        (TypeAdapter(Point | None).json_schema(), True),
        (TypeAdapter(Point | int).json_schema(), True),
        ({"type": ["object", "null"]}, True),
        ({"enum": ["a"]}, True),
        ({"const": {"a": 1}}, True),
        ({"$ref": "#"}, True),
    ],
)
def test_arguments_are_an_object_that_gives_the_value_back(schema: dict[str, Any], wrapped: bool) -> None:
    arguments = as_arguments(schema)
    assert arguments.parameters["type"] == "object" and (arguments.key is not None) == wrapped
    value = {"x": 1}
    assert arguments.value({arguments.key: value} if arguments.key else value) == value


def test_references_hold_where_a_schema_is_moved_into_a_parameter() -> None:
    tree = {"type": "array", "items": {"$ref": "#"}}
    tool = Tool("grow", parameters=as_arguments(tree).parameters)
    for value, right in (([[], [[]]], True), ([1], False)):
        grammar = reply_grammar([tool], "any")
        assert grammar is not None
        ids = TOKENIZER(format_tool_calls([ToolCall("grow", {"value": value})]), add_special_tokens=False)["input_ids"]
        assert VOCABULARY.matcher(grammar).accepts(ids) == right


OBJECT_X = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
OBJECT_Y = {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (Node.model_json_schema(), {"value": 1, "children": [{"value": 2}]}, {"value": 1, "children": [3]}),
        (Node.model_json_schema(), {"value": 1}, {"value": 1, "made_up": 2}),
        (Names.model_json_schema(), ["a", "b"], {"a": 1}),
        (TypeAdapter(Point | list[int]).json_schema(), [1, 2], ["a"]),
        (TypeAdapter(Point | None).json_schema(), None, 3),
        (TypeAdapter(dict[str, int]).json_schema(), {"any": 1}, {"any": "1"}),
        (TypeAdapter(tuple[int, str]).json_schema(), [1, "a"], ["a", 1]),
        (TypeAdapter(Colour).json_schema(), "red", "green"),
        (Late.model_json_schema(), {"tags": ["a", "b"]}, {"tags": ["c"]}),
        ({"properties": {"x": {"type": "integer"}}, "required": ["x"]}, {"x": 1}, "x"),
        ({"properties": {"properties": {"type": "integer"}}}, {"properties": 1}, {"properties": "a"}),
        ({"items": {"type": "integer"}}, [1], "a"),
        ({"allOf": [OBJECT_X, OBJECT_Y]}, {"x": 1, "y": 2}, {"x": 1}),
        ({"allOf": [{"$ref": "#/$defs/X"}, OBJECT_Y], "$defs": {"X": OBJECT_X}}, {"x": 1, "y": 2}, {"y": 2}),
        ({**OBJECT_Y, "anyOf": [OBJECT_X]}, {"y": 2, "x": 1}, {"y": 2}),
        ({"anyOf": [OBJECT_X, OBJECT_Y]}, {"y": 2}, {"x": 1, "y": 2}),
        ({"type": ["object", "null"], "properties": OBJECT_X["properties"]}, {"x": 1}, {"z": 1}),
        ({"type": "object", "properties": {"x": True, "z": False}, "required": ["x"]}, {"x": [1]}, {"x": 1, "z": 1}),
        ({"type": "string", "format": "password"}, "secret", 1),
        ({"const": 3}, 3, 4),
    ],
)
def test_a_reply_fits_its_schema(schema: dict[str, Any], right: object, wrong: object) -> None:
    assert fits(schema, right) and not fits(schema, wrong)


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        (True, "True"),
        (Point, "Point"),
        ({"name": "f", "parameters": {}}, "'name', 'parameters'"),
        ({"type": "objekt"}, "objekt"),
        ({"type": "object", "properties": {"x": {"not": {"const": 1}}}}, "not"),
        ({"type": "object", "properties": {"x": False}, "required": ["x"]}, "'x'"),
        ({"type": "object", "properties": None}, "properties"),
        ({"$ref": "#/$defs/None"}, r"/\$defs/None"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, "nothing fits"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
        ({"type": "number", "default": float("nan")}, "not JSON"),
        ({"type": "object", "properties": {"x": {"default": {1}}}}, "not JSON"),
    ],
)
def test_an_unusable_schema_is_refused_and_the_error_names_the_part(schema: Any, part: str) -> None:
    engine = ScriptedEngine("No.")
    with pytest.raises((ConfigError, GrammarError), match=part) as raised:
        engine.run_turn("ada", [{"role": "user", "content": "hi"}], response_schema=schema)
    assert "llguidance {}" not in str(raised.value) and engine.store.agents() == []


def test_keywords_no_grammar_can_express_are_ignored_in_tools() -> None:
    tool = Tool("t", parameters={"type": "object", "properties": {"x": {"type": "string", "pattern": "^(?!a)b$"}}})
    grammar = reply_grammar([tool], "any")
    assert grammar is not None and VOCABULARY.matcher(grammar).way_out() is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
        {"type": "string", "format": "duration"},
        {"type": "string", "format": "uri"},
        {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 3},
    ],
)
def test_a_reply_can_be_finished_even_if_the_best_token_never_ends_it(schema: dict[str, Any]) -> None:
    grammar = reply_grammar((), schema=schema)
    assert grammar is not None
    way = VOCABULARY.matcher(grammar).way_out()
    assert way is not None and VOCABULARY.matcher(grammar).accepts(way)


@pytest.mark.parametrize(
    ("tools", "part"),
    [
        ([Tool("t", parameters={"type": "array"})], "'array'"),
        ([Tool("t", parameters=None)], "None"),  # type: ignore[arg-type]
        ([Tool(" ")], "' '"),
        ([Tool("half \ud800")], "half"),
        ([Tool("t", "one"), Tool("t", "another")], "two tools"),
        ([{"name": "t"}], "Tool objects"),
        (Tool("t"), "list of tools"),
    ],
)
def test_a_value_that_is_no_tool_is_refused(tools: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ScriptedEngine("No.").run_turn(None, [{"role": "user", "content": "hi"}], tools=tools, tool_choice="any")


def test_no_tools_are_none_and_the_same_tool_twice_is_one() -> None:
    engine, said = ScriptedEngine("Yes."), [{"role": "user", "content": "hi"}]
    assert engine.run_turn(None, said, tools=None).text == "Yes."  # type: ignore[arg-type]
    assert engine.run_turn(None, said, tools=[Tool("t"), Tool("t")], tool_choice="t").tool_calls[0].name == "t"
