"""Recall: which statements a reply is about, told by the memory's own queries and keys.

A statement is a message with the writes that it left. Where a reply begins, the queries of that place are matched
with the keys of all statements; the best make the state that the reply reads. No second model takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory.writes import Writes

LEAST_STRENGTH = 0.05
"""Mean write gate from which a token's key takes part in matching: a token written more weakly tells little."""


@dataclass(frozen=True, eq=False)
class Matcher:
    """How a place's queries are matched with statements' keys, and which statements are then read.

    `weights`: (layers, heads) float32, summing to 1: a token's score is the weighted mean of q·k, so from −1 to 1;
    a statement's is its best token's. `floor`: below it nothing is read. `margin`: further statements are read only
    if their scores lie at most so far below the best. `most`: statements read at once at most.
    """

    weights: Tensor
    floor: float = -1.0
    margin: float = 0.0
    most: int = 8

    def __post_init__(self) -> None:
        if self.weights.ndim != 2:
            raise ConfigError(f"matcher weights have shape {tuple(self.weights.shape)}, expected (layers, heads)")
        if self.most < 1:
            raise ConfigError(f"matcher reads at most {self.most} statements, expected at least 1")

    @classmethod
    def uniform(cls, layers: int, heads: int) -> Matcher:
        """Every layer counts the same and there is no floor."""
        return cls(torch.full((layers, heads), 1 / (layers * heads)))

    def chosen(self, scores: Tensor) -> list[int]:
        """Which statements a reply reads, best first, from their scores (S,)."""
        if not len(scores):
            return []
        order = scores.argsort(descending=True)[: self.most].tolist()
        least = max(self.floor, float(scores[order[0]]) - self.margin)
        return [place for place in order if float(scores[place]) >= least]


class KeyIndex:
    """The keys of many statements, ready to be matched. Statements are numbered in the order they were added."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._keys: list[Tensor] = []
        self._owners: list[Tensor] = []
        self._count = 0
        self._joined: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, statements: Sequence[Writes]) -> None:
        """Raises StateError for writes of another geometry than the matcher's."""
        for writes in statements:
            if writes.geometry[:2] != tuple(self._matcher.weights.shape):
                raise StateError(
                    f"writes have (layers, heads, r) = {writes.geometry}, "
                    f"the matcher expects {tuple(self._matcher.weights.shape)} layers and heads"
                )
            strong = writes.strengths >= LEAST_STRENGTH
            keys = writes.keys[strong].float() * self._matcher.weights[:, :, None]
            self._keys.append(keys.flatten(1))
            self._owners.append(torch.full((len(keys),), self._count))
            self._count += 1
        self._joined = None

    def scores(self, queries: Tensor) -> Tensor:
        """(S,) float32: each statement's score for queries (layers, heads, r); −1 for one without a strong token."""
        if self._joined is None and self._keys:
            self._joined = torch.cat(self._keys), torch.cat(self._owners)
            self._keys, self._owners = [self._joined[0]], [self._joined[1]]
        found = torch.full((self._count,), -1.0)
        if self._joined is None or not len(self._joined[0]):
            return found
        keys, owners = self._joined
        return found.scatter_reduce(0, owners, keys @ queries.float().flatten(), "amax")
