"""Laws of continuous batching: concurrent turns share forward passes, and each gives the same result as alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents import AdapterConfig, DeltaMemEngine, Message, Overloaded, OverloadedError, Recall, Sampling, Turn
from deltamem_agents.inference.decode import Decoding
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.inference.rows import OneToken, Rows
from deltamem_agents.inference.scheduling import Scheduler, Seat, Step
from deltamem_agents.memory.backbones import empty_cache
from deltamem_agents.memory.state import MemoryState
from test_folding import FOLDS
from tiny_engine import tiny_engine
from tiny_models import FAMILIES, random_adapter, tiny_model

CONFIGS = {
    "folded": FOLDS,
    "not folded": replace(FOLDS, gate_on_reads=True),
    "one state": AdapterConfig(rank=4, key_shift=True),
    "one write per message": AdapterConfig(rank=4, memory_write_granularity="message_mean"),
}


def ids_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def words(ids: Sequence[int], *, writes: bool) -> Prompt:
    count = len(ids)
    return Prompt(tuple(ids), (True,) * count, (writes,) * count, (0,) * count, (True,) * count)


def begun(engine: DeltaMemEngine, kind: str, seed: int) -> Pass:
    """A sequence that uses its memory in this way: "off", "quiet" (nothing to read), "reads" or "applies" (writes)."""
    state: MemoryState | None = engine.new_state()
    if kind == "off":
        state = None
    elif kind != "quiet":
        ones = MemoryState(torch.ones_like(engine.new_state().matrices))
        state = ones.random_like(torch.Generator().manual_seed(seed))
    statements = engine._speaker.keeps_writes
    return engine._speaker.begin(state, applies=not statements or kind == "applies", collect=True)


@dataclass
class Talker:
    """A sequence that is fed given tokens one by one. `heard`: its logits so far. `kind`: how it uses its memory."""

    engine: DeltaMemEngine
    seed: int
    kind: str
    length: int
    heard: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = begun(self.engine, self.kind, self.seed)
        self.run.feed(words(ids_of(self.seed, self.length), writes=self.kind != "off"))
        self.run.later = self.run.defers
        self.said: list[int] = []

    @property
    def writes(self) -> bool:
        return self.kind != "off" and self.seed % 2 == 0

    def step(self) -> OneToken:
        token = (self.seed * 31 + len(self.said) * 7) % 250
        self.said.append(token)
        prompt = words([token], writes=self.writes)
        return OneToken(self.run, token, self.run._call(prompt, slice(0, 1)))

    def took(self, step: OneToken, logits: Tensor | Exception) -> None:
        """Do what `Pass` does with the logits of a step."""
        assert isinstance(logits, Tensor), logits
        self.heard.append(logits)
        seat, self.run.seat = self.run.seat, None
        prompt = words([step.token], writes=self.writes)
        self.run._call = lambda *_: step.call  # type: ignore[method-assign]
        self.run.forward = lambda *_: logits  # type: ignore[method-assign]
        self.run._chunk(prompt, slice(0, 1))
        del self.run._call, self.run.forward
        self.run.seat = seat

    def alone(self) -> None:
        step = self.step()
        self.took(step, self.run.forward((step.token,), step.call))


def same(one: Talker, other: Talker) -> None:
    """Assert equal logits, states, measures, writes, keys and values."""
    for found, wanted in zip(one.heard, other.heard, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    for run in (one.run, other.run):
        run.write_waiting(run.fed)
    if one.run.state is not None and other.run.state is not None:
        torch.testing.assert_close(one.run.state.matrices, other.run.state.matrices, atol=1e-4, rtol=1e-4)
    mine, theirs = one.run.measures, other.run.measures
    assert (mine.read, mine.written, mine.beta_count, mine.ratio_count) == (
        theirs.read,
        theirs.written,
        theirs.beta_count,
        theirs.ratio_count,
    )
    assert mine.ratio_sum == pytest.approx(theirs.ratio_sum, rel=1e-3, abs=1e-4)
    for found, wanted in zip(one.run.pieces or (), other.run.pieces or (), strict=True):
        assert (found.tokens, found.written) == (wanted.tokens, wanted.written)
        for part in ("keys", "values", "write", "erase"):
            torch.testing.assert_close(getattr(found.writes, part), getattr(wanted.writes, part), atol=1e-4, rtol=1e-4)
    for layer, wanted in zip(one.run.cache.layers, other.run.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, wanted.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values, wanted.values, atol=1e-4, rtol=1e-4)


KINDS = ("off", "quiet", "state", "applies")
ENGINES = {name: tiny_engine(config=config) for name, config in CONFIGS.items()}


@pytest.mark.slow
@given(
    name=st.sampled_from(list(CONFIGS)),
    rows=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 40)), min_size=2, max_size=5),
    passes=st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=12),
    leaves=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 4))),
)
def test_decoding_together_equals_alone_over_any_joins_and_leaves(
    name: str, rows: list[tuple[str, int]], passes: list[set[int]], leaves: set[tuple[int, int]]
) -> None:
    engine, together = ENGINES[name], Rows()
    talkers = [Talker(engine, seed, kind, length) for seed, (kind, length) in enumerate(rows)]
    alone = [Talker(engine, seed, kind, length) for seed, (kind, length) in enumerate(rows)]
    for number, who in enumerate(passes):
        due = [(talkers[row], talkers[row].step()) for row in sorted(who) if row < len(talkers)]
        for (talker, step), logits in zip(due, together.run([step for _, step in due]), strict=True):
            talker.took(step, logits)
            alone[talker.seed].alone()
        for row in range(len(talkers)):
            if (number, row) in leaves:
                together.release(talkers[row].run)
    for one, other in zip(talkers, alone, strict=True):
        together.release(one.run)
        same(one, other)
    assert len(together) == 0


def test_buffers_grow_and_rows_that_miss_too_many_passes_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamem_agents.inference.rows.GROWTH", 3)
    monkeypatch.setattr("deltamem_agents.inference.rows.MISSED", 2)
    engine, together = ENGINES["folded"], Rows()
    talkers, alone = ([Talker(engine, seed, "state", 5 + seed) for seed in range(3)] for _ in range(2))
    for number in range(12):
        due = [(each, each.step()) for each in talkers if each.seed < 2 or number % 5 == 0]
        for (talker, step), logits in zip(due, together.run([step for _, step in due]), strict=True):
            talker.took(step, logits)
            alone[talker.seed].alone()
        assert len(together) == (3 if number % 5 < 3 else 2)
    for one, other in zip(talkers, alone, strict=True):
        together.release(one.run)
        same(one, other)


@pytest.mark.parametrize("kind", ["off", "quiet"])
def test_a_row_reads_nothing_of_the_row_that_had_its_place_before(kind: str) -> None:
    engine, together = ENGINES["folded"], Rows()
    kinds = ("state", "state", "state", kind)
    talkers, alone = ([Talker(engine, row, each, 9) for row, each in enumerate(kinds)] for _ in range(2))
    for who in ((0, 1, 2), (0, 1, 3), (0, 1, 3)):
        due = [(talkers[row], talkers[row].step()) for row in who]
        for (talker, step), logits in zip(due, together.run([step for _, step in due]), strict=True):
            talker.took(step, logits)
            alone[talker.seed].alone()
        if 2 in who:
            together.release(talkers[2].run)
    for one, other in zip(talkers, alone, strict=True):
        together.release(one.run)
        same(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_together(family: str) -> None:
    model = tiny_model(family, "eager")
    random_adapter(model)

    def begun() -> list[Pass]:
        found = [Pass(model, None) for _ in range(3)]
        for number, run in enumerate(found):
            run.feed(words([each % 60 + 1 for each in ids_of(number, 4 + 5 * number)], writes=False))
        return found

    together, alone, rows = begun(), begun(), Rows()
    for token in range(1, 9):
        taken = [number for number in range(3) if number or token % 3]
        found = rows.run([OneToken(together[number], token, None) for number in taken])
        for number, logits in zip(taken, found, strict=True):
            assert isinstance(logits, Tensor)
            torch.testing.assert_close(logits, alone[number].forward((token,), None), atol=1e-4, rtol=1e-4)


def talk(text: str) -> list[Message]:
    return [Message("user", text)]


@contextmanager
def widths_of(engine: DeltaMemEngine) -> Iterator[list[int]]:
    """Records the number of rows of each forward pass of one token."""
    found: list[int] = []

    def heard(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] == 1:
            found.append(ids.shape[0])

    handle = engine.model.register_forward_pre_hook(heard, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def at_once(*calls: Any) -> list[Any]:
    """Run each call in its own thread at the same time; returns their results or exceptions."""
    found: list[Any] = [None] * len(calls)
    begun = threading.Barrier(len(calls))

    def one(number: int) -> None:
        begun.wait()
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


SECRETS = ("Oslo 4711", "Rex the dog", "blue piano", "cabin 93", "Mount Ida", "seven swans")


def turn_of(engine: DeltaMemEngine, number: int) -> Turn:
    name, secret = f"agent {number}", SECRETS[number % len(SECRETS)]
    sampling = Sampling(max_tokens=20 + number, temperature=0.0 if number % 2 else 0.8, seed=number)
    memory: Any = ("readwrite", "readonly", "readwrite", "off")[number % 4]
    recall = Recall("all") if number % 5 == 4 else None
    engine.run_turn(name, talk(f"My secret is {secret}. {'Mind it. ' * number}"), sampling=sampling)
    return engine.run_turn(name, talk("What is my secret?"), sampling=sampling, memory=memory, recall=recall)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_concurrent_turns_equal_sequential_turns(name: str) -> None:
    """Each agent has its own secret. Replies, statements and reads are the same with and without other agents."""
    one_by_one, together = (tiny_engine(config=CONFIGS[name]) for _ in range(2))
    wanted = [turn_of(one_by_one, number) for number in range(6)]
    with widths_of(together) as widths:
        found = at_once(*(lambda number=number: turn_of(together, number) for number in range(6)))
    assert max(widths) > 2
    for number, (turn, expected) in enumerate(zip(found, wanted, strict=True)):
        assert turn.text == expected.text and turn.usage == expected.usage
        assert turn.facts.tokens_read == expected.facts.tokens_read
        assert turn.facts.tokens_written == expected.facts.tokens_written
        states = [engine.store.load(f"agent {number}").snapshot.state for engine in (together, one_by_one)]
        torch.testing.assert_close(states[0].matrices, states[1].matrices, atol=1e-4, rtol=1e-4)
        if engine_keeps(together):
            kept = [[each.text for each in engine.statements(f"agent {number}")] for engine in (together, one_by_one)]
            assert kept[0] == kept[1] and SECRETS[number] in kept[0][0]
            others = [secret for at, secret in enumerate(SECRETS) if at != number]
            assert not any(secret in text for secret in others for text in kept[0])
    assert left_clean(together)


def engine_keeps(engine: DeltaMemEngine) -> bool:
    return engine._speaker.keeps_writes


def left_clean(engine: DeltaMemEngine) -> bool:
    scheduler = engine._speaker.scheduler
    return len(scheduler.runner) == 0 and not scheduler._seats and not scheduler._due and not scheduler._lobby  # type: ignore[arg-type]


def test_a_row_keeps_no_view_of_others() -> None:
    """A step leaves a row only tensors of its own, so that no reference keeps another agent's tokens alive."""
    engine, together = ENGINES["folded"], Rows()
    talkers = [Talker(engine, seed, "state", 9) for seed in (0, 2, 4)]
    steps = [talker.step() for talker in talkers]
    logits = together.run(steps)
    held = [
        {each.untyped_storage().data_ptr() for each in (*step.call.inputs.values(), found)}  # type: ignore[union-attr]
        for step, found in zip(steps, logits, strict=True)
    ]
    assert not held[0] & held[1] and not held[1] & held[2] and not held[0] & held[2]
    for talker in talkers:
        together.release(talker.run)
    kept = [{layer.keys.untyped_storage().data_ptr() for layer in talker.run.cache.layers} for talker in talkers]
    assert not kept[0] & kept[1] and not kept[1] & kept[2]


