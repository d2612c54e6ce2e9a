"""Laws of decoding: sampling, stop strings, whole characters, and what is remembered of a cut-off reply."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference.decode import Decoding, Reply
from deltamem_agents.inference.passes import PREFILL_CHUNK, Pass, Prompt
from deltamem_agents.types import Message, Sampling
from tiny_engine import byte_tokenizer, tiny_engine

ASK = [Message("user", "Say something.")]


def forced_reply(engine: DeltaMemEngine, text: str, **sampling: object) -> tuple[list[str], Decoding]:
    """Decode a reply with forced tokens; returns the streamed pieces and the decoding."""
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    prompt = engine._prompts.reading(ASK)
    decoding = Decoding(
        Pass(engine.model, engine.new_state()),
        prompt,
        engine.tokenizer,
        Sampling(max_tokens=len(ids) + 1, **sampling),  # type: ignore[arg-type]
        writes_reply=True,
        end_ids=frozenset({257}),
        forced=ids,
    )
    return list(decoding), decoding


def test_greedy_is_the_default_and_repeatable() -> None:
    engine = tiny_engine()
    replies = {engine.run_turn(None, ASK, sampling=Sampling(max_tokens=12)).text for _ in range(2)}
    assert len(replies) == 1


@pytest.mark.slow
def test_equal_seeds_draw_equal_replies() -> None:
    engine = tiny_engine()

    def draw(seed: int | None) -> str:
        return engine.run_turn(None, ASK, sampling=Sampling(max_tokens=12, temperature=1.5, seed=seed)).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(6)}) > 1


def test_top_k_of_one_and_a_tiny_top_p_are_greedy() -> None:
    engine = tiny_engine()
    greedy = engine.run_turn(None, ASK, sampling=Sampling(max_tokens=8)).text
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        drawn = engine.run_turn(None, ASK, sampling=Sampling(max_tokens=8, temperature=2.0, seed=3, **narrow))
        assert drawn.text == greedy, narrow


@pytest.mark.slow
def test_repetition_penalty_changes_a_repeating_reply() -> None:
    engine = tiny_engine()
    plain = engine.run_turn(None, ASK, sampling=Sampling(max_tokens=30)).text
    assert engine.run_turn(None, ASK, sampling=Sampling(max_tokens=30, repetition_penalty=5.0)).text != plain


def test_streaming_never_shows_half_a_character() -> None:
    text = "naïve 🧠 日本語 e\u0301"
    pieces, decoding = forced_reply(tiny_engine(), text)
    assert "".join(pieces) == text == decoding.reply.text  # type: ignore[union-attr]
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.text(min_size=1, max_size=20))
def test_pieces_join_to_the_text(text: str) -> None:
    pieces, decoding = forced_reply(ENGINE, text)
    assert decoding.reply is not None
    assert "".join(pieces) == decoding.reply.text == text


def test_a_stop_string_is_neither_shown_nor_remembered() -> None:
    engine = tiny_engine()
    pieces, cut = forced_reply(engine, "Hello STOP world", stop=(" STOP",))
    _, short = forced_reply(engine, "Hello", stop=(" STOP",))
    assert "".join(pieces) == "Hello" and cut.reply is not None and short.reply is not None
    assert cut.reply.finish_reason == "stop"
    assert cut.reply.state is not None and short.reply.state is not None
    assert torch.allclose(cut.reply.state.matrices, short.reply.state.matrices, atol=1e-6)


def test_a_possible_stop_string_is_held_back_until_decided() -> None:
    pieces, _ = forced_reply(tiny_engine(), "one STO two", stop=("STOP",))
    assert "".join(pieces) == "one STO two"
    shown = ""
    for piece in pieces:
        shown += piece
        assert not any(shown.endswith(start) for start in ("S", "ST", "STO"))


def test_a_reply_at_its_length_limit_is_remembered_whole() -> None:
    engine = tiny_engine()
    prompt = engine._prompts.reading(ASK)
    states = []
    for limit in (3, 4):
        run = Pass(engine.model, engine.new_state())
        decoding = Decoding(
            run,
            prompt,
            engine.tokenizer,
            Sampling(max_tokens=limit),
            writes_reply=True,
            end_ids=frozenset(),
            forced=[65, 66, 67],
        )
        list(decoding)
        assert decoding.reply is not None and decoding.reply.state is not None
        assert run.measures.written == 3
        states.append(decoding.reply.state.matrices)
    assert torch.equal(*states)


@pytest.mark.parametrize("stop", [(), ("~",)], ids=["in one pass", "token by token"])
def test_a_forced_reply_leaves_the_same_state_as_when_it_was_sampled(stop: tuple[str, ...]) -> None:
    engine = tiny_engine()

    def reply(forced: tuple[int, ...] | None) -> Reply:
        run = Pass(engine.model, engine.new_state())
        sampling = Sampling(max_tokens=12, stop=stop)
        decoding = Decoding(
            run,
            engine._prompts.reading(ASK),
            engine.tokenizer,
            sampling,
            writes_reply=True,
            end_ids=frozenset(),
            forced=forced,
        )
        list(decoding)
        assert decoding.reply is not None and run.measures.written == 12
        return decoding.reply

    drawn = reply(None)
    given = reply(drawn.ids)
    assert (given.ids, given.text) == (drawn.ids, drawn.text)
    assert given.state is not None and drawn.state is not None
    torch.testing.assert_close(given.state.matrices, drawn.state.matrices, atol=1e-5, rtol=0)


def test_chunked_prefill_equals_one_pass() -> None:
    engine = tiny_engine()
    tokens = torch.randint(0, 256, (PREFILL_CHUNK + 100,), generator=torch.Generator().manual_seed(0)).tolist()
    length = len(tokens)
    prompt = Prompt(tuple(tokens), (True,) * length, (True,) * length, (0,) * length, (True,) * length)
    chunked = Pass(engine.model, engine.new_state())
    logits = chunked.feed(prompt)
    whole = Pass(engine.model, engine.new_state())
    expected = whole._chunk(prompt, slice(0, length))
    assert torch.allclose(logits, expected, atol=1e-4)
    assert chunked.state is not None and whole.state is not None
    assert torch.allclose(chunked.state.matrices, whole.state.matrices, atol=1e-4)


ENGINE = tiny_engine()


def test_tokens_cut_off_by_a_stop_string_do_not_count_as_written() -> None:
    engine = tiny_engine()
    for text, stop in (("It rains.\nUser: no", "\nUser:"), ("one two", "two"), ("plain", "\nUser:")):
        _, decoding = forced_reply(engine, text, stop=(stop,))
        assert decoding.reply is not None
        assert decoding._run.measures.written == len(decoding.reply.text) == len(text.partition(stop)[0])
