"""Laws of estimates: their values, intervals and clusters."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.lab.evaluation.estimates import Drawn, bootstrap_interval

outcomes = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=60)


@given(outcomes, st.integers(0, 5))
def test_an_interval_contains_the_mean_and_is_deterministic(right: list[tuple[bool, int]], seed: int) -> None:
    values, clusters = [float(hit) for hit, _ in right], [group for _, group in right]
    low, high = bootstrap_interval(values, clusters, seed=seed, draws=300)
    assert (low, high) == bootstrap_interval(values, clusters, seed=seed, draws=300)
    assert 0.0 <= low <= high <= 1.0
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9


@given(st.booleans(), st.integers(1, 30))
def test_equal_outcomes_give_a_point_interval(hit: bool, count: int) -> None:
    assert bootstrap_interval([float(hit)] * count, list(range(count))) == (float(hit), float(hit))


def test_an_interval_agrees_with_the_normal_approximation() -> None:
    values = [float(i % 10 < 3) for i in range(1000)]
    low, high = bootstrap_interval(values, list(range(1000)))
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.005)
    assert high == pytest.approx(0.3 + half, abs=0.005)


def test_an_interval_shrinks_with_the_number_of_episodes() -> None:
    def width(count: int) -> float:
        low, high = bootstrap_interval([float(i % 2) for i in range(count)], list(range(count)))
        return high - low

    widths = [width(count) for count in (20, 80, 320, 1280)]
    for wide, narrow in itertools.pairwise(widths):
        assert narrow == pytest.approx(wide / 2, rel=0.2)


def test_questions_of_one_episode_count_as_one_observation() -> None:
    values = [float(i % 2) for i in range(40) for _ in range(4)]
    together = bootstrap_interval(values, [i for i in range(40) for _ in range(4)])
    apart = bootstrap_interval(values, list(range(160)))
    assert together[1] - together[0] == pytest.approx(2 * (apart[1] - apart[0]), rel=0.2)


def test_an_interval_is_for_the_mean_over_questions() -> None:
    """An episode weighs as much as its number of questions."""
    values = [1.0] * 90 + [0.0] * 10
    clusters = [i // 9 for i in range(90)] + list(range(10, 20))
    low, high = bootstrap_interval(values, clusters)
    assert low < 0.9 < high
    assert low > 0.6


def test_nineteen_intervals_in_twenty_contain_the_truth() -> None:
    """Checked on coins of known bias: 200 experiments of 300 throws, three per conversation."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        coins = (rng.random(300) < 0.8).astype(float)
        low, high = bootstrap_interval(coins.tolist(), [i // 3 for i in range(300)], draws=400)
        held += low <= 0.8 <= high
    assert 0.9 <= held / 200 <= 0.99


@given(outcomes)
def test_weights_of_one_change_nothing(right: list[tuple[bool, int]]) -> None:
    values, clusters = [float(hit) for hit, _ in right], [group for _, group in right]
    plain = bootstrap_interval(values, clusters, draws=200)
    assert bootstrap_interval(values, clusters, weights=[1.0] * len(values), draws=200) == plain


def test_a_weighted_mean_is_a_ratio_of_sums() -> None:
    drawn = Drawn([0, 1, 2], [1, 1, 2])
    found = drawn.estimate([3.0, 1.0, 10.0], [1.0, 1.0, 8.0], unit="nats")
    assert found.value == pytest.approx(1.4)
    assert found.by_seed == pytest.approx((2.0, 1.25))
    assert found.unit == "nats"


def test_zero_weights_change_nothing() -> None:
    with_it = Drawn([0, 1, 1], [1, 1, 1]).estimate([1.0, 2.0, 0.0], [2.0, 2.0, 0.0])
    assert with_it == Drawn([0, 1], [1, 1]).estimate([1.0, 2.0], [2.0, 2.0])


def test_a_perplexitys_interval_contains_it() -> None:
    found = Drawn([0, 1, 2, 3], [1, 2, 1, 2]).estimate([0.1, -0.1, 0.3, 0.2], unit="ratio", shown_as=math.exp)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(math.exp(0.125))
    assert found.by_seed == pytest.approx((math.exp(0.2), math.exp(0.05)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=30))
def test_a_seeds_value_is_its_own_mean(rows: list[tuple[bool, int, int]]) -> None:
    drawn = Drawn([group for _, group, _ in rows], [seed for *_, seed in rows])
    found = drawn.estimate([float(hit) for hit, *_ in rows])
    seeds = list(dict.fromkeys(seed for *_, seed in rows))
    means = [np.mean([hit for hit, _, own in rows if own == seed]) for seed in seeds]
    assert found.by_seed == pytest.approx(tuple(means))
