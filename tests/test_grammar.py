"""Laws of grammars: allowed replies parse, invalid ones are refused, and a reply can always be finished."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llguidance")

from deltamem_agents.chat import grammar as grammars
from deltamem_agents.chat.grammar import MOST_CALLS, Grammar, Matcher, Vocabulary, reply_grammar
from deltamem_agents.chat.tool_calls import format_tool_calls, parse_tool_calls
from deltamem_agents.errors import ConfigError, GrammarError
from deltamem_agents.types import Sampling, Tool, ToolCall
from tiny_engine import byte_tokenizer, tiny_engine

END = 257
TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER.backend_tokenizer.to_str(), 300, {END})

WEATHER = Tool(
    "get_weather",
    "The weather somewhere.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "kelvin"]},
            "days": {"type": "integer"},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock")
TOOLS = (WEATHER, CLOCK)
CALL = ToolCall("get_weather", {"city": "São Paulo", "unit": "kelvin"})


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def accepts(grammar: Grammar | None, text: str) -> bool:
    assert grammar is not None
    return VOCABULARY.matcher(grammar).accepts(ids(text))


def wander(matcher: Matcher, seed: int, tokens: int) -> str:
    """A reply sampled at random from the allowed tokens, as an untrained model would produce it."""
    draw, said = random.Random(seed), list[int]()
    for _ in range(tokens):
        token = draw.choice(np.flatnonzero(matcher.allowed()).tolist())
        matcher.accept(token)
        if token == END:
            break
        said.append(token)
        if matcher.finished:
            break
    return str(TOKENIZER.decode(said))


def test_the_grammar_accepts_what_the_formatter_writes() -> None:
    one, two = format_tool_calls([CALL]), format_tool_calls([CALL, ToolCall("clock", {})])
    for choice in ("auto", "any"):
        assert accepts(reply_grammar(TOOLS, choice), one) and accepts(reply_grammar(TOOLS, choice), two)
        assert not accepts(reply_grammar(TOOLS, choice, parallel=False), two)
    named = reply_grammar(TOOLS, "get_weather")
    assert accepts(named, one) and not accepts(named, two)
    assert not accepts(reply_grammar(TOOLS, "clock"), one)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"city": 3, "unit": "kelvin"},
        {"city": "Oslo", "unit": "rankine"},
        {"city": "Oslo", "unit": "kelvin", "x": 1},
    ],
)
def test_arguments_outside_the_schema_are_refused(arguments: dict[str, Any]) -> None:
    for choice in ("auto", "any", "get_weather"):
        assert not accepts(reply_grammar(TOOLS, choice), format_tool_calls([ToolCall("get_weather", arguments)]))


def test_auto_allows_any_text_and_finishes_an_opened_call() -> None:
    auto = reply_grammar(TOOLS)
    for text in ("", "Hello.\nIt is <b>late</b>; {not JSON", "Let me look.\n" + format_tool_calls([CALL])):
        assert accepts(auto, text)
    assert not accepts(auto, "<tool_call>\nno call at all")
    assert not accepts(auto, format_tool_calls([CALL]) + "\nand more words")
    assert not accepts(reply_grammar(TOOLS, "any"), "Hello.")


def test_without_tools_or_with_choice_none_any_text_is_allowed() -> None:
    assert reply_grammar(()) is None and reply_grammar(TOOLS, "none") is None


def test_a_choice_that_names_no_available_tool_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fax'.*'get_weather', 'clock'"):
        reply_grammar(TOOLS, "fax")
    with pytest.raises(ConfigError, match="no tool"):
        reply_grammar((), "any")


def test_a_response_schema_is_enforced_and_calls_stay_possible() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    for tools, choice in (((), "auto"), (TOOLS, "auto"), (TOOLS, "none")):
        grammar = reply_grammar(tools, choice, schema=schema)
        assert accepts(grammar, '{"name": "Ada"}')
        assert not accepts(grammar, "Ada") and not accepts(grammar, "{}")
        assert accepts(grammar, format_tool_calls([CALL])) == (bool(tools) and choice == "auto")
    assert accepts(reply_grammar((), schema={"type": "object"}), '{"any": ["thing", 1]}')


def test_objects_have_the_properties_their_schema_lists() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for schema, extra in (
        (inner, False),
        ({"type": "array", "items": inner}, False),
        ({**inner, "additionalProperties": True}, True),
        ({"type": "object", "properties": {"properties": {"type": "integer"}, "a": {"type": "integer"}}}, False),
        ({"type": "object"}, True),
    ):
        grammar = reply_grammar((), schema=schema)
        text = '{"a": 1, "b": 2}'
        assert accepts(grammar, f"[{text}]" if schema.get("type") == "array" else text) == extra


def test_schemas_with_definitions_and_nesting_are_enforced() -> None:
    schema = {
        "$defs": {"Pet": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}},
        "type": "object",
        "properties": {
            "pets": {"type": "array", "items": {"$ref": "#/$defs/Pet"}},
            "note": {"anyOf": [{"type": "null"}]},
        },
        "required": ["pets"],
    }
    tool = Tool("adopt", parameters=schema)
    for arguments, fits in (({"pets": [{"age": 1}]}, True), ({"pets": [{"age": "x"}]}, False)):
        assert accepts(reply_grammar([tool], "any"), format_tool_calls([ToolCall("adopt", arguments)])) == fits


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["any", "get_weather", "clock"]), st.integers(160, 500))
def test_a_required_call_is_valid_however_randomly_it_is_sampled(seed: int, choice: str, tokens: int) -> None:
    grammar = reply_grammar(TOOLS, choice)
    assert grammar is not None
    text = wander(VOCABULARY.matcher(grammar, max_tokens=tokens), seed, tokens)
    parsed = parse_tool_calls(text, names=[tool.name for tool in TOOLS])
    assert parsed.text == "" and 1 <= len(parsed.calls) <= MOST_CALLS
    for call in parsed.calls:
        if call.name == "get_weather":
            assert isinstance(call.arguments["city"], str) and call.arguments["unit"] in ("celsius", "kelvin")


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(120, 300))
def test_a_reply_near_max_tokens_is_steered_to_a_valid_end(seed: int, tokens: int) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}}},
        "required": ["a", "b"],
    }
    grammar = reply_grammar((), schema=schema)
    assert grammar is not None
    value = json.loads(wander(VOCABULARY.matcher(grammar, max_tokens=tokens), seed, tokens))
    assert {"a", "b"} <= value.keys()


def test_the_ending_completes_any_beginning_and_changes_nothing() -> None:
    grammar = reply_grammar(TOOLS, "any")
    assert grammar is not None
    whole = ids(format_tool_calls([CALL]))
    matcher = VOCABULARY.matcher(grammar)
    for place, token in enumerate(whole):
        way = matcher.way_out()
        assert way is not None and VOCABULARY.matcher(grammar).accepts([*whole[:place], *way])
        matcher.accept(token)
    assert matcher.way_out() == []


def test_the_ending_closes_strings_with_any_tokens() -> None:
    merged = byte_tokenizer().backend_tokenizer
    definition = json.loads(merged.to_str())
    pairs = [("]", "]"), ("}", "}"), ('"', "}"), ('"}', "}"), ("]]", "]]")]
    for number, pair in enumerate(pairs):
        definition["model"]["vocab"]["".join(pair)] = 258 + number
        definition["model"]["merges"].append(list(pair))
    vocabulary = Vocabulary(json.dumps(definition), 300, {END})
    grammar = reply_grammar(TOOLS, "any")
    assert grammar is not None
    matcher = vocabulary.matcher(grammar)
    for token in ids('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os'):
        matcher.accept(token)
    assert matcher.way_out() is not None


def test_the_end_is_allowed_exactly_when_the_reply_is_complete() -> None:
    grammar = reply_grammar(TOOLS, "clock")
    assert grammar is not None
    matcher = VOCABULARY.matcher(grammar)
    assert not matcher.allowed()[END]
    for token in ids(format_tool_calls([ToolCall("clock", {})])):
        assert not matcher.finished
        matcher.accept(token)
    assert matcher.finished or matcher.allowed()[END]


def test_masks_have_the_models_width_and_padding_is_never_allowed() -> None:
    grammar = reply_grammar(TOOLS)
    assert grammar is not None
    mask = VOCABULARY.matcher(grammar).allowed()
    assert mask.shape == (300,) and mask.dtype == np.bool_ and not mask[258:].any()


def test_a_token_outside_the_grammar_is_an_error() -> None:
    grammar = reply_grammar(TOOLS, "any")
    assert grammar is not None
    with pytest.raises(GrammarError, match="does not fit"):
        VOCABULARY.matcher(grammar).accept(ids("H")[0])


def test_keywords_no_grammar_can_express_are_refused_for_answers_only() -> None:
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    grammar = reply_grammar((), schema=odd)
    assert grammar is not None
    with pytest.raises(GrammarError, match=r"response schema.*uniqueItems"):
        VOCABULARY.matcher(grammar)
    assert accepts(
        reply_grammar([Tool("odd", parameters=odd)], "any"), format_tool_calls([ToolCall("odd", {"x": [1]})])
    )


def test_a_schema_that_is_not_json_is_refused() -> None:
    with pytest.raises(GrammarError, match="JSON"):
        reply_grammar((), schema={"type": object})


def test_without_llguidance_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "grammars_available", lambda: False)
    with pytest.raises(GrammarError, match=r"deltamem-agents\[tools\]"):
        Vocabulary("{}", 10, {1})


SAY = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.mark.slow
def test_an_untrained_model_makes_valid_required_calls() -> None:
    engine = tiny_engine()
    for choice in ("any", "get_weather"):
        turn = engine.run_turn("ada", SAY, tools=TOOLS, tool_choice=choice, sampling=Sampling(max_tokens=100))
        assert turn.finish_reason == "tool_calls" and turn.text == "" and turn.tool_calls
        assert choice == "any" or [call.name for call in turn.tool_calls] == [choice]
    assert (
        engine.run_turn("ada", SAY, tools=TOOLS, tool_choice="none", sampling=Sampling(max_tokens=5)).tool_calls == ()
    )


@pytest.mark.slow
def test_an_untrained_model_fits_a_response_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "s": {"type": "string"}},
        "required": ["n", "s"],
    }
    for sampling in (Sampling(max_tokens=120), Sampling(max_tokens=120, temperature=2.0, seed=3, top_k=5)):
        turn = tiny_engine().run_turn("ada", SAY, response_schema=schema, sampling=sampling)
        value = json.loads(turn.text)
        assert isinstance(value["n"], int) and isinstance(value["s"], str)


@pytest.mark.slow
def test_equal_calls_of_two_turns_have_different_ids() -> None:
    engine = tiny_engine()
    sampling = Sampling(max_tokens=100)
    first = engine.run_turn("ada", SAY, tools=[CLOCK], tool_choice="clock", sampling=sampling, memory="off")
    again = engine.run_turn("ada", SAY, tools=[CLOCK], tool_choice="clock", sampling=sampling, memory="off")
    later = engine.run_turn("ada", [*SAY, *SAY], tools=[CLOCK], tool_choice="clock", sampling=sampling, memory="off")
    ids = [turn.tool_calls[0].id for turn in (first, again, later)]
    assert ids[0] == ids[1] != ids[2]


def test_an_impossible_request_fails_before_the_memory_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    with pytest.raises(GrammarError, match="uniqueItems"):
        engine.run_turn("ada", SAY, response_schema={"type": "array", "uniqueItems": True})
    with pytest.raises(ConfigError, match="fax"):
        engine.run_turn("ada", SAY, tools=TOOLS, tool_choice="fax")
    monkeypatch.setattr(grammars, "grammars_available", lambda: False)
    with pytest.raises(GrammarError, match="tools"):
        tiny_engine().run_turn("ada", SAY, tools=TOOLS, tool_choice="any")
    assert engine.store.head("ada") is None