class Breaking:
    """A constraint that allows every token, and raises after `after` tokens."""

    finished = False

    def __init__(self, after: int) -> None:
        self.after = after

    def allowed(self) -> np.ndarray:
        self.after -= 1
        if self.after < 0:
            raise ZeroDivisionError("the constraint broke")
        return np.ones(258, dtype=bool)

    def accept(self, token: int) -> None: ...


def decode(engine: DeltaMemEngine, number: int, constraint: Any = None) -> str:
    speaker = engine._speaker
    seat = speaker.scheduler.seat()
    for _ in speaker.scheduler.admitted(seat):
        pass
    try:
        run = speaker.begin(engine.new_state(), applies=False, seat=seat)
        prompt = words(ids_of(number, 10 + number), writes=False)
        decoding = Decoding(
            run,
            prompt,
            engine.tokenizer,
            Sampling(max_tokens=24, temperature=0),
            writes_reply=True,
            end_ids=frozenset(),
            constraint=constraint,
        )
        return "".join(decoding)
    finally:
        speaker.scheduler.leave(seat)


@pytest.mark.slow
def test_an_error_in_one_row_does_not_affect_the_others() -> None:
    engine = tiny_engine(config=FOLDS)
    wanted = [decode(engine, number) for number in range(4)]
    calls = [lambda number=number: decode(engine, number, Breaking(7) if number == 2 else None) for number in range(4)]
    with widths_of(engine) as widths:
        found = at_once(*calls)
    assert max(widths) > 1
    assert isinstance(found[2], ZeroDivisionError)
    assert [found[number] for number in (0, 1, 3)] == [wanted[number] for number in (0, 1, 3)]
    assert left_clean(engine)


