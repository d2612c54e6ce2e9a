"""Laws of the LLM beyond the conformance suite: what a reply reports, and the options of a call."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from deltamem_agents import ConfigError, DeltaMemError, InMemoryStore, Message, StoreError, ToolCall, WindowError
from deltamem_agents.bridges import shared_engines
from deltamem_agents.testing import Asked, ScriptedEngine, oblige
from llama_index.llms.deltamem import DeltaMemLLM
from llama_index.llms.deltamem.conformance import STREAMS, WAYS, heard


def says(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def scripted(script: Any = oblige, **fields: Any) -> DeltaMemLLM:
    return DeltaMemLLM(engine=ScriptedEngine(script), **{"max_tokens": 500, **fields})


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


def add(x: int, y: int = 0) -> int:
    """Add two numbers."""
    return x + y


def clock() -> str:
    """Tell what time it is."""
    return "noon"


ADD, CLOCK = FunctionTool.from_defaults(add), FunctionTool.from_defaults(clock)
CALLS = Message("assistant", "", (ToolCall("add", {"x": 1}), ToolCall("clock", {})))
BOTH = Message("assistant", "Let me see.", CALLS.tool_calls)


@pytest.mark.parametrize("way", WAYS)
def test_a_reply_reports_what_the_memory_did(way: str) -> None:
    llm = scripted("Hello.")
    assert llm.engine is not None
    reply = heard(llm, "chat", way, [says("I am Ada.")], agent_id="ada")[-1]
    facts = reply.raw["deltamem"]
    assert facts["agent"] == "ada" and facts["snapshot"] == llm.engine.store.head("ada")
    assert facts["tokens_written"] == len("I am Ada.") + len("Hello.") and facts["state_bytes"] == 64
    assert reply.raw["model"] == "scripted" and reply.raw["finish_reason"] == "stop"
    json.dumps(reply.raw)
    # A chat store keeps every message, so measurements do not belong into the message.
    assert reply.message == ChatMessage(role=MessageRole.ASSISTANT, content="Hello.")


def test_usage_counts_what_was_read_outside_the_prompt() -> None:
    llm, counter = DeltaMemLLM(engine=ScriptedEngine("ok", window_tokens=300), max_tokens=20), TokenCountingHandler()
    llm.callback_manager = CallbackManager([counter])
    history = [says(f"This is fact number {n}, and some words.") for n in range(20)]
    usage = llm.chat(history, agent_id="ada").raw["usage"]
    absorbed = usage["prompt_tokens_details"]["absorbed_tokens"]
    assert absorbed > 0 and usage["prompt_tokens"] - absorbed <= 280
    assert usage["completion_tokens"] == 2 and usage["total_tokens"] == usage["prompt_tokens"] + 2
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] and counter.completion_llm_token_count == 2


@pytest.mark.parametrize("stream", STREAMS)
def test_calls_grow_while_they_are_streamed(stream: str) -> None:
    llm = scripted(Message("assistant", "", (ToolCall("Joke", {"setup": "Why?", "punchline": "Because."}),)))
    tool = FunctionTool.from_defaults(lambda setup, punchline: "", name="Joke", description="", fn_schema=Joke)
    replies = heard(llm, "chat_with_tools", stream, [tool], "A joke!")
    seen = [llm.get_tool_calls_from_response(reply, error_on_no_tool_call=False) for reply in replies]
    kwargs = [calls[0].tool_kwargs for calls in seen if calls]
    assert {"setup": "W"} in kwargs and {"setup": "Why?", "punchline": "Bec"} in kwargs
    assert kwargs[-1] == {"setup": "Why?", "punchline": "Because."}
    assert len({calls[0].tool_id for calls in seen if calls}) == 1
    assert all("tool_call" not in (reply.message.content or "") for reply in replies)
    # A response is not changed after it was yielded.
    blocks = [b for reply in replies for b in reply.message.blocks if isinstance(b, ToolCallBlock)]
    assert len({str(block.tool_kwargs) for block in blocks}) == len(blocks)


@pytest.mark.parametrize("way", WAYS)
def test_parallel_calls_are_allowed_on_request(way: str) -> None:
    for allowed, required, calls in ((True, True, 2), (True, False, 2), (False, True, 1)):
        llm = scripted(CALLS if required else BOTH)
        given = {"allow_parallel_tool_calls": allowed, "tool_required": required}
        reply = heard(llm, "chat_with_tools", way, [ADD, CLOCK], "go", **given)[-1]
        assert len(llm.get_tool_calls_from_response(reply)) == calls, given
        assert reply.message.content == (None if required else "Let me see.")


@pytest.mark.parametrize("choice", ["any", "required", True, "add", {"type": "function", "function": {"name": "add"}}])
def test_a_required_call_is_made_whatever_the_model_would_reply(choice: Any) -> None:
    for way in WAYS:
        llm = scripted("I would rather talk.")
        reply = heard(llm, "chat_with_tools", way, [ADD], "hi", tool_choice=choice)[-1]
        (call,) = llm.get_tool_calls_from_response(reply)
        assert call.tool_name == "add" and isinstance(call.tool_kwargs["x"], int)
        assert reply.raw["finish_reason"] == "tool_calls"


def test_auto_and_none_allow_a_reply_in_words() -> None:
    talk = scripted("I would rather talk.")
    for choice in (None, "auto", "none"):
        assert talk.chat_with_tools([ADD], "hi", tool_choice=choice).message.content == "I would rather talk."
    reply = scripted(BOTH).chat_with_tools([ADD], "hi", tool_choice="none", tool_required=True)
    assert talk.get_tool_calls_from_response(reply, error_on_no_tool_call=False) == []


def test_an_unknown_tool_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fax'.*'add'"):
        scripted().chat_with_tools([ADD], "hi", tool_choice="fax")


@pytest.mark.parametrize("way", WAYS)
def test_a_truncated_call_is_no_call(way: str) -> None:
    llm = scripted(Message("assistant", "", (ToolCall("add", {"x": 123456}),)), max_tokens=45)
    reply = heard(llm, "chat_with_tools", way, [ADD], "go")[-1]
    assert reply.raw["finish_reason"] == "length"
    with pytest.raises(ValueError, match=r"calls no tool.*raise max_tokens"):
        llm.get_tool_calls_from_response(reply)


@pytest.mark.parametrize("mode", [PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION])
@pytest.mark.parametrize("way", WAYS)
def test_objects_fit_whatever_the_model_would_reply(way: str, mode: PydanticProgramMode) -> None:
    llm = scripted("No jokes today.", pydantic_program_mode=mode)
    assert isinstance(heard(llm, "structured_predict", way, Joke, PromptTemplate("A joke!"))[-1], Joke)


@pytest.mark.parametrize("stream", STREAMS)
def test_objects_grow_while_they_are_streamed(stream: str) -> None:
    llm = scripted(Message("assistant", "", (ToolCall("Joke", {"setup": "Why?", "punchline": "Because."}),)))
    pieces = heard(llm, "structured_predict", stream, Joke, PromptTemplate("A joke!"))
    grown = [piece.model_dump(exclude_none=True) for piece in pieces]
    assert {"setup": "Wh"} in grown and grown[-1] == {"setup": "Why?", "punchline": "Because."}
    assert isinstance(pieces[-1], Joke)


def test_an_object_is_read_from_text_in_that_mode() -> None:
    llm = scripted('{"setup": "Why?", "punchline": "Because."}', pydantic_program_mode=PydanticProgramMode.LLM)
    assert llm.structured_predict(Joke, PromptTemplate("A joke!")).setup == "Why?"
    assert list(llm.stream_structured_predict(Joke, PromptTemplate("A joke!")))[-1].setup == "Why?"


def test_structured_llms_only_read() -> None:
    llm = scripted().for_agent("ada")
    assert llm.engine is not None
    llm.chat([says("I am Ada.")])
    before = llm.engine.store.head("ada")
    reply = llm.as_structured_llm(Joke).chat([says("A joke!")])
    assert isinstance(reply.raw, Joke) and llm.engine.store.head("ada") == before


def test_a_response_format_is_enforced() -> None:
    for given in (
        Joke.model_json_schema(),
        {"type": "json_schema", "json_schema": {"schema": Joke.model_json_schema()}},
    ):
        text = scripted("No jokes today.").chat([says("A joke!")], response_format=given).message.content
        assert json.loads(text or "").keys() == {"setup", "punchline"}
    with pytest.raises(ConfigError, match="response_format"):
        scripted().chat([says("hi")], response_format="yaml")


def test_sampling_fields_reach_the_model_from_both_places() -> None:
    llm = scripted("one two three")
    assert llm.chat([says("hi")], max_tokens=3).message.content == "one"
    assert llm.complete("hi", max_tokens=3).text == "one"
    assert scripted("one two three", max_tokens=3).chat([says("hi")]).raw["finish_reason"] == "length"
    assert scripted("one two three", stop=[" two"]).chat([says("hi")]).message.content == "one"
    assert llm.chat([says("hi")], stop=["three"]).message.content == "one two "
    for field, value in (("temperature", -1), ("top_p", 2), ("top_k", 0), ("min_p", 2), ("repetition_penalty", 0)):
        with pytest.raises(ValueError, match=field):
            scripted(**{field: value})
        with pytest.raises(ConfigError, match=field):
            llm.chat([says("hi")], **{field: value})


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_keyword_is_refused(way: str) -> None:
    with pytest.raises(ConfigError, match=r"'max_token'.*'max_tokens'"):
        heard(scripted(), "chat", way, [says("hi")], max_token=3)
    with pytest.raises(ValueError, match=r"'max_token'.*'max_tokens'"):
        scripted(max_token=3)
    assert heard(scripted(), "chat", way, [says("hi")], something=None)


@pytest.mark.parametrize("way", WAYS)
def test_errors_of_long_messages_and_failing_stores_reach_the_caller(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = DeltaMemLLM(engine=ScriptedEngine("ok", window_tokens=100), max_tokens=20).for_agent("ada")
    for error in (WindowError, DeltaMemError):
        with pytest.raises(error, match="window"):
            heard(llm, "chat", way, [says("x" * 200)])

    def full(*_: object, **__: object) -> str:
        raise StoreError("the disk is full")

    assert llm.engine is not None
    monkeypatch.setattr(llm.engine.store, "save", full)
    with pytest.raises(StoreError, match="disk is full"):
        heard(llm, "chat", way, [says("hi")])


def test_an_abandoned_stream_is_not_remembered() -> None:
    llm = scripted("a long reply to nobody").for_agent("ada")
    stream = llm.stream_chat([says("hi")])
    next(stream)
    stream.close()

    async def leave() -> None:
        async with aclosing(await llm.astream_chat([says("hi")])) as replies:
            await anext(replies)

    asyncio.run(leave())
    assert llm.engine is not None and llm.engine.store.agents() == []


async def test_nothing_blocks_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, ticks = threading.Event(), 0

    def slow(asked: Asked) -> str:
        assert gate.wait(30), "the event loop was blocked"
        return "done"

    def slowly_opened(spec: object) -> ScriptedEngine:
        assert gate.wait(30), "the event loop was blocked"
        return ScriptedEngine(slow)

    async def ticking() -> None:
        nonlocal ticks
        for _ in range(5):
            ticks += 1
            await asyncio.sleep(0.001)
        gate.set()

    async def streamed(llm: DeltaMemLLM) -> str:
        return [piece.message.content async for piece in await llm.astream_chat([says("hi")])][-1]

    async def at_once(llm: DeltaMemLLM) -> str:
        return (await llm.achat([says("hi")])).message.content or ""

    monkeypatch.setattr(shared_engines, "_open", slowly_opened)
    for ask in (streamed, at_once):
        for llm in (scripted(slow), DeltaMemLLM(model=f"slow {ask.__name__}", store="memory:")):
            gate.clear()
            ticks = 0
            answer, _ = await asyncio.gather(ask(llm), ticking())
            assert (answer, ticks) == ("done", 5)


def test_it_is_serialised_without_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    llm = scripted(store=path, temperature=0.5, stop=["x"]).for_agent("ada", thread="t")
    written = llm.to_dict()
    assert "engine" not in written and written["model"] == "scripted" and written["agent_id"] == "ada"
    assert written["store"] == str(path) and not path.exists()
    again = DeltaMemLLM.from_json(llm.to_json())
    assert again.engine is None and again.to_dict() == written
    assert DeltaMemLLM.from_dict(written, engine=llm.engine).engine is llm.engine


def test_copies_share_the_engine_and_pickles_keep_the_named_store(tmp_path: Path) -> None:
    llm = DeltaMemLLM(model="scripted", store=tmp_path / "m.sqlite", agent_id="ada")
    llm.chat([says("hi")])
    again = pickle.loads(pickle.dumps(llm))
    assert again.to_dict() == llm.to_dict()
    again.chat([says("hello")])
    store = llm.open_engine("ada").store
    assert store.load("ada").snapshot.counters.turns == 2
    for each in (copy.deepcopy(llm), copy.copy(llm)):
        assert each.open_engine("ada").store is store


def test_a_call_without_a_memory_needs_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DELTAMEM_HOME", str(tmp_path / "file" / "below"))
    llm = DeltaMemLLM(model="scripted")
    assert llm.chat([says("hi")]).message.content == llm.complete("hi").text == "You said: hi"
    assert llm.chat([says("hi")], agent_id="ada", memory="off").message.content == "You said: hi"
    with pytest.raises(StoreError, match=r"below.* store=, .*DELTAMEM_HOME"):
        llm.chat([says("hi")], agent_id="ada")


@pytest.mark.parametrize("given", ["engine", "store"])
def test_an_open_store_is_never_replaced_by_the_default_file(given: str) -> None:
    store = InMemoryStore()
    llm = scripted() if given == "engine" else DeltaMemLLM(model="scripted", store=store)
    assert copy.deepcopy(llm).open_engine("ada").store is llm.open_engine("ada").store
    with pytest.raises(ConfigError, match="pickled"):
        pickle.dumps(llm)
    for written in (llm.to_dict(), json.loads(llm.to_json()), llm.model_dump(), json.loads(llm.model_dump_json())):
        with pytest.raises(ValueError, match="an open store cannot be; give store= or engine= again"):
            DeltaMemLLM.from_dict(written)
        again = DeltaMemLLM.from_dict({**written, given: getattr(llm, given)})
        assert again.open_engine("ada").store is llm.open_engine("ada").store


def test_the_metadata_is_true() -> None:
    metadata = scripted().metadata
    assert (metadata.context_window, metadata.num_output, metadata.model_name) == (16_384, 500, "scripted")
    by_name = DeltaMemLLM(model="never opened", window_tokens=1000)
    assert by_name.metadata.context_window == 1000 and by_name.metadata.model_name == "never opened"
    assert DeltaMemLLM(model="never opened").metadata.context_window == 4096


def test_a_script_sees_the_tools_as_the_model_does() -> None:
    seen: list[Asked] = []

    def script(asked: Asked) -> str:
        seen.append(asked)
        return "ok"

    scripted(script).chat_with_tools([ADD], "hi", chat_history=[says("before")])
    assert [message.content for message in seen[0].messages] == ["before", "hi"]
    assert seen[0].tools[0].name == "add" and seen[0].tools[0].parameters["required"] == ["x"]
