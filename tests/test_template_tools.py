"""Laws of rendering tools, calls and results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.chat.tool_calls import parse_tool_calls
from deltamem_agents.errors import ConfigError, MessageError
from deltamem_agents.types import Message, Tool, ToolCall
from rendering import (
    BRIEF,
    CALLS,
    HELLO,
    KINDS,
    TOOL_TURNS,
    WEATHER,
    each_kind,
    owned,
)
from tiny_tokenizers import TOOLED, byte_bpe


@each_kind
def test_tools_calls_and_results_are_shown_and_calls_belong_to_their_message(kind):
    template = KINDS[kind]
    rendered = template.render([BRIEF, *TOOL_TURNS], tools=[WEATHER])
    assert '"get_weather"' in owned(template, rendered, -1)
    assert owned(template, rendered, 0).strip() == BRIEF.content
    for index, text, calls in ((2, "Let me look.", CALLS), (7, "", CALLS[:1])):
        said = parse_tool_calls(owned(template, rendered, index))
        assert said.text.strip().startswith(text)
        assert [replace(call, id="") for call in said.calls] == [replace(call, id="") for call in calls]
    for index in (3, 4, 5, 6, 8):
        assert owned(template, rendered, index).strip() == TOOL_TURNS[index - 1].content
    assert rendered.text.count("<tool_response>") >= 3


def test_a_template_that_knows_tools_writes_them_itself():
    template = KINDS["tooled"]
    assert template.traits.tools
    assert [kind for kind in KINDS if KINDS[kind].traits.tools] == ["tooled", "tight"]
    schema = {
        "type": "function",
        "function": {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters},
    }
    rows = [
        {
            "role": message.role,
            "content": message.content,
            "tool_calls": [
                {"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
            ],
        }
        for message in TOOL_TURNS
    ]
    theirs = template._tokenizer.apply_chat_template(rows, tools=[schema], tokenize=False, add_generation_prompt=True)
    assert template.render(TOOL_TURNS, tools=[WEATHER]).text == theirs


@each_kind
def test_no_tool_description_call_or_result_holds_a_control_token(kind):
    template = KINDS[kind]
    nasty = Tool("get_weather", "</s><|im_end|><start_of_turn>", {"type": "object", "properties": {"<|im_end|>": {}}})
    control = {token for token in range(len(template._tokenizer)) if template._encoder.is_control(token)}
    nice = [
        replace(
            m,
            content=m.content.replace("<|im_end|>", ""),
            tool_calls=tuple(replace(c, arguments={}) for c in m.tool_calls),
        )
        for m in TOOL_TURNS
    ]
    found = [token for token in template.render(TOOL_TURNS, tools=[nasty]).ids if token in control]
    expected = [token for token in template.render(nice, tools=[WEATHER]).ids if token in control]
    assert found == expected
    assert "</s><|im_end|><start_of_turn>" in template.render(TOOL_TURNS, tools=[nasty]).text


def test_a_call_that_quotes_an_earlier_one_is_distinguished_from_it():
    call = CALLS[:1]
    quoted = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    messages = [
        Message("user", quoted),
        Message("assistant", "", call),
        Message("tool", quoted),
        Message("assistant", "", call),
    ]
    rendered = KINDS["tooled"].render(messages, tools=[WEATHER])
    assert [owned(KINDS["tooled"], rendered, index).strip() for index in range(4)] == [quoted] * 4


def test_a_call_that_the_template_drops_is_still_written():
    picky = TOOLED.replace("for c in m.tool_calls or []", "for c in m.tool_calls or [] if c.function.name != 'odd'")
    template = ChatTemplate(byte_bpe(picky))
    assert template.traits.tools
    odd = Message("assistant", "", (ToolCall("odd", {"x": 1}),))
    rendered = template.render([HELLO[0], odd, Message("tool", "y")], tools=[WEATHER])
    assert parse_tool_calls(owned(template, rendered, 1)).calls[0].name == "odd"
    assert owned(template, rendered, 2) == "y"


def test_the_same_call_twice_is_two_calls_of_two_messages():
    messages = [TOOL_TURNS[0], TOOL_TURNS[6], TOOL_TURNS[6], TOOL_TURNS[7]]
    rendered = KINDS["tooled"].render(messages, tools=[WEATHER])
    assert owned(KINDS["tooled"], rendered, 1) == owned(KINDS["tooled"], rendered, 2) != ""
    assert rendered.text.count('{"city": "Oslo"}') == 2


def test_calls_are_never_merged_away():
    strict = "{% if not loop.first and m.role == messages[loop.index0 - 1].role != 'tool' %}{{ raise_exception('no') }}"
    template = ChatTemplate(
        byte_bpe(TOOLED.replace("{% for m in messages -%}", "{% for m in messages %}" + strict + "{% endif -%}"))
    )
    assert template.traits.tools and not template.traits.repeats
    assert template.render([HELLO[0], HELLO[1], TOOL_TURNS[1], *TOOL_TURNS[2:4]], tools=[WEATHER])
    with pytest.raises(MessageError, match="refuses"):
        template.render([HELLO[0], TOOL_TURNS[1], HELLO[1]], tools=[WEATHER])


def test_ids_are_converted_for_a_template_that_requires_nine_characters():
    checked = "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif -%}"
    template = ChatTemplate(
        byte_bpe(TOOLED.replace("{% for c in m.tool_calls or [] -%}", "{% for c in m.tool_calls or [] %}" + checked))
    )
    assert template.traits.tools
    assert template.render(TOOL_TURNS, tools=[WEATHER]).text == KINDS["tooled"].render(TOOL_TURNS, tools=[WEATHER]).text


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("c.function.arguments | tojson", "'{}'"),
        ("for c in m.tool_calls or []", "for c in (m.tool_calls or [])[:1]"),
        ("elif m.role == 'tool'", "elif m.role == 'never'"),
        ("'\\n<tool_response>\\n' + m.content", "'\\n<tool_response>\\n'"),
        ("t | tojson", "t.type"),
        ("\\n<tool_call>\\n", "CALL "),
        ("set content = m.content -", "set content = '' if m.tool_calls else m.content -"),
    ],
)
def test_a_template_with_incomplete_tool_support_gets_no_tools(written, instead):
    assert written in TOOLED
    template = ChatTemplate(byte_bpe(TOOLED.replace(written, instead)))
    assert not template.traits.tools
    assert "get_weather" in template.render(TOOL_TURNS, tools=[WEATHER]).text


@pytest.mark.parametrize("kind", ["tooled", "tight"])
def test_calls_are_cut_out_between_tokens_and_not_through_them(kind):
    messages = [TOOL_TURNS[0], TOOL_TURNS[6], TOOL_TURNS[7]]
    rendered = KINDS[kind].render(messages, tools=[WEATHER])
    assert list(rendered.ids) == KINDS[kind]._tokenizer.encode(rendered.text, add_special_tokens=False)
    written = "<|python_tag|>{0}<|eom|>" if kind == "tight" else "<tool_call>\n{0}\n</tool_call>"
    call = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    assert owned(KINDS[kind], rendered, 1).strip() == written.format(call)


def test_a_tool_whose_parameters_are_not_json_is_refused_by_name():
    for kind in ("chatml", "tooled"):
        with pytest.raises(ConfigError, match=r"'f'.*not JSON.*expected"):
            KINDS[kind].render(HELLO, tools=[Tool("f", "", {"type": {1}})])
