"""Laws of tool calls as text: a round trip is exact, and a stream never shows part of a call."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from call_texts import CALLS, PROSE
from deltamem_agents.chat.tool_calls import distinct_calls, format_tool_calls, parse_tool_calls, reply_so_far
from deltamem_agents.errors import MessageError
from deltamem_agents.types import ToolCall


def named(calls):
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.slow
@given(CALLS)
@settings(max_examples=200, deadline=None)
def test_formatted_calls_parse_back_to_the_same_calls(calls):
    parsed = parse_tool_calls(format_tool_calls(calls))
    assert named(parsed.calls) == named(calls)
    assert parsed.text == ""


@pytest.mark.slow
@given(CALLS, st.text(alphabet="ab \n.", max_size=12))
@settings(max_examples=100, deadline=None)
def test_text_before_calls_is_kept(calls, prose):
    parsed = parse_tool_calls(prose + "\n" + format_tool_calls(calls))
    assert parsed.text == prose.rstrip()
    assert named(parsed.calls) == named(calls)


@pytest.mark.slow
@given(PROSE)
@settings(max_examples=500, deadline=None)
def test_a_stream_shows_only_beginnings_of_the_final_text(whole):
    final = parse_tool_calls(whole).text
    shown = ""
    for length in range(len(whole) + 1):
        plain = reply_so_far(whole[:length]).text
        assert plain.startswith(shown), "shown text was taken back"
        assert final.startswith(plain)
        shown = plain


@pytest.mark.slow
@given(CALLS, st.sampled_from(["", "Let me look.\n", "I think so: "]))
@settings(max_examples=100, deadline=None)
def test_no_part_of_a_call_is_ever_shown(calls, prose):
    whole = prose + format_tool_calls(calls)
    for length in range(len(whole) + 1):
        assert prose.startswith(reply_so_far(whole[:length]).text)


@given(PROSE)
@settings(max_examples=200, deadline=None)
def test_a_reply_without_calls_is_left_as_it_was(text):
    parsed = parse_tool_calls(text)
    assert parsed.calls or parsed.text == text


def test_a_stream_is_not_held_back_longer_than_needed():
    assert reply_so_far("Use the <tool").text == "Use the"
    assert reply_so_far("Use the <tool> here").text == "Use the <tool> here"
    assert reply_so_far("The <tool_call> mark is").text == "The <tool_call> mark is"
    assert reply_so_far("[1] says so").text == "[1] says so"
    assert reply_so_far('{"name": "Ada"} is JSON').text == '{"name": "Ada"} is JSON'
    assert reply_so_far('{"name": "Ada", "argum').text == ""


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1}}',
        '<tool_call>{"name": "f", "arguments": {"x": 1}}\n</tool_c',
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        '<tool_call>[{"name": "f", "parameters": {"x": 1}}]</tool_call>',
        '{"name": "f", "parameters": {"x": 1}}',
        ' [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]\n',
        '<|python_tag|>{"name": "f", "parameters": {"x": 1}}',
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "abc"}]',
    ],
)
def test_known_spellings_of_one_call_mean_the_same(text):
    parsed = parse_tool_calls(text, names=["f"])
    assert named(parsed.calls) == [("f", {"x": 1})]
    assert parsed.text == ""


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"x": 1',
        '<tool_call>{"arguments": {"x": 1}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        "The marks are <tool_call> and </tool_call>.",
        '{"name": "Ada Lovelace", "born": 1815}',
        'As JSON: {"name": "f", "arguments": {}}',
        '{"name": "f", "arguments": {}} is how it is called',
        "[]",
        "{}",
        "<tool_call>" + "[" * 5000,
    ],
)
def test_text_that_only_looks_like_a_call_stays_text(text):
    parsed = parse_tool_calls(text)
    assert parsed.calls == ()
    assert parsed.text == text


def test_bare_json_is_a_call_only_for_a_tool_on_offer():
    text = '{"name": "Ada", "parameters": {}}'
    assert parse_tool_calls(text, names=["f"]).text == text
    assert named(parse_tool_calls(text, names=["Ada"]).calls) == [("Ada", {})]


def test_a_marked_call_of_an_unknown_tool_is_still_a_call():
    parsed = parse_tool_calls('<tool_call>{"name": "g", "arguments": {}}</tool_call>', names=["f"])
    assert named(parsed.calls) == [("g", {})]


def test_text_around_and_between_calls_is_kept_in_order():
    call = format_tool_calls([ToolCall("f", {})])
    parsed = parse_tool_calls(f"  First\n{call}\nthen\n{call} done.\n")
    assert parsed.text == "  First\nthen\ndone."
    assert len(parsed.calls) == 2


def test_a_broken_block_does_not_hide_a_valid_one_after_it():
    good = format_tool_calls([ToolCall("f", {"x": 1})])
    parsed = parse_tool_calls(f"<tool_call>{{broken\n{good}")
    assert named(parsed.calls) == [("f", {"x": 1})]
    assert parsed.text == "<tool_call>{broken"


def test_ids_are_repeatable_and_differ_between_calls_and_between_turns():
    text = format_tool_calls([ToolCall("f", {"x": 1}), ToolCall("f", {"x": 1})])
    first, again, later = (parse_tool_calls(text, salt=salt) for salt in ("turn 1", "turn 1", "turn 2"))
    ids = [call.id for call in first.calls + later.calls]
    assert first == again
    assert len(set(ids)) == 4
    assert all(len(made) == 9 and made.isalnum() for made in ids)


def test_arguments_that_are_not_json_are_refused_by_name():
    with pytest.raises(MessageError, match=r"'f' are not JSON.*set.*pass only"):
        format_tool_calls([ToolCall("f", {"x": {1}})])


def test_arguments_may_be_any_mapping():
    from types import MappingProxyType

    text = format_tool_calls([ToolCall("f", MappingProxyType({"x": MappingProxyType({"y": 1})}))])
    assert json.loads(text.splitlines()[1]) == {"name": "f", "arguments": {"x": {"y": 1}}}


def test_a_repeated_call_counts_once() -> None:
    f, g, again = ToolCall("f", {"x": 1, "y": 2}, "1"), ToolCall("g", {}, "2"), ToolCall("f", {"y": 2, "x": 1}, "3")
    assert distinct_calls([f, g, again]) == (f, g)
    assert distinct_calls([f, ToolCall("f", {"x": 2}, "4")]) == (f, ToolCall("f", {"x": 2}, "4"))
