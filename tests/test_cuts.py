"""Law of chunking: a prompt in chunks gives the same state as the whole prompt, in every variant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference import batching, passes
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message, Sampling
from tiny_engine import tiny_engine

TOKENWISE = AdapterConfig(rank=4, key_shift=True)
PER_MESSAGE = AdapterConfig(rank=4, memory_write_granularity="message_mean")
STATES = {"one state": {}, "two states": {"num_state_heads": 2}}
UPDATES = {
    "standard": {},
    "lambda outside": {"state_update_mode": "lambda_outside", "couple_lambda": False},
    "no lambda": {"state_update_mode": "no_lambda"},
}
# Covers each number of states with each write granularity and with each update mode, but not every combination.
WRITES_AND_UPDATES = product({"token": TOKENWISE, "message": PER_MESSAGE}.items(), UPDATES)
CONFIGS = {
    f"{write}, {states}, {update}": replace(config, **STATES[states], **UPDATES[update])
    for ((write, config), update), states in zip(WRITES_AND_UPDATES, cycle(STATES), strict=False)
}
TALK = [
    Message("system", "Be brief."),
    Message("user", "My dog is Rex, and he is nine."),
    Message("assistant", "Noted."),
    Message("user", "And I live in Oslo."),
]
OTHER = [Message("user", "Hi.")]


@dataclass(frozen=True)
class Subject:
    engine: DeltaMemEngine
    whole: list[MemoryState]


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def subject(request: pytest.FixtureRequest) -> Subject:
    engine = tiny_engine(config=request.param)
    return Subject(engine, outcomes(engine, 10_000))


def close(one: MemoryState, other: MemoryState) -> None:
    torch.testing.assert_close(one.matrices, other.matrices, rtol=2e-4, atol=2e-5)


def outcomes(engine: DeltaMemEngine, parts: int) -> list[MemoryState]:
    """States after absorbing, absorbing in a batch, and a whole turn, with prompts in chunks of `parts` tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "PREFILL_CHUNK", parts)
        patch.setattr(batching, "PREFILL_CHUNK", parts)
        told = engine.absorb(engine.new_state(), TALK)
        batch = engine.absorb_batch([told, engine.new_state()], [OTHER, TALK])
        engine.run_turn("ada", TALK, sampling=Sampling(max_tokens=2))
        turn = engine.store.load("ada").snapshot.state
        engine.store.forget("ada")
    return [told, *batch, turn]


@pytest.mark.slow
@settings(max_examples=2)
@given(parts=st.integers(5, 120))
def test_a_prompt_in_chunks_equals_the_whole_prompt(subject: Subject, parts: int) -> None:
    for cut, whole in zip(outcomes(subject.engine, parts), subject.whole, strict=True):
        close(cut, whole)
