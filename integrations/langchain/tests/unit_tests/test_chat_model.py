"""The chat model: what a reply says of itself, tools, schemas, and errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypedDict

import pytest
from brain import brain
from langchain_core.exceptions import ContextOverflowError
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from deltamem_agents import ConfigError, DeltaMemError, Message, SQLiteStore, StoreError, ToolCall, WindowError
from deltamem_agents.scripted import Asked, ScriptedEngine
from langchain_deltamem import ChatDeltaMem


@tool
def add(x: int, y: int = 0) -> int:
    """Add two numbers."""
    return x + y


@tool
def clock() -> str:
    """Tell the time."""
    return "noon"


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


class JokeDict(TypedDict):
    """A joke."""

    setup: str
    punchline: str


def scripted(script: Any = brain, **fields: Any) -> ChatDeltaMem:
    return ChatDeltaMem(engine=ScriptedEngine(script), **{"max_tokens": 500, **fields})


def whole(chunks: Any) -> AIMessageChunk:
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert total is not None
    return total


def test_a_reply_says_what_the_memory_did() -> None:
    model = scripted("Hello.")
    reply = model.invoke("I am Ada.", agent_id="ada")
    facts = reply.response_metadata["deltamem"]
    assert model.engine is not None
    assert facts["agent"] == "ada" and facts["snapshot"] == model.engine.store.head("ada")
    assert facts["tokens_written"] == len("I am Ada.") + len("Hello.") and facts["state_bytes"] == 64
    assert reply.response_metadata["model_name"] == "scripted" and reply.response_metadata["finish_reason"] == "stop"
    json.dumps(reply.response_metadata)
    ephemeral = model.invoke("I am Ada.").response_metadata["deltamem"]
    assert ephemeral["agent"] is None and ephemeral["snapshot"] is None


def test_usage_counts_what_was_read_outside_the_prompt() -> None:
    model = ChatDeltaMem(engine=ScriptedEngine("ok", window_tokens=300), max_tokens=20)
    history = [HumanMessage(f"This is fact number {n}, and some words.") for n in range(20)]
    usage = model.invoke(history, agent_id="ada").usage_metadata
    assert usage is not None
    absorbed = usage["input_token_details"]["absorbed"]  # type: ignore[typeddict-item]
    assert absorbed > 0 and usage["output_tokens"] == 2
    assert usage["input_tokens"] - absorbed <= 280 and usage["total_tokens"] == usage["input_tokens"] + 2


def test_a_stream_adds_up_to_the_reply_and_ends_once() -> None:
    for script in ("Hello, wide world.", brain):
        model = scripted(script).bind_tools([add])
        chunks = list(model.stream("add 3 please"))
        total, reply = whole(chunks), scripted(script).bind_tools([add]).invoke("add 3 please")
        assert total.content == reply.content and total.tool_calls == reply.tool_calls
        assert total.usage_metadata == reply.usage_metadata
        assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
        assert [chunk.chunk_position for chunk in chunks].count("last") == 1 and chunks[-1].chunk_position == "last"
        assert total.response_metadata["model_name"] == "scripted"


def test_marks_of_a_tool_call_never_show_as_text() -> None:
    message = Message("assistant", "Let me add.", (ToolCall("add", {"x": 1}), ToolCall("clock", {})))
    chunks = list(scripted(message).bind_tools([add, clock]).stream("go"))
    assert "".join(chunk.text for chunk in chunks) == "Let me add."
    calls = whole(chunks).tool_calls
    assert [(call["name"], call["args"]) for call in calls] == [("add", {"x": 1}), ("clock", {})]
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("choice", ["any", "required", True, "add", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_choice_calls_whatever_the_model_would_say(choice: Any) -> None:
    model = scripted("I would rather talk.").bind_tools([add], tool_choice=choice)
    for reply in (model.invoke("hi"), whole(model.stream("hi")), asyncio.run(model.ainvoke("hi"))):
        assert [call["name"] for call in reply.tool_calls] == ["add"] and isinstance(
            reply.tool_calls[0]["args"]["x"], int
        )
        assert reply.response_metadata["finish_reason"] == "tool_calls"


def test_auto_and_none_leave_the_model_its_word() -> None:
    talk = scripted("I would rather talk.")
    for choice in (None, False, "auto", "none"):
        assert talk.bind_tools([add], tool_choice=choice).invoke("hi").content == "I would rather talk."
    call = scripted(Message("assistant", "", (ToolCall("add", {"x": 1}),)))
    assert call.bind_tools([add], tool_choice="none").invoke("hi").tool_calls == []


def test_without_parallel_calls_there_is_one() -> None:
    both = scripted(Message("assistant", "", (ToolCall("add", {"x": 1}), ToolCall("clock", {}))))
    for choice, parallel, calls in (
        ("auto", None, 2),
        ("auto", True, 2),
        ("any", True, 2),
        ("any", None, 1),
        ("any", False, 1),
        ("add", True, 1),
    ):
        bound = both.bind_tools([add, clock], tool_choice=choice, parallel_tool_calls=parallel)
        assert len(bound.invoke("hi").tool_calls) == calls, (choice, parallel)


def test_a_tool_that_is_not_on_offer_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'fax'.*'add'"):
        scripted().bind_tools([add], tool_choice="fax")
    with pytest.raises(ConfigError, match="tool_choice"):
        scripted().bind_tools([add], tool_choice=3)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", [Joke, JokeDict, Joke.model_json_schema()])
def test_structured_output_fits_whatever_the_model_would_say(method: Any, schema: Any) -> None:
    chain = scripted("No jokes today.").with_structured_output(schema, method=method)
    for value in (chain.invoke("A joke!"), list(chain.stream("A joke!"))[-1], asyncio.run(chain.ainvoke("A joke!"))):
        found = value.model_dump() if isinstance(value, BaseModel) else value
        assert found.keys() == {"setup", "punchline"}
        assert isinstance(value, Joke) == (schema is Joke)


def test_json_mode_is_any_object() -> None:
    chain = scripted("No jokes today.").with_structured_output(None, method="json_mode")
    assert chain.invoke("A joke!") == {}
    raw = scripted().with_structured_output(Joke, method="json_mode", include_raw=True).invoke("A joke as JSON!")
    assert raw["parsed"].punchline == "They are engines." and raw["parsing_error"] is None
    failed = scripted("x").with_structured_output(Joke, method="json_mode", include_raw=True).invoke("A joke!")
    assert failed["parsed"] is None and failed["parsing_error"] is not None


def test_structured_output_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="method"):
        scripted().with_structured_output(Joke, method="xml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schema"):
        scripted().with_structured_output(None)
    with pytest.raises(ConfigError, match="response_format"):
        scripted().invoke("hi", response_format="yaml")


def test_sampling_fields_reach_the_model_from_both_places() -> None:
    model = scripted("one two three")
    assert model.invoke("hi", max_tokens=3).content == "one"
    assert scripted("one two three", max_tokens=3).invoke("hi").response_metadata["finish_reason"] == "length"
    assert scripted("one two three", stop=[" two"]).invoke("hi").content == "one"
    assert model.invoke("hi", stop=["three"]).content == "one two "
    for field, value in (("temperature", -1), ("top_p", 2), ("top_k", 0), ("min_p", 2), ("repetition_penalty", 0)):
        with pytest.raises(ValueError, match=field):
            scripted(**{field: value})
        with pytest.raises(ConfigError, match=field):
            model.invoke("hi", **{field: value})


def test_too_long_a_message_is_both_libraries_error() -> None:
    model = ChatDeltaMem(engine=ScriptedEngine("ok", window_tokens=100), max_tokens=20)
    for error in (ContextOverflowError, WindowError, DeltaMemError):
        with pytest.raises(error, match="window"):
            model.invoke("x" * 200)
    with pytest.raises(ContextOverflowError):
        list(model.stream("x" * 200))
    with pytest.raises(ContextOverflowError):
        asyncio.run(model.ainvoke("x" * 200))


def test_a_failing_store_fails_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted()
    assert model.engine is not None

    def full(*_: object, **__: object) -> str:
        raise StoreError("the disk is full")

    monkeypatch.setattr(model.engine.store, "save", full)
    with pytest.raises(StoreError, match="disk is full"):
        model.invoke("hi", agent_id="ada")


def test_an_abandoned_stream_is_not_remembered() -> None:
    model = scripted("a long reply to nobody")
    stream = model.stream("hi", agent_id="ada")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.engine is not None and model.engine.store.agents() == []


def test_models_of_one_name_share_the_engine_and_not_the_store(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'm.sqlite'}"
    first, second = ChatDeltaMem(model="scripted", store=url), ChatDeltaMem(model="scripted", store="memory:")
    first.invoke("hi", agent_id="ada")
    assert second._engine(None, "").store.agents() == []
    assert first._engine(None, "").model is second._engine(None, "").model
    with SQLiteStore(tmp_path / "m.sqlite") as store:
        assert store.agents() == ["ada"]


def test_it_is_written_down_and_read_back() -> None:
    model = ChatDeltaMem(model="scripted", store="memory:", agent_id="ada", temperature=0.5)
    text = json.dumps(dumpd(model))
    again = load(json.loads(text), allowed_objects=[ChatDeltaMem], valid_namespaces=["langchain_deltamem"])
    assert again.asdict() == model.asdict() and again.invoke("hi").content == "You said: hi"
    assert "engine" not in dumpd(scripted())["kwargs"]


def test_profile_and_tracing_parameters_are_true() -> None:
    model = scripted(temperature=0.5)
    assert model.profile is not None
    assert model.profile["tool_calling"] is True and model.profile["image_inputs"] is False
    assert model.profile["max_input_tokens"] == 16_384 - 500
    params = model._get_ls_params()
    assert (params["ls_provider"], params["ls_model_name"]) == ("deltamem", "scripted")
    assert params["ls_temperature"] == 0.5 and params["ls_max_tokens"] == 500
    assert model.get_num_tokens("four") == 4


def test_a_script_sees_the_tools_as_the_model_does() -> None:
    seen: list[Asked] = []

    def script(asked: Asked) -> str:
        seen.append(asked)
        return "ok"

    scripted(script).bind_tools([add]).invoke("hi")
    assert seen[0].tools[0].name == "add" and seen[0].tools[0].parameters["required"] == ["x"]
