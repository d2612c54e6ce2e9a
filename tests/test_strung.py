"""Laws of conversations strung together. That they are written by the real update is in test_rehearsal."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.training.strung import (
    STATEMENT_SHARE,
    Conversation,
    WriteWeights,
    string_together,
    write_strung,
)
from test_rehearsal import WORLD, fresh
from tiny_training import CONFIGS, GATED

SMALL = WORLD.activations(60, seed=4)


@given(facts=st.integers(1, 12), asides=st.integers(0, 4), questions=st.integers(0, 4), seed=st.integers(0, 999))
def test_a_conversation_tells_each_subject_once(facts: int, asides: int, questions: int, seed: int) -> None:
    one = string_together(SMALL, facts, asides, questions, random.Random(seed))
    kinds = [kind for kind, _ in one.order]
    assert sorted(one.tellings) == sorted(index for kind, index in one.order if kind in ("tellings", "statements"))
    assert (kinds.count("asides"), kinds.count("questions")) == (asides, questions)
    about = [subject for telling in one.tellings for subject in SMALL.subjects[telling]]
    assert len(about) == len(set(about)) and 1 <= len(one.tellings) <= facts


def test_of_some_tellings_only_the_message_that_tells_is_written() -> None:
    kinds = [kind for seed in range(50) for kind, _ in string_together(SMALL, 8, 0, 0, random.Random(seed)).order]
    assert set(kinds) == {"tellings", "statements"}
    assert abs(kinds.count("statements") / len(kinds) - STATEMENT_SHARE) < 0.1


def test_told_tokens_and_those_that_tell_nothing_are_told_apart() -> None:
    order = (("questions", 2), ("tellings", 1), ("asides", 3), ("tellings", 4))
    written = write_strung(GATED, WriteWeights.of(fresh(GATED)), SMALL, [Conversation((1, 4), order)])
    quiet = len(SMALL.questions.contents[2]) + len(SMALL.asides.contents[3])
    told = sum(int(SMALL.tellings.told[SMALL.tellings.contents[index]].sum()) for index in (1, 4))
    assert (int(written.aside.sum()), int(written.told.sum())) == (quiet, told)
    assert not bool((written.told & written.aside).any())


def test_gates_that_open_on_told_values_alone_cost_nothing() -> None:
    adapter = fresh(GATED)
    order = (("tellings", 1), ("asides", 3))
    written = write_strung(GATED, WriteWeights.of(adapter), SMALL, [Conversation((1,), order)])
    sure = torch.where(written.told[None, :, None], 30.0, -30.0).expand_as(written.gates)
    right = type(written)(written.state, sure, written.told, written.aside).gate_loss()
    wrong = type(written)(written.state, -sure, written.told, written.aside).gate_loss()
    assert float(right) < 1e-6 < 1 < float(written.gate_loss()) + float(wrong)


def test_the_keep_gate_that_an_adapter_learned_is_its_own() -> None:
    config = CONFIGS["every gate and head"]
    adapter = fresh(config)
    conversation = [Conversation((1,), (("tellings", 1), ("asides", 3), ("tellings", 4)))]
    states = []
    for bias in (6.0, -2.0):
        for slot in range(len(adapter.indices)):
            adapter.layer(slot).lambda_bias.data.fill_(bias)
        states.append(write_strung(config, WriteWeights.of(adapter), SMALL, conversation).state)
    assert float(states[1].norm()) < 0.9 * float(states[0].norm())