def test_a_failing_pass_fails_only_the_row_that_caused_it() -> None:
    engine, together = ENGINES["one state"], Rows()
    talkers, alone = ([Talker(engine, seed, "state", 8) for seed in range(3)] for _ in range(2))
    for number in range(3):
        steps = [talker.step() for talker in talkers]
        if number == 1:
            wrong = steps[2].call
            assert wrong is not None
            wrong.state = MemoryState.zeros(1, 2, 1, 7)  # type: ignore[misc, assignment]
        found = together.run(steps)
        assert isinstance(found[2], Exception) == (number == 1)
        for talker, step, logits in list(zip(talkers, steps, found, strict=True))[:2]:
            talker.took(step, logits)
            alone[talker.seed].alone()
    for one, other in list(zip(talkers, alone, strict=True))[:2]:
        together.release(one.run)
        same(one, other)


def test_closing_a_stream_frees_its_place_and_the_others_go_on() -> None:
    engine = tiny_engine(config=FOLDS)
    sampling = Sampling(max_tokens=30, temperature=0)
    wanted = engine.run_turn("b", talk("Hello there."), sampling=sampling).text
    engine.store.forget("b")
    stream = engine.stream_turn("a", talk("Tell me all."), sampling=sampling)
    other = engine.stream_turn("b", talk("Hello there."), sampling=sampling)
    heard = []
    for _ in range(6):
        next(stream)
        heard.append(next(other))
    stream.close()
    assert engine._speaker.scheduler._seats and "a" not in list(engine.store.agents())
    heard += list(other)
    assert heard[-1].turn is not None and heard[-1].turn.text == wanted
    assert left_clean(engine)


