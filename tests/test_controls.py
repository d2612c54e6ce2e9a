"""Laws of the controls: each arm reads the memory that its name says."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.controls import Arm, arm_memories, strangers
from deltamem_agents.memory.state import MemoryState

answer_sets = st.lists(st.frozensets(st.sampled_from("abcd"), min_size=1, max_size=3), min_size=2, max_size=8)


def some_states(count: int = 4) -> list[MemoryState]:
    generator = torch.Generator().manual_seed(0)
    return [MemoryState(torch.randn(1, 3, 2, 4, 4, generator=generator) * (i + 1)) for i in range(count)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# Choosing the wrong conversation.


@given(answer_sets)
def test_a_stranger_is_another_episode_with_the_fewest_shared_answers(answers: list[frozenset[str]]) -> None:
    for mine, found in enumerate(strangers(answers)):
        assert found != mine
        others = [other for other in range(len(answers)) if other != mine]
        assert len(answers[mine] & answers[found]) == min(len(answers[mine] & answers[other]) for other in others)


@given(answer_sets)
def test_a_stranger_shares_answers_only_if_all_others_do(answers: list[frozenset[str]]) -> None:
    for mine, found in enumerate(strangers(answers)):
        if any(answers[mine].isdisjoint(other) for other in answers):
            assert answers[mine].isdisjoint(answers[found])


def test_the_nearest_stranger_is_taken() -> None:
    a, b = frozenset("a"), frozenset("b")
    assert strangers([a, b, a, b]) == [1, 2, 3, 0]
    assert strangers([a, a, b]) == [2, 2, 0]
    assert strangers([a, a]) == [1, 0]
    assert strangers([frozenset("ab"), frozenset("abc"), frozenset("ad")])[0] == 2


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_conversation_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"wrong_conversation needs another conversation, and there is {count}"):
        strangers([frozenset("a")] * count)


# What each arm reads.


def test_the_memory_arm_reads_each_episodes_own_state() -> None:
    states = some_states()
    found = arm_memories(Arm.MEMORY, states, [], generator())
    assert found is not None
    assert all(one is other for one, other in zip(found, states, strict=True))


def test_off_reads_no_state_and_zero_a_state_of_zeros() -> None:
    states = some_states()
    assert arm_memories(Arm.OFF, states, [], generator()) is None
    zeros = arm_memories(Arm.ZERO, states, [], generator())
    assert zeros is not None
    assert [zero.geometry for zero in zeros] == [state.geometry for state in states]
    assert all(zero.norm() == 0 for zero in zeros)
    assert all(state.norm() > 0 for state in states)


def test_the_wrong_conversation_is_the_strangers_state() -> None:
    states = some_states()
    found = arm_memories(Arm.WRONG, states, [2, 3, 1, 0], generator())
    assert found is not None
    assert [states.index(state) for state in found] == [2, 3, 1, 0]


def test_a_random_state_has_the_right_ones_norm_in_every_layer_and_head() -> None:
    states = some_states()
    found = arm_memories(Arm.RANDOM, states, [], generator())
    assert found is not None
    for one, other in zip(found, states, strict=True):
        torch.testing.assert_close(one.matrices.norm(dim=(-2, -1)), other.matrices.norm(dim=(-2, -1)))
        assert not torch.allclose(one.matrices, other.matrices)
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one.matrices / one.norm(), other.matrices / other.norm())


def test_a_random_state_is_uncorrelated_with_the_right_one() -> None:
    state = MemoryState(torch.randn(1, 24, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = arm_memories(Arm.RANDOM, [state], [], generator())
    assert found is not None
    cosine = (found[0].matrices * state.matrices).sum() / state.norm() ** 2
    assert abs(float(cosine)) < 0.1


def test_random_states_are_determined_by_their_generator() -> None:
    first, second = (arm_memories(Arm.RANDOM, some_states(), [], generator()) for _ in range(2))
    assert first is not None and second is not None
    assert all(torch.equal(one.matrices, other.matrices) for one, other in zip(first, second, strict=True))
