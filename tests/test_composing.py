"""Laws of composed conversations. That they are written by the real update rule is tested in test_rehearsal."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.lab.training.composing import (
    ALIKE_SHARE,
    STATEMENT_SHARE,
    Conversation,
    WriteWeights,
    compose_conversation,
    never_told,
    write_composed,
)
from test_rehearsal import WORLD, fresh
from tiny_training import CONFIGS, GATED

SMALL = WORLD.activations(60, seed=4)


@given(facts=st.integers(1, 12), asides=st.integers(0, 4), questions=st.integers(0, 4), seed=st.integers(0, 999))
def test_a_conversation_tells_each_subject_once(facts: int, asides: int, questions: int, seed: int) -> None:
    one = compose_conversation(SMALL, facts, asides, questions, random.Random(seed))
    kinds = [kind for kind, _ in one.order]
    assert sorted(one.tellings) == sorted(index for kind, index in one.order if kind in ("tellings", "statements"))
    assert (kinds.count("asides"), kinds.count("questions")) == (asides, questions)
    about = [subject for telling in one.tellings for subject in SMALL.subjects[telling]]
    assert len(about) == len(set(about)) and 1 <= len(one.tellings) <= facts


def test_some_tellings_are_written_without_the_reply() -> None:
    kinds = [kind for seed in range(50) for kind, _ in compose_conversation(SMALL, 8, 0, 0, random.Random(seed)).order]
    assert set(kinds) == {"tellings", "statements"}
    assert abs(kinds.count("statements") / len(kinds) - STATEMENT_SHARE) < 0.1


CHANGED = replace(SMALL, earlier=tuple(places[:2] for places in SMALL.tellings.contents))


@given(facts=st.integers(1, 12), seed=st.integers(0, 999))
def test_an_earlier_value_comes_before_its_fact(facts: int, seed: int) -> None:
    order = compose_conversation(CHANGED, facts, 2, 2, random.Random(seed)).order
    told = {index: place for place, (kind, index) in enumerate(order) if kind in ("tellings", "statements")}
    earlier = {index: place for place, (kind, index) in enumerate(order) if kind == "earlier"}
    assert set(earlier) == set(told) and all(earlier[index] < told[index] for index in told)


def test_an_earlier_value_is_written() -> None:
    weights = WriteWeights.of(fresh(GATED))
    alone, both = (
        write_composed(GATED, weights, CHANGED, [Conversation((4,), order)])
        for order in ((("tellings", 4),), (("earlier", 4), ("tellings", 4)))
    )
    assert both.gates.shape[1] == alone.gates.shape[1] + 2
    assert float((both.state - alone.state).norm().detach()) > 0
    assert not bool(both.aside.any())


def test_some_conversations_tell_one_attribute_of_several_people() -> None:
    people = replace(SMALL, attributes=tuple(str(number % 3) for number in range(60)))
    people = replace(people, subjects=tuple(frozenset({str(number)}) for number in range(60)))
    shares = []
    for seed in range(200):
        told = compose_conversation(people, 4, 0, 0, random.Random(seed)).tellings
        assert len(told) == 4
        shares.append(len({people.attributes[telling] for telling in told[:3]}) == 1)
    by_chance = (1 - ALIKE_SHARE) / 9
    assert abs(sum(shares) / 200 - ALIKE_SHARE - by_chance) < 0.12


@given(facts=st.integers(1, 6), seed=st.integers(0, 999))
def test_untold_questions_are_about_no_told_subject(facts: int, seed: int) -> None:
    rng = random.Random(seed)
    conversations = [compose_conversation(SMALL, facts, 0, 0, rng) for _ in range(3)]
    pairs = never_told(SMALL, conversations, 8, rng)
    assert len(pairs) == 8
    for row, telling in pairs:
        about = frozenset().union(*(SMALL.subjects[one] for one in conversations[row].tellings))
        assert not about & SMALL.subjects[telling]


def test_half_of_the_untold_questions_have_an_attribute_told_of_others() -> None:
    people = replace(SMALL, attributes=tuple(str(number // 6) for number in range(60)))
    people = replace(people, subjects=tuple(frozenset({str(number)}) for number in range(60)))
    pairs = never_told(people, [Conversation((0, 20), ())], 200, random.Random(0))
    near = sum(people.attributes[telling] in ("0", "3") for _, telling in pairs)
    assert 100 <= near < 140


def test_filler_tokens_are_marked() -> None:
    order = (("questions", 2), ("tellings", 1), ("asides", 3), ("tellings", 4))
    written = write_composed(GATED, WriteWeights.of(fresh(GATED)), SMALL, [Conversation((1, 4), order)])
    quiet = len(SMALL.questions.contents[2]) + len(SMALL.asides.contents[3])
    assert (int(written.aside.sum()), written.gates.shape[1]) == (quiet, quiet + told_exchanges((1, 4)))


def told_exchanges(tellings: Sequence[int]) -> int:
    return sum(len(SMALL.tellings.contents[index]) for index in tellings)


def test_writing_uses_the_adapters_learned_keep_gate() -> None:
    config = CONFIGS["every gate and head"]
    adapter = fresh(config)
    conversation = [Conversation((1,), (("tellings", 1), ("asides", 3), ("tellings", 4)))]
    states = []
    for bias in (6.0, -2.0):
        for slot in range(len(adapter.indices)):
            adapter.layer(slot).lambda_bias.data.fill_(bias)
        states.append(write_composed(config, WriteWeights.of(adapter), SMALL, conversation).state)
    assert float(states[1].norm()) < 0.9 * float(states[0].norm())
