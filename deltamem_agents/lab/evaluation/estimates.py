"""Measured values with 95 % intervals, from a bootstrap over conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

DRAWS = 2000

Unit: TypeAlias = Literal["share", "ratio", "nats"]


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval. `by_seed`: the value for each evaluation seed."""

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...] = ()
    unit: Unit = "share"


@dataclass(frozen=True)
class Drawn:
    """The origin of each observation. `clusters[i]`: its conversation; observations of one conversation are correlated.

    `seeds[i]`: the evaluation seed that drew the conversation.
    """

    clusters: Sequence[int]
    seeds: Sequence[int]

    def estimate(
        self,
        amounts: Sequence[float],
        weights: Sequence[float] | None = None,
        *,
        unit: Unit = "share",
        shown_as: Callable[[float], float] = lambda mean: mean,
    ) -> Estimate:
        """The weighted mean, sum of `amounts` over sum of `weights` (default 1 each).

        `shown_as`: an increasing function applied to the mean and its interval.
        """
        per = [1.0] * len(amounts) if weights is None else weights
        low, high = bootstrap_interval(amounts, self.clusters, weights=per)
        by_seed = [
            _mean([(a, w) for a, w, own in zip(amounts, per, self.seeds, strict=True) if own == seed])
            for seed in dict.fromkeys(self.seeds)
        ]
        value = _mean(list(zip(amounts, per, strict=True)))
        return Estimate(shown_as(value), shown_as(low), shown_as(high), tuple(map(shown_as, by_seed)), unit)


def bootstrap_interval(
    amounts: Sequence[float],
    clusters: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """95 % interval of the sum of `amounts` over the sum of `weights` (default 1 each), resampling whole clusters.

    `clusters[i]`: the cluster of `amounts[i]`. Questions about one conversation are correlated.
    """
    values, groups = np.asarray(amounts, dtype=float), np.asarray(clusters)
    sizes = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    names, places = np.unique(groups, return_inverse=True)
    sums, totals = (np.bincount(places, each, minlength=len(names)) for each in (values, sizes))
    picked = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    means = sums[picked].sum(axis=1) / totals[picked].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(amount for amount, _ in pairs) / sum(weight for _, weight in pairs)
