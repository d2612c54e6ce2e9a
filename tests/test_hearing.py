"""Laws of `hear`: questions run at the same time share forward passes, with the same results as alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.errors import StateError
from deltamem_agents.inference.collecting import Hearing, hear, heard_chunk, queries_in
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.scheduling import TOGETHER, PromptJob, Scheduler, Seat
from deltamem_agents.loading.int8 import FEW, decode_in_int8
from deltamem_agents.memory.attach import attach
from test_folding import FOLDS
from test_scheduling import ENGINES, Counted, Numbered, ids_of, words
from tiny_engine import tiny_engine
from tiny_models import FAMILIES, random_adapter, tiny_model


class Taken(PromptJob):
    """A job that records which jobs shared each run, and raises if one of them `breaks`."""

    def __init__(self, number: int, tokens: int, kind: object, *, breaks: bool = False) -> None:
        super().__init__(tokens, kind)
        self.number, self.breaks = number, breaks
        self.ran: list[list[int]] = []

    def run(self, jobs: Sequence[PromptJob]) -> None:
        alike = [each for each in jobs if isinstance(each, Taken)]
        for each in alike:
            each.ran.append([other.number for other in alike])
        if any(each.breaks for each in alike):
            raise ZeroDivisionError("the job broke")


def errands_at_once(scheduler: Scheduler[Numbered], jobs: Sequence[Taken]) -> list[Any]:
    """Run jobs that all wait at the same time; returns their exceptions, None for success."""
    seats = [Seat(scheduler, admitted=True) for _ in jobs]
    threads: list[Any] = []
    with scheduler.exclusively():
        found: list[Any] = [None] * len(jobs)

        def one(number: int) -> None:
            try:
                seats[number].run_job(jobs[number])
            except Exception as error:
                found[number] = error

        for number in range(len(jobs)):
            threads.append(threading.Thread(target=one, args=(number,)))
            threads[-1].start()
            while len(scheduler._queue) <= number:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    return found


@given(st.lists(st.tuples(st.integers(1, 600), st.sampled_from(["a", "b", None])), min_size=1, max_size=12))
def test_prompt_jobs_of_one_kind_share_a_pass_up_to_the_limits(drawn: list[tuple[int, str | None]]) -> None:
    scheduler: Scheduler[Numbered] = Scheduler(Counted(), at_once=4)
    jobs = [Taken(number, tokens, kind) for number, (tokens, kind) in enumerate(drawn)]
    assert errands_at_once(scheduler, jobs) == [None] * len(jobs)
    for job in jobs:
        (together,) = job.ran
        shared = [jobs[number] for number in together]
        assert len(shared) == 1 or sum(each.tokens for each in shared) <= TOGETHER
        assert len(shared) <= 4 and {each.kind for each in shared} == {job.kind}
        assert job.kind is not None or len(shared) == 1
    assert not scheduler._busy and not scheduler._queue


def test_a_failing_prompt_job_does_not_affect_the_others() -> None:
    scheduler: Scheduler[Numbered] = Scheduler(Counted(), at_once=8)
    jobs = [Taken(number, 3, "a", breaks=number == 2) for number in range(5)]
    found = errands_at_once(scheduler, jobs)
    assert [isinstance(each, ZeroDivisionError) for each in found] == [number == 2 for number in range(5)]
    assert all(each.ran == [[0, 1, 2, 3, 4], [each.number]] for each in jobs)
    assert not scheduler._busy and not scheduler._queue


@pytest.mark.parametrize(
    ("decoding", "order"),
    [(1, ["prompt 0", "prompt 1", "prompt 2", "token"]), (3, ["prompt 0", "prompt 1", "token"])],
)
def test_short_prompts_run_before_a_decode_pass_up_to_the_limit(decoding: int, order: list[str]) -> None:
    """Their turns join the next decode pass, which waits for few tokens unless many wait for the few that decode."""
    done: list[str] = []

    class Saying(Counted):
        def run(self, steps: Sequence[Any]) -> list[Tensor | Exception]:
            done.append("token")
            return super().run(steps)

    scheduler: Scheduler[Numbered] = Scheduler(Saying(), at_once=8)

    def prefilling(number: int) -> None:
        with Seat(scheduler, admitted=True).exclusively(None, tokens=50):
            done.append(f"prompt {number}")

    def one_token(number: int) -> None:
        Seat(scheduler, admitted=True).share(Numbered(number))

    threads = [threading.Thread(target=one_token, args=(number,)) for number in range(decoding)]
    threads += [threading.Thread(target=prefilling, args=(number,)) for number in range(4)]
    with scheduler.exclusively(tokens=1):
        for number, thread in enumerate(threads):
            thread.start()
            while len(scheduler._due) + len(scheduler._queue) <= number:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert done[: len(order)] == order


@pytest.mark.parametrize("what", ["asks for a token", "leaves", "is late"])
def test_the_turns_of_a_shared_prompt_pass_decode_together(what: str) -> None:
    """The first of them waits for the others, unless they end or take too long."""
    passes: list[int] = []

    class Saying(Counted):
        def run(self, steps: Sequence[Any]) -> list[Tensor | Exception]:
            passes.append(len(steps))
            return super().run(steps)

    scheduler: Scheduler[Numbered] = Scheduler(Saying(), at_once=8)
    jobs = [Taken(number, 3, "a") for number in range(2)]
    assert errands_at_once(scheduler, jobs) == [None, None]
    one, other = (job.seat for job in jobs)
    assert one is not None and other is not None and scheduler._coming == {one, other}
    scheduler._patient_until = time.monotonic() + (0 if what == "is late" else 600)
    first = threading.Thread(target=lambda: one.share(Numbered(0)))
    first.start()
    if what != "is late":
        while not scheduler._due:
            threading.Event().wait(0.001)
        assert first.is_alive() and not passes
        if what == "leaves":
            scheduler.leave(other)
        else:
            other.share(Numbered(1))
    first.join()
    assert passes == ([2] if what == "asks for a token" else [1])
    assert not scheduler._coming


@given(
    lengths=st.lists(st.integers(0, 40), min_size=2, max_size=6),
    kept=st.booleans(),
    seed=st.integers(0, 99),
)
def test_questions_run_together_equal_questions_run_alone(lengths: list[int], kept: bool, seed: int) -> None:
    engine = ENGINES["folded"]
    speaker, lead = engine._speaker, ids_of(seed, 6)
    known = hear(speaker, words(lead, writes=False)).layers if kept else None
    prompts = [
        words((*lead, *ids_of(seed + number, 1 + length)), writes=False) for number, length in enumerate(lengths)
    ]
    if kept:
        prompts = [replace(each, reads=(False,) * 6 + each.reads[6:]) for each in prompts]
    start = 6 if kept else 0
    taken = [heard_chunk(speaker, each.ids[start:], known or ()) for each in prompts]
    assert len({each.kind for each in taken}) == 1
    taken[0].run(taken)
    storages: list[set[int]] = []
    for prompt, each in zip(prompts, taken, strict=True):
        alone = hear(speaker, prompt)
        assert alone.layers is not None
        for layer, wanted in zip(each.layers, alone.layers, strict=True):
            for found, expected in zip(layer, wanted, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert each.call is not None and each.call.inputs is not None
        inputs = each.call.inputs
        together = Hearing(prompt, start, inputs, each.layers)
        queries = queries_in(speaker, together), queries_in(speaker, alone)
        torch.testing.assert_close(*queries, atol=1e-4, rtol=1e-4)
        held = (*inputs.values(), *(part for layer in each.layers for part in layer))
        storages.append({part.untyped_storage().data_ptr() for part in held})
        assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in held)
    # No tensor keeps another agent's tokens alive.
    assert sum(map(len, storages)) == len(set().union(*storages))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_questions_together(family: str) -> None:
    model = tiny_model(family, "eager")
    adapter = random_adapter(model)
    speaker = MemoryModel(model, None, adapter, None)  # type: ignore[arg-type]
    attached = attach(model, adapter)
    ids = [tuple(each % 60 + 1 for each in ids_of(number, 4 + 5 * number)) for number in range(3)]
    taken = [heard_chunk(speaker, each, ()) for each in ids]
    taken[0].run(taken)
    for each in taken:
        alone = hear(speaker, words(each.ids, writes=False))
        for slot, x in alone.inputs.items():
            assert each.call is not None and each.call.inputs is not None
            torch.testing.assert_close(each.call.inputs[slot], x, atol=1e-4, rtol=1e-4)
    assert None not in {each.kind for each in taken}
    attached.detach()
    with pytest.raises(StateError, match="is the adapter attached"):
        hear(speaker, words(ids[0], writes=False))


def test_prompts_short_enough_for_int8_weights_run_alone() -> None:
    """In a batch they would be computed with the model's own weights."""
    engine = tiny_engine(config=FOLDS)
    decode_in_int8(engine.model)
    kinds = [heard_chunk(engine._speaker, ids_of(0, length), ()).kind is None for length in (1, FEW, FEW + 1)]
    assert kinds == [True, True, False]
