"""Laws of batches: each result is that of the sequence alone, for any lengths, state sizes and segment counts."""

from __future__ import annotations

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference import batching as batched
from deltamem_agents.inference.passes import Prompt
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message
from tiny_engine import tiny_engine

CONFIGS = {
    "key shift": AdapterConfig(rank=4, key_shift=True),
    "parallel states": AdapterConfig(rank=4, num_state_heads=2, state_update_mode="no_lambda"),
    "one write per message": AdapterConfig(rank=4, memory_write_granularity="message_mean"),
}
TALKS = (
    [Message("user", "My dog is Rex."), Message("assistant", "Noted, Rex it is.")],
    [Message("user", "Hi.")],
    [Message("system", "Be brief."), Message("user", "I live in Oslo, and like it a lot."), Message("tool", "ok")],
    [Message("user", "a"), Message("user", "b" * 90), Message("assistant", "c")],
)


def close(one: MemoryState, other: MemoryState) -> None:
    torch.testing.assert_close(one.matrices, other.matrices, rtol=2e-4, atol=2e-5)


def alone(engine: DeltaMemEngine, states: list[MemoryState], talks: list[list[Message]]) -> list[MemoryState]:
    return [engine.absorb(state, talk) for state, talk in zip(states, talks, strict=True)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("window", [None, 64])
def test_absorbing_in_a_batch_equals_absorbing_alone(config: AdapterConfig, window: int | None) -> None:
    """A window of 64 tokens splits only the longer conversations into several segments."""
    engine = tiny_engine(config=config, window_tokens=window)
    talks = [list(talk) for talk in TALKS]
    empty = [engine.new_state() for _ in talks]
    once = alone(engine, empty, talks)
    together = engine.absorb_batch(empty, talks)
    again = engine.absorb_batch(together, talks[::-1])
    for one, other in zip(together, once, strict=True):
        close(one, other)
    for one, other in zip(again, alone(engine, once, talks[::-1]), strict=True):
        close(one, other)
    assert all(state.carry is None for state in again)


def test_batches_of_any_size_give_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(window_tokens=64)
    talks = [list(talk) for talk in TALKS]
    empty = [engine.new_state() for _ in talks]
    expected = engine.absorb_batch(empty, talks)
    for tokens in (1, 70, 10_000):
        monkeypatch.setattr(batched, "BATCH_TOKENS", tokens)
        for one, other in zip(engine.absorb_batch(empty, talks), expected, strict=True):
            close(one, other)


@pytest.mark.parametrize("chunk", [7, 33])
def test_a_batch_in_chunks_equals_a_batch_in_one_pass(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    talks = [list(talk) for talk in TALKS]
    empty = [engine.new_state() for _ in talks]
    expected = engine.absorb_batch(empty, talks)
    monkeypatch.setattr(batched, "PREFILL_CHUNK", chunk)
    for one, other in zip(engine.absorb_batch(empty, talks), expected, strict=True):
        close(one, other)


def test_progress_counts_every_token_once() -> None:
    engine, seen = tiny_engine(window_tokens=64), []
    talks = [list(talk) for talk in TALKS]
    engine.absorb_batch([engine.new_state() for _ in talks], talks, advance=seen.append)
    segments = [len(part) for talk in talks for part in engine._prompts.segments(talk, None)]
    assert sorted(seen) == sorted(segments)


def test_nothing_to_absorb_changes_no_state() -> None:
    engine = tiny_engine()
    told = engine.absorb(engine.new_state(), TALKS[0])
    kept, system = engine.absorb_batch([told, told], [[], [Message("system", "Be brief.")]])
    assert torch.equal(kept.matrices, told.matrices)
    assert torch.equal(system.matrices, told.matrices)


answers = st.lists(st.text("abc xyz.", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(answers)
def test_scoring_in_a_batch_equals_scoring_alone(texts: list[str]) -> None:
    engine = tiny_engine()
    states = [engine.absorb(engine.new_state(), TALKS[place % 4]) for place in range(len(texts))]
    prompts = [[Message("user", "Who?" + "!" * place)] for place in range(len(texts))]
    for given_states in (states, None):
        together = engine.score_batch(given_states, prompts, texts)
        for place, found in enumerate(together):
            one = engine.score(None if given_states is None else states[place], prompts[place], texts[place])
            assert found.logprob == pytest.approx(one.logprob, rel=1e-4, abs=1e-4)
            assert found.tokens == one.tokens


def test_a_greedy_reply_scores_as_greedy_and_every_other_one_worse() -> None:
    engine, letters = tiny_engine(), string.ascii_letters + string.digits
    state = engine.absorb(engine.new_state(), TALKS[0])
    asked = [[Message("user", "Who?"), Message("assistant", f"{letter}-")] for letter in letters]
    said = engine.greedy_replies([state] * len(asked), asked, max_tokens=1)
    spoken = [(question, reply) for question, reply in zip(asked, said, strict=True) if reply in letters and reply][:3]
    assert spoken, "no prompt of these makes the tiny model say a letter; take other prompts"
    for question, reply in spoken:
        found = engine.score_batch([state] * len(letters), [question] * len(letters), letters)
        scores = dict(zip(letters, found, strict=True))
        assert [letter for letter in letters if scores[letter].greedy] == [reply]
        assert max(letters, key=lambda letter: scores[letter].logprob) == reply


def test_without_memory_and_with_a_zero_state_the_scores_are_the_same() -> None:
    engine = tiny_engine()
    prompts = [[Message("user", "Who?")], [Message("user", "Where is it?")]]
    off = engine.score_batch(None, prompts, ["Rex", "Oslo"])
    assert engine.score_batch([engine.new_state()] * 2, prompts, ["Rex", "Oslo"]) == off
    told = [engine.absorb(engine.new_state(), talk) for talk in TALKS[:2]]
    assert engine.score_batch(told, prompts, ["Rex", "Oslo"]) != off


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
def test_the_shared_lead_is_the_common_prefix_without_reads_or_writes(
    shapes: list[tuple[int, int, bool]],
) -> None:
    prompts = []
    for lead, body, other in shapes:
        ids = (*([7] * lead), *([8 + other] * body))
        prompts.append(
            Prompt(ids, (False,) * lead + (True,) * body, (False,) * len(ids), (-1,) * len(ids), (True,) * len(ids))
        )
    found = batched._shared_lead(prompts)
    assert found == min(min(lead for lead, *_ in shapes), min(map(len, prompts)) - 1)
    assert len({prompt.ids[:found] for prompt in prompts}) == 1
