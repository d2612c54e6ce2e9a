"""Laws of a streamed reply: pieces are never taken back and add up to the reply."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from call_texts import CALLS, PROSE
from deltamem_agents.chat.reply_stream import ReplyStream, reply_message
from deltamem_agents.chat.tool_calls import format_tool_calls
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.types import CallChunk, Message, Sampling, Tool, ToolCall, Turn, TurnChunk

ADD, CLOCK = Tool("add", parameters={"type": "object", "properties": {"x": {"type": "integer"}}}), Tool("clock")
ASKED = [{"role": "user", "content": "What is it?"}]
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=9)


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    """The text in pieces of these sizes, repeated."""
    pieces: list[str] = []
    while text:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def shown(text: str, sizes: Sequence[int], *, held: bool) -> tuple[list[TurnChunk], Message, CallChunk | None]:
    """All chunks of a reply that arrives in these pieces, and the reply."""
    stream = ReplyStream(calls=True, held=held, salt="turn")
    chunks = [chunk for piece in cut(text, sizes) for chunk in stream.push(piece)]
    message, unfinished = reply_message(text, ["f"], "turn", held=held)
    return [*chunks, *stream.finish(message.content, message.tool_calls, unfinished)], message, unfinished


def joined(chunks: Iterable[TurnChunk]) -> list[CallChunk]:
    """The calls of a stream, each in one piece. Their pieces come in order, the first one with name and id."""
    calls: list[CallChunk] = []
    for chunk in (chunk.call for chunk in chunks if chunk.call is not None):
        if chunk.index == len(calls):
            calls.append(chunk)
        else:
            assert chunk.index == len(calls) - 1 and not chunk.name and not chunk.id
            calls[-1] = CallChunk(chunk.index, calls[-1].name, calls[-1].id, calls[-1].arguments + chunk.arguments)
    return calls


def adds_up(chunks: Sequence[TurnChunk], message: Message, unfinished: CallChunk | None) -> bool:
    calls = joined(chunks)
    assert "".join(chunk.text for chunk in chunks) == message.content
    assert ([] if unfinished is None else [unfinished]) == calls[len(message.tool_calls) :]
    whole = [ToolCall(call.name, json.loads(call.arguments), call.id) for call in calls[: len(message.tool_calls)]]
    return whole == list(message.tool_calls)


@given(PROSE, SIZES)
def test_the_streamed_parts_of_any_reply_add_up_to_it(text: str, sizes: list[int]) -> None:
    assert adds_up(*shown(text, sizes, held=False))


@given(st.sampled_from(["", "Let me see.\n", "  {no}: "]), CALLS, SIZES, st.booleans(), st.data())
def test_a_reply_that_is_cut_off_anywhere_adds_up(
    prose: str, calls: list[ToolCall], sizes: list[int], held: bool, data: st.DataObject
) -> None:
    whole = prose + format_tool_calls(calls)
    text = whole[: data.draw(st.integers(0, len(whole)))]
    chunks, message, unfinished = shown(text, sizes, held=held)
    assert adds_up(chunks, message, unfinished)
    if held:
        assert "<tool_call>" not in message.content or "<tool_call>" in prose
        assert list(message.tool_calls) == [
            ToolCall(call.name, call.arguments, found.id)
            for call, found in zip(distinct(calls), message.tool_calls, strict=False)
        ]


def distinct(calls: Iterable[ToolCall]) -> list[ToolCall]:
    kept: list[ToolCall] = []
    for call in calls:
        if (call.name, call.arguments) not in [(other.name, other.arguments) for other in kept]:
            kept.append(call)
    return kept


def test_an_enforced_call_is_streamed_while_it_is_decoded() -> None:
    text = format_tool_calls([ToolCall("f", {"x": "long enough"}), ToolCall("g", {})])
    stream = ReplyStream(calls=True, held=True, salt="turn")
    seen: list[CallChunk] = []
    for letter in text[: text.index("enough")]:
        seen += [chunk.call for chunk in stream.push(letter) if chunk.call is not None]
    assert (seen[0].name, seen[0].arguments) == ("f", "") and len(seen[0].id) == 9
    assert "".join(chunk.arguments for chunk in seen) == '{"x": "long '


def test_a_call_without_a_grammar_is_shown_when_it_is_complete() -> None:
    text = format_tool_calls([ToolCall("f", {"x": 1}), ToolCall("g", {})])
    stream = ReplyStream(calls=True, held=False, salt="turn")
    at = text.index("</tool_call>") + len("</tool_call>")
    assert not [chunk for chunk in stream.push(text[: at - 1]) if chunk.call]
    assert [chunk.call.name for chunk in stream.push(text[at - 1 : at]) if chunk.call] == ["f"]


@pytest.mark.parametrize("held", [True, False])
def test_a_repeated_call_is_shown_once(held: bool) -> None:
    f, other = ToolCall("f", {"x": 1, "y": 2}), ToolCall("f", {"x": 2})
    text = format_tool_calls([f, ToolCall("f", {"y": 2, "x": 1}), other])
    chunks, message, unfinished = shown(text, [1], held=held)
    assert adds_up(chunks, message, unfinished)
    assert [call.arguments for call in joined(chunks)] == ['{"x": 1, "y": 2}', '{"x": 2}']


def test_a_call_without_its_closing_marks_is_a_call() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"x": 1}'
    chunks, message, unfinished = shown(text, [3], held=True)
    assert adds_up(chunks, message, unfinished) and unfinished is None
    assert message.tool_calls[0].arguments == {"x": 1} and message.content == ""


def stream(engine: ScriptedEngine, **options: object) -> tuple[list[TurnChunk], Turn]:
    *chunks, last = engine.stream_turn("ada", ASKED, tools=[ADD, CLOCK], **options)  # type: ignore[arg-type]
    assert last.turn is not None
    return chunks, last.turn


@pytest.mark.parametrize("choice", ["auto", "any", "add"])
def test_a_streamed_turn_adds_up_to_the_turn(choice: str) -> None:
    pytest.importorskip("llguidance")
    engine = ScriptedEngine(Message("assistant", "", (ToolCall("add", {"x": 12345}),)))
    chunks, turn = stream(engine, tool_choice=choice)
    assert adds_up(chunks, turn.message, turn.cut_call) and turn.tool_calls[0].arguments == {"x": 12345}
    assert len([chunk for chunk in chunks if chunk.call]) > 5
    assert engine.store.load("ada").snapshot.absorbed.count == 2


def test_a_truncated_call_is_neither_a_call_nor_text() -> None:
    pytest.importorskip("llguidance")
    said = Message("assistant", "Well.", (ToolCall("clock", {}), ToolCall("add", {"x": 12345})))
    spelled = "Well.\n" + format_tool_calls(said.tool_calls)
    room = spelled.index("345")
    chunks, turn = stream(ScriptedEngine(said), sampling=Sampling(max_tokens=room))
    assert (turn.text, [call.name for call in turn.tool_calls]) == ("Well.", ["clock"])
    assert turn.cut_call is not None and turn.finish_reason == "length"
    assert (turn.cut_call.index, turn.cut_call.name, turn.cut_call.arguments) == (1, "add", '{"x": 12')
    assert adds_up(chunks, turn.message, turn.cut_call)


@pytest.mark.slow
def test_a_stop_string_ends_text_and_not_a_call() -> None:
    pytest.importorskip("llguidance")
    said = Message("assistant", "Well, yes.", (ToolCall("add", {"x": 1}),))
    for stop in ("\n{", '"add"', "}"):
        _, turn = stream(ScriptedEngine(said), sampling=Sampling(stop=(stop,)))
        assert [call.name for call in turn.tool_calls] == ["add"] and turn.finish_reason == "tool_calls"
    _, turn = stream(ScriptedEngine(said), sampling=Sampling(stop=(", yes",)))
    assert (turn.text, turn.tool_calls, turn.finish_reason) == ("Well", (), "stop")


def test_a_stream_closed_in_the_middle_of_a_call_changes_nothing() -> None:
    pytest.importorskip("llguidance")
    engine = ScriptedEngine(Message("assistant", "", (ToolCall("add", {"x": 12345}),)))
    chunks = engine.stream_turn("ada", ASKED, tools=[ADD])
    while next(chunks).call is None:
        pass
    chunks.close()
    assert engine.store.agents() == []
