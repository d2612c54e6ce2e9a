"""Laws of structured replies in both frameworks: a complete value, or an error that says what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from itertools import cycle
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, RootModel, TypeAdapter
from typing_extensions import TypedDict

pytest.importorskip("langchain_deltamem")
pytest.importorskip("llama_index.llms.deltamem")
pytest.importorskip("llguidance")

from langchain_core.exceptions import OutputParserException
from langchain_core.tools import StructuredTool
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode

from deltamem_agents import ConfigError, Message, ReplyCutOffError, ToolCall
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem
from llama_index.llms.deltamem import DeltaMemLLM

# LlamaIndex's own StructuredLLM uses a method that pydantic deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The `json` method is deprecated")

ENGINE = ScriptedEngine("I would rather talk.")
SAID = [{"role": "user", "content": "hi"}]


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


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    loud: bool


class Home(BaseModel):
    at: Point
    colour: Colour
    spare: Point | None = None
    number: int | str
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    rooms: dict[str, Point]


class Names(RootModel[list[str]]):
    pass


class Anywhere(RootModel[Point]):
    pass


class Either(RootModel[Point | list[int]]):
    pass


class Place(TypedDict):
    """A place with a name."""

    at: Point
    label: str


class Tree(TypedDict):
    branches: list[Tree]


class Partly(TypedDict):
    label: str
    size: NotRequired[int]


@dataclass
class Spot:
    x: int
    name: str = "here"


MODELS: dict[str, type[BaseModel]] = {model.__name__: model for model in (Point, Node, Home, Names, Anywhere, Either)}
OBJECT_X = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
OBJECT_Y = {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]}


class XY(TypedDict):
    x: int
    y: int


SCHEMAS: dict[str, tuple[Any, Any]] = {
    "TypedDict": (Place, Place),
    "TypedDict that holds itself": (Tree, Tree),
    "TypedDict with what may be missing": (Partly, Partly),
    "dataclass": (Spot, Spot),
    "enum class": (Colour, Colour),
    "list of models": (list[Point], list[Point]),
    "union of models": (Cat | Dog, Cat | Dog),
    **{f"JSON of {name}": (model.model_json_schema(), model) for name, model in MODELS.items()},
    "JSON of a list": (TypeAdapter(list[Point]).json_schema(), list[Point]),
    "JSON of a union": (TypeAdapter(Cat | Dog).json_schema(), Cat | Dog),
    "JSON of an optional": (TypeAdapter(Point | None).json_schema(), Point | None),
    "JSON of a dict": (TypeAdapter(dict[str, int]).json_schema(), dict[str, int]),
    "JSON of a number": (TypeAdapter(int).json_schema(), int),
    "no title": (OBJECT_X, Point),
    "no title and no type": ({"properties": OBJECT_X["properties"], "required": ["x"]}, Point),
    "no properties": ({"title": "T", "type": "object", "additionalProperties": {"type": "integer"}}, dict[str, int]),
    "titled array": ({"title": "Numbers", "type": "array", "items": {"type": "integer"}}, list[int]),
    "enum": ({"enum": ["a", "b"]}, Literal["a", "b"]),
    "const": ({"title": "C", "const": 3}, Literal[3]),
    "allOf": ({"allOf": [OBJECT_X, OBJECT_Y]}, XY),
    "anyOf": ({"title": "U", "anyOf": [OBJECT_X, OBJECT_Y]}, dict[Literal["x", "y"], int]),
    "properties named as keywords": (
        {"type": "object", "properties": {"title": {"type": "string"}, "type": True}, "required": ["title", "type"]},
        dict[Literal["title", "type"], Any],
    ),
    "an OpenAI tool": ({"type": "function", "function": {"name": "f", "parameters": OBJECT_X}}, Point),
    "an Anthropic tool": ({"name": "f", "input_schema": OBJECT_X}, Point),
}
METHODS = ("function_calling", "json_schema", "json_mode")


def chat(script: Any = None, **fields: Any) -> ChatDeltaMem:
    return ChatDeltaMem(engine=ENGINE if script is None else ScriptedEngine(script), max_tokens=2000, **fields)


def llm(script: Any = None, **fields: Any) -> DeltaMemLLM:
    return DeltaMemLLM(**{"engine": ENGINE if script is None else ScriptedEngine(script), "max_tokens": 2000, **fields})


async def _drained(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


async def _awaited(stream: Any) -> list[Any]:
    return await _drained(await stream)


CHAINS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda chain: chain.invoke("hi"),
    "ainvoke": lambda chain: asyncio.run(chain.ainvoke("hi")),
    "stream": lambda chain: list(chain.stream("hi"))[-1],
    "astream": lambda chain: asyncio.run(_drained(chain.astream("hi")))[-1],
}
PREDICTIONS: dict[str, Callable[[DeltaMemLLM, Any], Any]] = {
    "structured_predict": lambda llm, model: llm.structured_predict(model, PromptTemplate("hi")),
    "astructured_predict": lambda llm, model: asyncio.run(llm.astructured_predict(model, PromptTemplate("hi"))),
    "stream_structured_predict": lambda llm, model: list(llm.stream_structured_predict(model, PromptTemplate("hi")))[
        -1
    ],
    "astream_structured_predict": lambda llm, model: asyncio.run(
        _awaited(llm.astream_structured_predict(model, PromptTemplate("hi")))
    )[-1],
    "as_structured_llm.chat": lambda llm, model: llm.as_structured_llm(model).chat([ChatMessage("hi")]).raw,
    "as_structured_llm.achat": lambda llm, model: (
        asyncio.run(llm.as_structured_llm(model).achat([ChatMessage("hi")])).raw
    ),
    "as_structured_llm.stream_chat": lambda llm, model: (
        list(llm.as_structured_llm(model).stream_chat([ChatMessage("hi")]))[-1].raw
    ),
    "as_structured_llm.complete": lambda llm, model: llm.as_structured_llm(model).complete("hi").raw,
}
COMBINED = [
    (name, method)
    for place, name in enumerate((*MODELS, *SCHEMAS))
    for method in (METHODS if name in MODELS else ("function_calling", METHODS[1 + place % 2]))
]
# Every schema as a call and as text, and with the ways and the raw message in turn.
_ways, _raws = cycle(CHAINS), cycle((False, True, False))
CHAINED = [(name, method, next(_ways), next(_raws)) for name, method in COMBINED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "way", "raw"), CHAINED)
def test_in_langchain_every_schema_gives_its_value(name: str, method: Any, way: str, raw: bool) -> None:
    schema, kind = SCHEMAS.get(name) or (MODELS[name], MODELS[name])
    value = CHAINS[way](chat().with_structured_output(schema, method=method, include_raw=raw))
    if raw:
        assert value["parsing_error"] is None and value["raw"].response_metadata["finish_reason"] != "length"
        value = value["parsed"]
    if name in MODELS:
        assert type(value) is kind
    else:
        TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_response_format_is_enforced_in_both_frameworks_and_the_engine(name: str) -> None:
    schema, kind = SCHEMAS[name]
    if "tool" in name:
        for ask in (
            lambda: chat().invoke("hi", response_format=schema),
            lambda: ENGINE.run_turn(None, SAID, response_schema=schema),
        ):
            with pytest.raises(ValueError, match="schema"):
                ask()
        return
    texts = [
        chat().invoke("hi", response_format=schema).content,
        llm().chat([ChatMessage("hi")], response_format=schema).message.content,
    ]
    if isinstance(schema, dict):
        texts.append(ENGINE.run_turn(None, SAID, response_schema=schema).text)
    for text in texts:
        TypeAdapter(kind).validate_python(json.loads(str(text)))


_predictions = cycle(PREDICTIONS)


@pytest.mark.parametrize(("name", "way"), [(name, next(_predictions)) for name in MODELS for _ in range(3)])
def test_in_llamaindex_every_model_gives_its_object(name: str, way: str) -> None:
    assert type(PREDICTIONS[way](llm(), MODELS[name])) is MODELS[name]


@pytest.mark.parametrize("model", [Point, Node, Home, Anywhere])
def test_tools_that_take_an_object_are_called_with_it(model: type[BaseModel]) -> None:
    tool = FunctionTool.from_defaults(lambda **given: repr(model.model_validate(given)), name="t", fn_schema=model)
    called = llm().predict_and_call([tool], "hi", tool_required=True, error_on_tool_error=True)
    assert model.__name__ in called.response or model is Anywhere
    asynchronous = asyncio.run(llm().apredict_and_call([tool], "hi", tool_required=True, error_on_tool_error=True))
    assert asynchronous.response == called.response
    typed = StructuredTool.from_function(lambda **_: "", name="t", description="", args_schema=model)
    # LangChain itself asks for the root of a RootModel by that name.
    for offered in (model,) if model is Anywhere else (model, typed):
        (call,) = chat().bind_tools([offered], tool_choice="any").invoke("hi").tool_calls
        model.model_validate(call["args"])


@pytest.mark.parametrize("model", [Names, Either])
def test_tools_that_take_no_object_are_refused_by_name(model: type[BaseModel]) -> None:
    tool = FunctionTool.from_defaults(lambda **given: "", name="odd", fn_schema=model)
    with pytest.raises(ConfigError, match=r"'odd'.*expected an object"):
        llm().predict_and_call([tool], "hi", tool_required=True)
    with pytest.raises(ConfigError, match=rf"{model.__name__}.*expected an object"):
        chat().bind_tools([model])


@pytest.mark.parametrize("kind", [Place, Spot, Colour, int, list[Point], "Point", None])
def test_in_llamaindex_a_class_that_is_no_model_is_refused(kind: Any) -> None:
    for way in ("structured_predict", "stream_structured_predict"):
        with pytest.raises(ConfigError, match="output_cls"):
            PREDICTIONS[way](llm(), kind)


@pytest.mark.parametrize("kind", [7, True, "Point", {}, OBJECT_X | {"type": "objekt"}, {"type": "web_search"}])
def test_in_langchain_a_value_that_is_no_schema_is_refused(kind: Any) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match=r"schema|objekt|tool"):
            chat().with_structured_output(kind, method=method).invoke("hi")


def test_a_tool_needs_a_name() -> None:
    for nameless in (OBJECT_X, {"type": "function", "function": {"parameters": OBJECT_X}}):
        with pytest.raises(ConfigError, match="name"):
            chat().bind_tools([nameless])


class Trip(BaseModel):
    day: date
    at: datetime
    ticket: UUID
    price: Decimal
    note: str


TRIP = {
    "day": "2024-02-29",
    "at": "2024-02-29T12:00:00Z",
    "ticket": "12345678-1234-5678-1234-567812345678",
    "price": 12.5,
    "note": "by sea",
}


CALLED = ScriptedEngine(Message("assistant", "", (ToolCall("Trip", TRIP),)))
TOLD = ScriptedEngine(json.dumps(TRIP))
ROOMS = (1, 30, 70, 110)


@pytest.mark.slow
def test_dates_ids_and_prices_are_read_as_what_they_are() -> None:
    for method, engine in zip(METHODS, (CALLED, TOLD, TOLD), strict=True):
        model = ChatDeltaMem(engine=engine, max_tokens=2000)
        assert model.with_structured_output(Trip, method=method).invoke("hi") == Trip(**TRIP)
    for way in ("structured_predict", "astream_structured_predict"):
        assert PREDICTIONS[way](llm(engine=CALLED), Trip) == Trip(**TRIP)
    in_text = llm(engine=TOLD, pydantic_program_mode=PydanticProgramMode.LLM)
    assert in_text.structured_predict(Trip, PromptTemplate("hi")) == Trip(**TRIP)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "room"), [*zip(CHAINS, ROOMS, strict=True)])
def test_in_langchain_a_truncated_reply_raises_an_error(way: str, room: int) -> None:
    for method, engine in zip(METHODS, (CALLED, TOLD, TOLD), strict=True):
        model = ChatDeltaMem(engine=engine, max_tokens=room)
        for error, schema in ((ReplyCutOffError, Trip), (OutputParserException, Trip.model_json_schema())):
            with pytest.raises(error, match=rf"after {room} tokens.*raise max_tokens"):
                CHAINS[way](model.with_structured_output(schema, method=method))
        said = CHAINS[way](model.with_structured_output(Trip, method=method, include_raw=True))
        assert said["parsed"] is None and isinstance(said["parsing_error"], ReplyCutOffError)
        assert said["raw"].response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize(("way", "room"), [*zip(PREDICTIONS, ROOMS * 2, strict=True)])
def test_in_llamaindex_a_truncated_reply_raises_an_error(way: str, room: int) -> None:
    for mode, engine in ((PydanticProgramMode.DEFAULT, CALLED), (PydanticProgramMode.LLM, TOLD)):
        cut = DeltaMemLLM(engine=engine, max_tokens=room, pydantic_program_mode=mode)
        with pytest.raises(ReplyCutOffError, match=rf"after {room} tokens.*raise max_tokens"):
            PREDICTIONS[way](cut, Trip)


def test_in_text_mode_text_after_the_object_may_be_truncated() -> None:
    chatty = llm(json.dumps(TRIP) + " I hope that helps" * 20, max_tokens=200, pydantic_program_mode="llm")
    assert chatty.structured_predict(Trip, PromptTemplate("hi")) == Trip(**TRIP)


def test_a_truncated_number_is_an_error_and_no_shorter_number() -> None:
    with pytest.raises(ReplyCutOffError):
        ChatDeltaMem(engine=ScriptedEngine("123456"), max_tokens=3).with_structured_output(
            {"type": "integer"}, method="json_schema"
        ).invoke("hi")


def test_a_stream_shows_the_object_as_it_grows_and_the_whole_last() -> None:
    script = Message("assistant", "", (ToolCall("Names", {"value": ["Ada", "Bo"]}),))
    lists = [piece.root for piece in llm(script).stream_structured_predict(Names, PromptTemplate("hi"))]
    assert ["Ad"] in lists and lists[-1] == ["Ada", "Bo"]
    pieces = list(llm().stream_structured_predict(Home, PromptTemplate("hi")))
    assert isinstance(pieces[0], FlexibleModel) and type(pieces[-1]) is Home
    grown = list(chat(script).with_structured_output(Names.model_json_schema()).stream("hi"))
    assert ["Ad"] in grown and grown[-1] == ["Ada", "Bo"]
