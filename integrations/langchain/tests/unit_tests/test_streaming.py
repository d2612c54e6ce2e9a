"""Streams: chunks, events, tool calls while they are said, and streams that nobody hears to their end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from brain import brain
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from scripted_chat import add, clock, scripted, store, whole

from deltamem_agents import Message, ToolCall
from deltamem_agents.chat.tool_calls import format_tool_calls
from deltamem_agents.testing import Asked
from langchain_deltamem import ChatDeltaMem

BIG = Message("assistant", "Let me add.", (ToolCall("add", {"x": 12345}), ToolCall("clock", {})))

# Version 3 of the event stream is a beta, and tested on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


def calls_of(message: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("script", ["Hello, wide world.", brain, BIG])
def test_a_stream_adds_up_to_the_reply_and_ends_once(script: Any) -> None:
    chunks = list(scripted(script).bind_tools([add, clock]).stream("add 3 please"))
    total, reply = whole(chunks), scripted(script).bind_tools([add, clock]).invoke("add 3 please")
    assert total.content == reply.content and total.tool_calls == reply.tool_calls
    assert total.usage_metadata == reply.usage_metadata
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert [chunk.chunk_position for chunk in chunks].count("last") == 1 and chunks[-1].chunk_position == "last"
    assert total.response_metadata["model_name"] == "scripted"


@pytest.mark.slow
def test_text_and_calls_arrive_while_they_are_said() -> None:
    model = scripted(BIG).bind_tools([add, clock])
    chunks = list(model.stream("go"))
    pieces = [chunk.tool_call_chunks[0] for chunk in chunks if chunk.tool_call_chunks]
    assert "".join(chunk.text for chunk in chunks) == "Let me add."
    assert [piece["name"] for piece in pieces if piece["name"]] == ["add", "clock"]
    assert len([piece for piece in pieces if piece["index"] == 0]) > 5
    assert calls_of(whole(chunks)) == [("add", {"x": 12345}), ("clock", {})]
    assert len({call["id"] for call in whole(chunks).tool_calls}) == 2

    async def collect() -> list[AIMessageChunk]:
        return [chunk async for chunk in model.astream("go")]

    assert calls_of(whole(asyncio.run(collect()))) == calls_of(whole(chunks))


@tool
def note(lines: list[str], at: int = 0) -> str:
    """Keep some lines."""
    return "kept"


@pytest.mark.slow
def test_a_call_that_was_cut_off_is_never_one_to_run() -> None:
    said = Message("assistant", "", (ToolCall("note", {"lines": ["a [", 'b "\\'], "at": 123}),))
    model = scripted(said).bind_tools([note])
    spelled = format_tool_calls(said.tool_calls)
    end = spelled.index("123}") + 2
    for length in range(len("<tool_call>"), end):
        cut = model.bind(max_tokens=length)
        for reply in (whole(cut.stream("go")), *([] if length % 5 else [cut.invoke("go")])):
            assert reply.content == "" and reply.tool_calls == [] and len(reply.invalid_tool_calls) == 1
            assert reply.response_metadata["finish_reason"] == "length"
    found = model.invoke("go", max_tokens=end).invalid_tool_calls[0]
    assert found["name"] == "note" and str(found["args"]).endswith('"at": 12') and "max_tokens" in str(found["error"])


def test_events_of_version_2_carry_chunks_and_the_reply() -> None:
    async def collect(model: Any) -> list[Any]:
        return [event async for event in model.astream_events("go", version="v2")]

    events = asyncio.run(collect(scripted(BIG).bind_tools([add, clock])))
    assert [events[0]["event"], events[-1]["event"]] == ["on_chat_model_start", "on_chat_model_end"]
    total = whole(event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream")
    reply = events[-1]["data"]["output"]
    assert calls_of(total) == calls_of(reply) == [("add", {"x": 12345}), ("clock", {})]
    assert total.content == reply.content == "Let me add." and total.usage_metadata == reply.usage_metadata


def test_events_of_version_3_carry_blocks_and_the_reply() -> None:
    model = scripted(BIG, agent_id="ada").bind_tools([add, clock])
    events = list(model.stream_events("go", version="v3"))  # type: ignore[attr-defined]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("message-start", "message-finish")
    stream = model.stream_events("go", version="v3")  # type: ignore[attr-defined]
    assert "".join(stream.text) == "Let me add."

    async def last() -> Any:
        return await (await model.astream_events("go", version="v3"))  # type: ignore[attr-defined]

    for reply in (stream.output, asyncio.run(last())):
        assert reply.text == "Let me add." and calls_of(reply) == [("add", {"x": 12345}), ("clock", {})]
        assert reply.usage_metadata["output_tokens"] > 0
        assert reply.response_metadata["deltamem"]["agent"] == "ada"


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_content_has_the_form_that_was_asked_for(version: str) -> None:
    model = scripted(BIG, output_version=version).bind_tools([add, clock])
    for reply in (model.invoke("go"), whole(model.stream("go"))):
        assert isinstance(reply.content, list) == (version == "v1")
        assert reply.text == "Let me add." and calls_of(reply) == [("add", {"x": 12345}), ("clock", {})]


def test_an_abandoned_stream_is_not_remembered() -> None:
    model = scripted("a long reply to nobody", agent_id="ada")
    stream = model.stream("hi")
    next(stream)
    stream.close()  # type: ignore[attr-defined]

    async def listen_briefly() -> None:
        heard = model.astream("hi")
        await anext(heard)
        await heard.aclose()  # type: ignore[attr-defined]

    asyncio.run(listen_briefly())
    assert store(model).agents() == []


def _slow(asked: Asked) -> str:
    time.sleep(0.2)
    return "ok"


def test_a_cancelled_call_is_not_remembered_and_the_next_one_is() -> None:
    model: ChatDeltaMem = scripted(_slow, agent_id="ada")

    async def cancel_then_call() -> None:
        task = asyncio.create_task(model.ainvoke("forget this"))
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.ainvoke("and this"), 0.05)
        assert store(model).agents() == []
        await model.ainvoke("keep this")

    asyncio.run(cancel_then_call())
    assert store(model).load("ada").snapshot.absorbed.count == 2
