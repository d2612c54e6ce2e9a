"""Laws of a call's options: each value is accepted or refused, equally in the engine and both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_deltamem")
pytest.importorskip("llama_index.llms.deltamem")
pytest.importorskip("llguidance")

from langchain_core.messages import AIMessage, HumanMessage
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from pydantic import BaseModel, ValidationError

from deltamem_agents import ConfigError, MessageError, Sampling
from deltamem_agents.bridges.dialects import CALL_KEYWORDS
from deltamem_agents.testing import Asked, ScriptedEngine
from langchain_deltamem import ChatDeltaMem
from llama_index.llms.deltamem import DeltaMemLLM


class Point(BaseModel):
    x: int


seen: list[Asked] = []
engine = ScriptedEngine(lambda asked: seen.append(asked) or "Hello.")
CALLS: dict[str, Callable[..., Any]] = {
    "langchain": lambda **given: ChatDeltaMem(engine=engine, max_tokens=400).invoke("hi", **given),
    "llamaindex": lambda **given: DeltaMemLLM(engine=engine, max_tokens=400).chat([ChatMessage("hi")], **given),
}
MADE: dict[str, Callable[..., Any]] = {
    "langchain": lambda **fields: ChatDeltaMem(engine=engine, **fields),
    "llamaindex": lambda **fields: DeltaMemLLM(engine=engine, **fields),
}
BAD = {
    "temperature": ("warm", "0.5", True, -1, float("nan"), float("inf"), [0.5]),
    "max_tokens": ("many", 0, 2.5, True),
    "top_p": ("0.5", 0, 2, False),
    "top_k": (0, 1.5, "3"),
    "min_p": ("none", -0.1, 1.1),
    "repetition_penalty": (0, "1.1", float("inf")),
    "seed": ("s", 1.5, True),
}


@pytest.mark.parametrize("framework", CALLS)
@pytest.mark.parametrize("name", BAD)
def test_an_invalid_sampling_value_is_refused(framework: str, name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(ConfigError, match=rf"Sampling\.{name} is .*expected"):
            Sampling(**{name: value})
        with pytest.raises(ConfigError, match=rf"Sampling\.{name} is"):
            CALLS[framework](**{name: value})


@pytest.mark.parametrize("framework", CALLS)
def test_numbers_of_numpy_are_numbers(framework: str) -> None:
    assert CALLS[framework](temperature=np.float32(0), max_tokens=np.int64(50), top_k=np.int32(3))
    assert MADE[framework](temperature="0.5").temperature == 0.5
    with pytest.raises(ValidationError):
        MADE[framework](temperature="warm")


@pytest.mark.parametrize("framework", CALLS)
@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"stop": 5}, r"stop is 5"),
        ({"stop": [5]}, r"stop holds 5"),
        ({"stop": [""]}, r"stop holds ''"),
        ({"tools": "search"}, "tools is 'search'"),
        ({"tools": ["search"]}, "search"),
        ({"tools": [{"description": "no name"}]}, "name"),
        ({"tools": [{"name": "t", "parameters": {"type": "array"}}]}, "'t'"),
        ({"tools": [{"name": "t", "parameters": "x"}]}, "'t'"),
        ({"tool_choice": 3}, "tool_choice is 3"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls is 'no'"),
        ({"response_format": "yaml"}, "response_format is 'yaml'"),
        ({"response_format": {}}, "response_format is {}"),
        ({"memory": "rw"}, "memory is 'rw'"),
    ],
)
def test_an_odd_option_is_refused_by_name_in_both_frameworks(framework: str, given: dict[str, Any], part: str) -> None:
    before = len(seen)
    with pytest.raises(ConfigError, match=part):
        CALLS[framework](**given)
    assert len(seen) == before


@pytest.mark.parametrize("framework", CALLS)
def test_the_value_none_is_ignored(framework: str) -> None:
    assert CALLS[framework](**dict.fromkeys(CALL_KEYWORDS))
    assert seen[-1].tools == ()


@pytest.mark.parametrize("framework", CALLS)
def test_a_tool_needs_only_a_name(framework: str) -> None:
    for more in ({}, {"description": None, "parameters": None}, {"parameters": {}}):
        CALLS[framework](tools=[{"type": "function", "function": {"name": "t", **more}}])
        (offered,) = seen[-1].tools
        assert (offered.name, offered.description) == ("t", "")
        assert offered.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize("framework", CALLS)
def test_a_pydantic_class_is_a_response_format(framework: str) -> None:
    reply = CALLS[framework](response_format=Point)
    text = reply.content if framework == "langchain" else reply.message.content
    assert Point.model_validate_json(text)


@pytest.mark.parametrize("said", ["no JSON", "[1]", "3"])
def test_a_call_in_the_history_whose_arguments_are_no_object_is_refused_alike(said: str) -> None:
    spoken = AIMessage("", additional_kwargs={"function_call": {"name": "t", "arguments": said}})
    with pytest.raises(MessageError, match=r"message 1 .*arguments"):
        ChatDeltaMem(engine=engine).invoke([HumanMessage("hi"), spoken, HumanMessage("?")])
    called = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="t", tool_kwargs=said)])
    with pytest.raises(MessageError, match=r"message 1 .*arguments"):
        DeltaMemLLM(engine=engine).chat([ChatMessage("hi"), called, ChatMessage("?")])
