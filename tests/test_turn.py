"""Laws of a turn: what it reads, writes and replies, and that an interrupted turn changes nothing."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from client_turns import SHORT, U1, U2, U3, grow, head, same_state
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import (
    ConfigError,
    ForeignSnapshotError,
    MessageError,
    StoreError,
    UnsupportedModelError,
    WindowError,
)
from deltamem_agents.loading import weights_hash
from deltamem_agents.snapshots import InMemoryStore, SQLiteStore
from deltamem_agents.turns.planning import WritePolicy
from deltamem_agents.types import Message, Sampling, Turn
from tiny_engine import random_adapter, tiny_engine, tiny_llama


@pytest.fixture
def engine() -> DeltaMemEngine:
    return tiny_engine()


def test_a_turn_commits_once_and_reports_what_it_did(engine: DeltaMemEngine) -> None:
    turn = engine.run_turn("ada", [{"role": "user", "content": "I live in Oslo."}], sampling=SHORT)
    snapshot = head(engine)
    assert turn.snapshot == engine.store.head("ada")
    assert len(list(engine.store.log("ada"))) == 1
    assert snapshot.counters.turns == 1 and snapshot.counters.messages == 2
    facts = turn.facts
    assert facts.alignment == "fresh" and facts.messages_written == 2
    assert facts.tokens_written == len("I live in Oslo.") + turn.usage.completion_tokens == snapshot.counters.tokens
    assert facts.state_bytes == snapshot.state.nbytes and facts.state_norm == pytest.approx(snapshot.state.norm())
    assert facts.mean_beta is not None and 0 < facts.mean_beta < 1
    assert facts.correction_ratio is not None and facts.correction_ratio > 0
    assert turn.usage.completion_tokens <= 6 and turn.finish_reason == "length"


def test_memory_off_is_the_base_model(engine: DeltaMemEngine) -> None:
    messages = [U1]
    off = engine.run_turn("ada", messages, sampling=SHORT, memory="off")
    base = tiny_llama()
    ids = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": U1.content}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    out = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert off.text == engine.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert off.snapshot is None and engine.store.head("ada") is None
    assert off.facts.state_bytes == 0 and off.facts.tokens_written == 0


def test_the_state_changes_what_is_said(engine: DeltaMemEngine) -> None:
    state = engine.absorb(engine.new_state(), [U1, U2])
    told = engine.score(state, [U3], "Oslo")
    assert told.logprob != engine.score(engine.new_state(), [U3], "Oslo").logprob


def test_readonly_reads_and_does_not_change_the_agent(engine: DeltaMemEngine) -> None:
    engine.run_turn("ada", [U1], sampling=SHORT)
    before = engine.store.head("ada")
    turn = engine.run_turn("ada", [U3], sampling=SHORT, memory="readonly")
    assert engine.store.head("ada") == before and turn.snapshot is None
    assert turn.facts.tokens_written == 0 and turn.facts.state_norm == pytest.approx(head(engine).state.norm())


def test_an_agent_without_a_name_is_not_stored(engine: DeltaMemEngine) -> None:
    turn = engine.run_turn(None, [U1], sampling=SHORT)
    assert turn.snapshot is None and engine.store.agents() == []
    assert turn.facts.tokens_written > 0


def test_sync_equals_async_equals_stream() -> None:
    engines = [tiny_engine() for _ in range(4)]
    turns = [engines[0].run_turn("ada", [U1, U2], sampling=SHORT)]
    chunks = list(engines[1].stream_turn("ada", [U1, U2], sampling=SHORT))
    assert chunks[-1].turn is not None
    turns.append(chunks[-1].turn)
    assert "".join(chunk.text for chunk in chunks) == turns[0].text
    turns.append(asyncio.run(engines[2].arun_turn("ada", [U1, U2], sampling=SHORT)))

    async def stream() -> Turn:
        texts = [chunk async for chunk in engines[3].astream_turn("ada", [U1, U2], sampling=SHORT)]
        assert texts[-1].turn is not None
        assert "".join(chunk.text for chunk in texts) == texts[-1].turn.text
        return texts[-1].turn

    turns.append(asyncio.run(stream()))
    assert len({turn.text for turn in turns}) == 1
    assert all(same_state(head(engines[0]), head(engine)) for engine in engines)


def test_an_abandoned_stream_changes_nothing(engine: DeltaMemEngine) -> None:
    engine.run_turn("ada", [U1], sampling=SHORT)
    before = engine.store.head("ada")
    stream = engine.stream_turn("ada", [U2], sampling=Sampling(max_tokens=200))
    for _ in range(3):
        next(stream)
    stream.close()
    assert engine.store.head("ada") == before


async def test_a_cancelled_turn_stops_and_changes_nothing(engine: DeltaMemEngine) -> None:
    task = asyncio.create_task(engine.arun_turn("ada", [U1], sampling=Sampling(max_tokens=1500)))
    await asyncio.sleep(0.3)
    assert not task.done(), "the reply was over before it could be cancelled"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.store.head("ada") is None


def test_a_failed_turn_changes_nothing(engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run_turn("ada", [U1], sampling=SHORT)
    before = engine.store.head("ada")

    def full(*_: object, **__: object) -> str:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "save", full)
        with pytest.raises(StoreError, match="disk is full"):
            engine.run_turn("ada", [U2], sampling=SHORT)
    assert engine.store.head("ada") == before
    for bad in ([{"role": "robot", "content": "x"}], [{"content": "x"}], [{"role": "user", "content": [1]}], "hello"):
        with pytest.raises(MessageError):
            engine.run_turn("ada", bad, sampling=SHORT)  # type: ignore[arg-type]
    assert engine.store.head("ada") == before


def test_two_agents_never_touch(engine: DeltaMemEngine) -> None:
    alone = tiny_engine()
    alone.run_turn("ada", [U1], sampling=SHORT)
    engine.run_turn("ada", [U1], sampling=SHORT)
    engine.run_turn("bob", [U2], sampling=SHORT)
    assert same_state(head(engine), head(alone))
    assert not same_state(head(engine), head(engine, "bob"))


@pytest.mark.slow
def test_concurrent_turns_lose_no_write(tmp_path: Any) -> None:
    store = SQLiteStore(tmp_path / "memory.sqlite")
    engine = tiny_engine(store)

    def one(number: int) -> Turn:
        return engine.run_turn("ada", [Message("user", f"Fact {number}.")], thread=f"t{number}", sampling=SHORT)

    with ThreadPoolExecutor(8) as pool:
        turns = list(pool.map(one, range(12)))
    assert len({turn.snapshot for turn in turns}) == 12
    log = list(store.log("ada"))
    assert len(log) == 12 and head(engine).counters.messages == 24
    assert {entry.snapshot.thread for entry in log} == {f"t{number}" for number in range(12)}


def test_a_lost_race_keeps_the_reply_that_was_shown(engine: DeltaMemEngine) -> None:
    stream = engine.stream_turn("ada", [U1], thread="a", sampling=SHORT)
    text = next(stream).text
    engine.run_turn("ada", [U2], thread="b", sampling=SHORT)
    rest = list(stream)
    turn = rest[-1].turn
    assert turn is not None and turn.text == text + "".join(chunk.text for chunk in rest)
    assert turn.facts.attempts == 2
    assert head(engine).counters.messages == 4 and head(engine).parent is not None


def test_threads_in_one_process_do_not_mix_states(engine: DeltaMemEngine) -> None:
    states = [engine.absorb(engine.new_state(), [Message("user", f"I am {name}.")]) for name in ("Ann", "Bea", "Cy")]
    expected = [engine.score(state, [U3], "Oslo").logprob for state in states]
    start = threading.Barrier(3)

    def score(index: int) -> float:
        start.wait()
        return engine.score(states[index], [U3], "Oslo").logprob

    for _ in range(5):
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(score, range(3))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_state_bytes_and_prompt_do_not_grow_with_the_conversation() -> None:
    engine = tiny_engine(window_tokens=300)
    history: list[Message] = []
    turns = [grow(engine, "ada", history, Message("user", f"This is fact number {n} of many.")) for n in range(25)]
    assert len({turn.facts.state_bytes for turn in turns}) == 1
    assert max(turn.usage.prompt_tokens for turn in turns) <= 300 - SHORT.max_tokens
    assert head(engine).counters.messages == 50


def test_messages_beyond_the_window_are_absorbed_first() -> None:
    engine = tiny_engine(window_tokens=200)
    history = [
        Message(role, f"{role} says {n} and some more words") for n in range(20) for role in ("user", "assistant")
    ]
    turn = engine.run_turn("ada", [*history, U3], sampling=SHORT)
    assert turn.usage.absorbed_tokens > 0 and turn.usage.prompt_tokens <= 194
    assert head(engine).counters.messages == 42
    assert turn.facts.tokens_written == sum(len(m.content) for m in (*history, U3)) + turn.usage.completion_tokens


@pytest.mark.slow
def test_a_first_call_longer_than_the_models_context_works() -> None:
    engine = tiny_engine(policy=WritePolicy(message_tokens=10_000))
    long = Message("user", "word " * 1200)
    turn = engine.run_turn("ada", [long, Message("assistant", "ok"), U3], sampling=SHORT)
    assert turn.facts.tokens_written >= len("word " * 1200) - 5
    assert turn.usage.prompt_tokens < 2048 and head(engine).counters.messages == 4


def test_a_message_too_large_for_the_prompt_is_refused() -> None:
    engine = tiny_engine(window_tokens=100)
    with pytest.raises(WindowError, match="has room for 94"):
        engine.run_turn("ada", [Message("user", "x" * 500)], sampling=SHORT)
    with pytest.raises(WindowError, match="max_tokens"):
        engine.run_turn("ada", [U1], sampling=Sampling(max_tokens=100))
    assert engine.store.head("ada") is None


def test_system_messages_are_read_and_not_written(engine: DeltaMemEngine) -> None:
    turn = engine.run_turn("ada", [Message("system", "Be brief."), U1], sampling=SHORT)
    assert turn.facts.tokens_written == len(U1.content) + turn.usage.completion_tokens
    assert head(engine).counters.messages == 2
    with pytest.raises(ConfigError, match="system"):
        WritePolicy(roles=("system", "user"))


def test_roles_outside_the_policy_are_not_written() -> None:
    engine = tiny_engine(policy=WritePolicy(roles=("user",)))
    turn = engine.run_turn("ada", [U1], sampling=SHORT)
    assert turn.facts.tokens_written == len(U1.content) and head(engine).counters.messages == 1


def test_a_memory_made_by_another_adapter_is_refused_and_kept() -> None:
    store = InMemoryStore()
    tiny_engine(store).run_turn("ada", [U1], sampling=SHORT)
    before = store.head("ada")
    other = tiny_engine(store, config=AdapterConfig(rank=4))
    with pytest.raises(ForeignSnapshotError, match="adapter"):
        other.run_turn("ada", [U2], sampling=SHORT)
    assert store.head("ada") == before


def test_a_second_process_continues_the_memory(tmp_path: Any) -> None:
    path = tmp_path / "memory.sqlite"
    with SQLiteStore(path) as store:
        first = tiny_engine(store)
        first.run_turn("ada", [U1], sampling=SHORT)
        expected = first.score(head(first).state, [U3], "Oslo").logprob
    with SQLiteStore(path) as store:
        second = tiny_engine(store)
        assert second.score(head(second).state, [U3], "Oslo").logprob == expected
        assert second.run_turn("ada", [U3], sampling=SHORT).facts.alignment == "windowed"


def test_the_base_weights_are_the_same_after_any_use() -> None:
    engine = tiny_engine()
    before = weights_hash(engine.model)
    engine.run_turn("ada", [U1], sampling=SHORT)
    engine.run_turn("ada", [U1, U2], sampling=Sampling(max_tokens=3, temperature=1.0, seed=1))
    engine.close()
    assert weights_hash(engine.model) == before == weights_hash(tiny_llama())


def test_a_model_can_have_only_one_memory_attached() -> None:
    engine = tiny_engine()
    from deltamem_agents.memory.attach import attach

    with pytest.raises(UnsupportedModelError, match="already"):
        attach(engine.model, random_adapter(engine.model))


def test_absorbing_is_pure_and_split_in_batches_equals_whole(engine: DeltaMemEngine) -> None:
    zero = engine.new_state()
    once = engine.absorb(zero, [U1, U2])
    assert not zero.matrices.any() and torch.equal(once.matrices, engine.absorb(zero, [U1, U2]).matrices)
    replies = engine.greedy_replies([once, zero], [[U3], [U1, U2]], max_tokens=5)
    assert replies[0] == engine.greedy_replies([once], [[U3]], max_tokens=5)[0]
    assert replies[1] == engine.greedy_replies([zero], [[U1, U2]], max_tokens=5)[0]


def test_score_agrees_with_greedy_decoding(engine: DeltaMemEngine) -> None:
    state = engine.absorb(engine.new_state(), [U1])
    reply = engine.greedy_replies([state], [[U3]], max_tokens=4)[0]
    prefilled = [U3, Message("assistant", "You live in")]
    continued = engine.greedy_replies([state], [prefilled], max_tokens=4)[0]
    if reply.isascii() and reply.strip() == reply and reply:
        assert engine.score(state, [U3], reply).greedy
    assert engine.score(state, [U3], "certainly not this").greedy is False
    assert engine.score(state, prefilled, " Oslo").tokens == len(" Oslo")
    assert isinstance(continued, str)


def test_a_message_level_adapter_writes_whole_messages() -> None:
    engine = tiny_engine(config=AdapterConfig(rank=4, memory_write_granularity="message_mean"))
    history: list[Message] = []
    grow(engine, "ada", history, U1)
    norm = head(engine).state.norm()
    grow(engine, "ada", history, U2)
    assert 0 < norm != head(engine).state.norm() and head(engine).counters.messages == 4
