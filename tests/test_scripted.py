"""Laws of the scripted engine: replies are scripted, everything else works as in a real engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from deltamem_agents.errors import ConfigError
from deltamem_agents.snapshots import InMemoryStore
from deltamem_agents.testing import Asked, ScriptedEngine
from deltamem_agents.types import Message, Sampling, Tool, ToolCall

HELLO = [{"role": "user", "content": "Hello, I am Ada."}]
CLOCK = Tool("clock")


def test_it_replies_with_the_script_and_remembers_it() -> None:
    engine = ScriptedEngine(["one", "two"])
    first = engine.run_turn("ada", HELLO)
    assert (first.text, first.usage.completion_tokens, first.finish_reason) == ("one", 3, "stop")
    assert first.facts.tokens_written == len("Hello, I am Ada.") + 3 and first.snapshot == engine.store.head("ada")
    assert "".join(chunk.text for chunk in engine.stream_turn("ada", HELLO)) == "two"
    with pytest.raises(ConfigError, match="no reply left for this turn"):
        engine.run_turn("ada", HELLO)


def test_a_script_may_be_a_function() -> None:
    def script(asked: Asked) -> Message | str:
        if asked.tools and asked.messages[-1].role == "user":
            return Message("assistant", "", (ToolCall(asked.tools[0].name, {}),))
        return f"{asked.agent}: {asked.messages[-1].content}"

    engine = ScriptedEngine(script)
    turn = engine.run_turn("ada", HELLO, tools=[CLOCK])
    assert [call.name for call in turn.tool_calls] == ["clock"] and turn.finish_reason == "tool_calls"
    result = [*HELLO, turn.message, {"role": "tool", "content": "noon", "tool_call_id": turn.tool_calls[0].id}]
    assert asyncio.run(engine.arun_turn("ada", result, tools=[CLOCK])).text == "ada: noon"


def test_it_follows_a_grammar_that_its_script_ignores() -> None:
    pytest.importorskip("llguidance")
    engine = ScriptedEngine("no JSON here")
    assert engine.run_turn("ada", HELLO, tools=[CLOCK], tool_choice="any").tool_calls[0].name == "clock"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert engine.run_turn("ada", HELLO, response_schema=schema).text == '{"n": 0}'


@pytest.mark.slow
def test_without_a_script_the_random_model_obeys_the_grammar() -> None:
    pytest.importorskip("llguidance")
    engine, wild = ScriptedEngine(None), Sampling(temperature=1.0, seed=0, max_tokens=200)
    said = [engine.run_turn(None, HELLO, sampling=replace(wild, seed=seed)).text for seed in (0, 1)]
    assert said[0] != said[1]
    assert engine.run_turn(None, HELLO, tools=[CLOCK], tool_choice="any", sampling=wild).tool_calls[0].name == "clock"


def test_stop_strings_and_the_token_limit_apply() -> None:
    engine = ScriptedEngine("one two three")
    assert engine.run_turn(None, HELLO, sampling=Sampling(stop=(" two",))).text == "one"
    cut = engine.run_turn(None, HELLO, sampling=Sampling(max_tokens=5))
    assert (cut.text, cut.finish_reason) == ("one t", "length")


def test_different_conversations_leave_different_memories() -> None:
    engine = ScriptedEngine()
    for agent in ("ada", "bob"):
        engine.run_turn(agent, [{"role": "user", "content": f"I am {agent}."}])
    ada, bob = (engine.store.load(agent).snapshot.state.matrices for agent in ("ada", "bob"))
    assert (ada - bob).abs().max() > 1e-3


def test_an_engine_over_another_store_shares_the_model_and_no_memory() -> None:
    engine, store = ScriptedEngine("ok"), InMemoryStore()
    twin = engine.with_store(store)
    twin.run_turn("ada", HELLO)
    assert store.agents() == ["ada"] and engine.store.agents() == []
    assert twin.model is engine.model and twin.fingerprint == engine.fingerprint
    engine.run_turn("ada", HELLO)
    assert engine.store.load("ada").snapshot.state.norm() == store.load("ada").snapshot.state.norm()


def test_a_stream_never_shows_part_of_a_tool_call() -> None:
    call = ToolCall("clock", {})
    engine = ScriptedEngine(Message("assistant", "Let me look.", (call,)))
    chunks = list(engine.stream_turn("ada", HELLO, tools=[CLOCK]))
    turn = chunks[-1].turn
    assert turn is not None and [found.name for found in turn.tool_calls] == ["clock"]
    assert "".join(chunk.text for chunk in chunks) == turn.text == "Let me look."
    assert len([chunk for chunk in chunks if chunk.text]) > 1
