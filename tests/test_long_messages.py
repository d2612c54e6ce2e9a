"""Laws of long messages: the same tokens are written at every position, and the number left out is reported."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.chat.shortening import head_and_tail, in_parts
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError, WindowError
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.planning import WritePolicy
from deltamem_agents.types import Message, Sampling, ToolCall
from tiny_engine import tiny_engine

LIMIT = 100
SHORT = Sampling(max_tokens=4)
PAGE = "The head of the page. " + "Words nobody needs. " * 200 + "The tail of the page."
WRITTEN = PAGE[: LIMIT // 2] + PAGE[-LIMIT // 2 :]
ASK, CALL = Message("user", "Read the page."), Message("assistant", "", (ToolCall("read", {}, "1"),))
RESULT = Message("tool", PAGE, tool_call_id="1", name="read")


def limited(**options: object) -> DeltaMemEngine:
    return tiny_engine(policy=WritePolicy(message_tokens=LIMIT), window_tokens=512, **options)  # type: ignore[arg-type]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Records every prompt that goes through a model."""
    prompts: list[Prompt] = []
    feeding = Pass.feeding
    monkeypatch.setattr(Pass, "feeding", lambda run, prompt: (prompts.append(prompt), feeding(run, prompt))[1])
    return prompts


def written(engine: DeltaMemEngine, prompts: list[Prompt]) -> str:
    """The written text; the tiny model has one token per byte."""
    ids = [token for prompt in prompts for token, writes in zip(prompt.ids, prompt.writes, strict=True) if writes]
    return engine.tokenizer.decode(ids)


def shown(engine: DeltaMemEngine, prompt: Prompt) -> str:
    return engine.tokenizer.decode(prompt.ids)