def test_too_many_turns_are_refused_by_name() -> None:
    engine = tiny_engine(config=FOLDS)
    scheduler = engine._speaker.scheduler
    scheduler.at_once, scheduler.waiting = 1, 1
    first, second, third = (engine.stream_turn(name, talk("Hi."), sampling=Sampling(max_tokens=9)) for name in "abc")
    seat: Seat[OneToken] = scheduler.seat()
    assert list(scheduler.admitted(seat)) == []
    seat.inside = True
    assert next(first).text == next(first).text == ""
    with pytest.raises(OverloadedError, match="1 turns are running and 1 wait") as raised:
        next(second)
    assert isinstance(raised.value, Overloaded) and isinstance(raised.value, RuntimeError)
    first.close()
    assert next(third).text == ""
    scheduler.leave(seat)
    *_, last = third
    assert last.turn is not None
    assert left_clean(engine)


def test_an_unread_stream_does_not_block_other_turns() -> None:
    engine = tiny_engine(config=FOLDS)
    scheduler = engine._speaker.scheduler
    scheduler.at_once = 1
    idle = engine.stream_turn("a", talk("Hi."), sampling=Sampling(max_tokens=40))
    next(idle)
    assert engine.run_turn("b", talk("Hello."), sampling=Sampling(max_tokens=5)).snapshot
    *_, last = idle
    assert last.turn is not None
    assert left_clean(engine)