@given(size=st.integers(0, 500), limit=st.integers(2, 300), part=st.integers(1, 120))
def test_a_head_and_a_tail_of_the_limit_are_kept_in_parts_of_any_size(size: int, limit: int, part: int) -> None:
    kept = [place for stretch in head_and_tail(size, limit) for place in stretch]
    assert len(kept) == min(size, limit)
    assert kept == [
        place for place in range(size) if size <= limit or place < -(-limit // 2) or place >= size - limit // 2
    ]
    parts = in_parts(head_and_tail(size, limit), part)
    assert [place for one in parts for stretch in one for place in stretch] == kept
    assert all(0 < sum(map(len, one)) <= part for one in parts) or not kept


def test_the_same_tokens_of_a_message_are_written_at_every_position(fed: list[Prompt]) -> None:
    page = Message("user", PAGE)
    engine, later = limited(), Message("user", "Thanks.")
    for write, extra in (
        (lambda: engine.absorb(engine.new_state(), [page]), ""),
        (lambda: engine.absorb_into("ada", [page]), ""),
        (lambda: engine.run_turn("bob", [page], sampling=SHORT), "reply"),
        (lambda: engine.run_turn("eve", [page, later], sampling=SHORT), "Thanks.reply"),
    ):
        fed.clear()
        write()
        reply = engine.tokenizer.decode([p.ids[0] for p in fed if len(p) == 1])
        assert written(engine, fed) == WRITTEN + extra.replace("reply", reply)


def test_a_message_that_the_prompt_shows_whole_is_written_up_to_the_limit(fed: list[Prompt]) -> None:
    engine, text = limited(), "".join(chr(97 + i % 26) for i in range(300))
    facts = engine.run_turn("ada", [Message("user", text)], sampling=SHORT).facts
    assert text in shown(engine, fed[0])
    assert written(engine, fed[:1]) == text[:50] + text[-50:]
    assert (facts.tokens_unshown, facts.tokens_unwritten, facts.messages_written) == (0, 200, 2)


def test_a_batch_writes_the_same_as_a_single_conversation() -> None:
    engine = limited()
    talks = [[ASK, CALL, RESULT], [Message("user", PAGE)], [ASK]]
    empty = [engine.new_state() for _ in talks]
    for one, talk in zip(engine.absorb_batch(empty, talks), talks, strict=True):
        torch.testing.assert_close(one.matrices, engine.absorb(engine.new_state(), talk).matrices, rtol=2e-4, atol=2e-5)


def test_a_newest_message_that_does_not_fit_is_shown_by_its_head_and_tail(fed: list[Prompt]) -> None:
    engine = limited()
    turn = engine.run_turn("ada", [ASK, CALL, RESULT], sampling=SHORT)
    prompt = next(p for p in fed if "assistant" in shown(engine, p)[-20:])
    text = shown(engine, prompt)
    assert "The head of the page." in text and "The tail of the page." in text and "tokens left out ...]" in text
    assert turn.usage.prompt_tokens == len(prompt) <= 512 - 4
    assert f"[... {turn.facts.tokens_unshown:,} tokens left out ...]" in text
    assert turn.facts.tokens_unwritten == len(PAGE) - LIMIT
    # The added line belongs to no message and is not remembered.
    assert "left out" not in written(engine, fed)


def test_the_question_before_a_long_message_stays_in_the_prompt(fed: list[Prompt]) -> None:
    engine = limited()
    engine.run_turn("ada", [ASK, Message("assistant", "Go on."), Message("user", PAGE)], sampling=SHORT)
    assert "Read the page." in shown(engine, next(p for p in fed if "head" in shown(engine, p) and not any(p.writes)))


def test_only_a_prompt_without_room_for_a_head_and_tail_is_refused() -> None:
    engine = tiny_engine(window_tokens=150)
    with pytest.raises(WindowError, match="the window has room for 50"):
        engine.run_turn("ada", [Message("user", PAGE)], sampling=Sampling(max_tokens=100))
    with pytest.raises(WindowError, match="max_tokens"):
        engine.run_turn("ada", [ASK], sampling=Sampling(max_tokens=150))
    with pytest.raises(WindowError, match="the window has room for 146"):
        engine.run_turn("ada", [Message("system", PAGE), ASK], sampling=SHORT)
    assert engine.store.head("ada") is None


def test_a_long_message_is_known_when_it_comes_again() -> None:
    engine = limited()
    first = engine.run_turn("ada", [Message("user", PAGE)], sampling=SHORT)
    again = engine.run_turn("ada", [Message("user", PAGE), first.message, ASK], sampling=SHORT)
    assert again.facts.alignment == "extends" and again.facts.tokens_unwritten == 0


def test_new_messages_are_written_in_order_around_one_that_is_cut(fed: list[Prompt]) -> None:
    engine = limited()
    ahead = Message("user", "First.")
    engine.run_turn("ada", [ahead, Message("assistant", "Second."), Message("user", PAGE)], sampling=SHORT)
    said = [p for p in fed if len(p) > 1]
    assert written(engine, said) == "First.Second." + WRITTEN


@settings(max_examples=5)
@given(window=st.integers(130, 400), size=st.integers(0, 900))
def test_a_message_longer_than_a_segment_is_written_in_parts(window: int, size: int) -> None:
    engine = tiny_engine(window_tokens=window, policy=WritePolicy(message_tokens=700))
    text = "".join(chr(97 + i % 26) for i in range(size))
    prompts = list(engine._prompts.segments([Message("user", text)], None))
    assert all(len(prompt) <= window for prompt in prompts)
    assert written(engine, prompts) == (text if size <= 700 else text[:350] + text[-350:])
    assert sum(prompt.messages for prompt in prompts) == (1 if size else 0)


def test_absorbing_reports_its_progress() -> None:
    engine, seen = limited(), []
    engine.absorb(engine.new_state(), [Message("user", "word " * 15)] * 30, advance=seen.append)
    again: list[int] = []
    engine.absorb_into("ada", [Message("user", "word " * 15)] * 30, advance=again.append)
    assert len(seen) > 3 and seen == again and sum(seen) > 30 * 75


def test_a_long_absorption_can_be_stopped_and_changes_nothing() -> None:
    engine = limited()
    stream = engine.stream_turn("ada", [*[Message("user", "word " * 15)] * 30, ASK], sampling=SHORT)
    next(stream)
    stream.close()
    assert engine.store.head("ada") is None


@pytest.mark.slow
def test_long_absorption_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    engine = limited(progress=True)
    history = [Message("user", "word " * 15)] * 300
    engine.absorb(engine.new_state(), [ASK])
    assert capsys.readouterr().err == ""
    engine.absorb_into("ada", history)
    assert "absorbing 300 messages" in capsys.readouterr().err


def test_a_limit_of_less_than_a_head_and_a_tail_is_refused() -> None:
    with pytest.raises(ConfigError, match="message_tokens is 1"):
        WritePolicy(message_tokens=1)


def test_states_are_equal_wherever_the_long_message_stood_alone() -> None:
    engine = limited()
    engine.absorb_into("ada", [Message("user", PAGE)])
    told: MemoryState = engine.absorb(engine.new_state(), [Message("user", PAGE)])
    assert torch.equal(engine.store.load("ada").snapshot.state.matrices, told.matrices)