class Counted:
    """A runner that records the steps of each pass, in order."""

    def __init__(self) -> None:
        self.ran: list[list[int]] = []

    def run(self, steps: Sequence[Any]) -> list[Tensor | Exception]:
        self.ran.append([step.number for step in steps])
        return [torch.tensor(float(step.number)) for step in steps]

    def release(self, row: object) -> None: ...


@dataclass(eq=False)
class Numbered(Step):
    number: int


@pytest.mark.parametrize("at_once_", [2, 3, 8])
def test_no_row_starves(at_once_: int) -> None:
    """With more rows than fit into a pass, and chunks of prompts in between, every row gets all its steps."""
    runner = Counted()
    scheduler: Scheduler[Numbered] = Scheduler(runner, at_once=at_once_)
    stop = threading.Event()
    chunks = [0, 0]

    def decoding(number: int) -> float:
        seat = Seat(scheduler, admitted=True)
        return sum(float(seat.share(Numbered(number))) for _ in range(60))

    def prefilling(number: int) -> None:
        seat = Seat(scheduler, admitted=True)
        while not stop.is_set():
            with seat.exclusively(None):
                chunks[number] += 1

    others = [threading.Thread(target=prefilling, args=(number,)) for number in range(2)]
    for thread in others:
        thread.start()
    found = at_once(*(lambda number=number: decoding(number) for number in range(5)))
    stop.set()
    for thread in others:
        thread.join()
    assert found == [60.0 * number for number in range(5)]
    assert all(len(ran) <= at_once_ and len(set(ran)) == len(ran) for ran in runner.ran)
    assert min(chunks) > 0
    assert sum(len(ran) for ran in runner.ran) == 300


@pytest.mark.slow
def test_a_long_prompt_does_not_hold_up_a_stream() -> None:
    """A decoding turn gets its next token between two chunks of another turn's prompt."""
    engine = tiny_engine(config=FOLDS)
    lengths: list[int] = []
    handle = engine.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    begun = threading.Event()

    def streaming() -> None:
        for number, _ in enumerate(engine.stream_turn("a", talk("Hi."), sampling=Sampling(max_tokens=200))):
            if number == 3:
                begun.set()

    def prefilling() -> None:
        begun.wait()
        engine.run_turn("b", talk("word " * 300), memory="off", sampling=Sampling(max_tokens=1))

    at_once(streaming, prefilling)
    handle.remove()
    first = lengths.index(128)
    last = len(lengths) - 1 - lengths[::-1].index(128)
    between = lengths[first : last + 1]
    assert between.count(128) > 8 and max(between) == 128
    assert between.count(1) >= between.count(128) - 2


@pytest.mark.slow
async def test_turns_on_one_event_loop_share_passes() -> None:
    engine = tiny_engine(config=FOLDS)
    sampling = Sampling(max_tokens=24, temperature=0)
    names = [f"agent {number}" for number in range(10)]
    wanted = [engine.run_turn(name, talk(f"I am {name}."), sampling=sampling).text for name in names]
    for name in names:
        engine.store.forget(name)
    with widths_of(engine) as widths:
        turns = await asyncio.gather(
            *(engine.arun_turn(name, talk(f"I am {name}."), sampling=sampling) for name in names)
        )
    assert [turn.text for turn in turns] == wanted
    assert max(widths) > 6
    assert left_clean(engine)


def test_a_single_turn_uses_no_shared_buffers() -> None:
    engine = tiny_engine(config=FOLDS)
    with widths_of(engine) as widths:
        turn = engine.run_turn("a", talk("Hi."), sampling=Sampling(max_tokens=12, temperature=0))
    assert set(widths) == {1} and len(engine._speaker.scheduler.runner) == 0  # type: ignore[arg-type]
    assert turn.facts.decode_seconds > 0


def test_a_row_without_a_plain_cache_runs_alone() -> None:
    engine, together = ENGINES["folded"], Rows()
    talkers = [Talker(engine, seed, "off", 8) for seed in range(3)]
    talkers[0].run.cache = empty_cache()
    found = together.run([talker.step() for talker in talkers])
    assert all(isinstance(logits, Tensor) for logits in found) and len(together) == 2
