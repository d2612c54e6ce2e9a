"""Recall: which statements a reply is about, told by the memory's own queries and keys and by the words they share.

A statement is a message with the writes that it left. Where a reply begins, the queries of the question's tokens are
matched with the keys of all statements; the best make the state that the reply reads. No second model takes part.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory.writes import Writes
from deltamem_agents.types import Role

LEAST_STRENGTH = 0.05
"""Mean write gate from which a token's key takes part in matching: a token written more weakly tells little."""

FREQUENCY_SATURATION, LENGTH_SHARE = 1.2, 0.5
"""k1 and b of BM25."""


@dataclass(frozen=True, eq=False)
class Matcher:
    """How a question is matched with statements, and which statements are then read.

    `weights`: (layers, heads) float32, summing to 1: a token's score is the weighted mean of q·k, so from −1 to 1;
    a statement's is its best token's. To it are added `words` times the statement's BM25 score for the question's
    words, and `assistant` for what the assistant said itself. `floor`: below it nothing is read. `margin`: further
    statements are read only if their scores lie at most so far below the best. `most`: statements read at most.
    """

    weights: Tensor
    words: float = 0.1
    assistant: float = -0.2
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

    def without_floor(self) -> Matcher:
        """One that chooses something however little it fits."""
        return replace(self, floor=-math.inf)

    def best(self, scores: Tensor) -> list[tuple[int, float]]:
        """The statements that a reply reads with their scores, best first, from all scores (S,)."""
        if not len(scores):
            return []
        order = scores.argsort(descending=True, stable=True)[: self.most].tolist()
        least = max(self.floor, float(scores[order[0]]) - self.margin)
        return [(place, float(scores[place])) for place in order if float(scores[place]) >= least]


class StatementIndex:
    """Many statements, ready to be matched. They are numbered in the order they were added, oldest first."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._keys: list[Tensor] = []
        self._owners: list[Tensor] = []
        self._by_assistant: list[bool] = []
        self._lengths: list[int] = []
        self._postings: dict[int, array[int]] = defaultdict(lambda: array("i"))
        self._joined: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, writes: Writes | None, terms: Sequence[int] | None, role: Role) -> None:
        """The next statement. `terms`: numbers of its text's words, None where no text is kept.

        `writes`: None where a statement has its words alone.

        Raises StateError for writes of another geometry than the matcher's.
        """
        if writes is not None and writes.geometry[:2] != tuple(self._matcher.weights.shape):
            raise StateError(
                f"writes have (layers, heads, r) = {writes.geometry}, "
                f"the matcher expects {tuple(self._matcher.weights.shape)} layers and heads"
            )
        number = len(self)
        if writes is not None:
            strong = writes.strengths >= LEAST_STRENGTH
            self._keys.append(writes.keys[strong].float().flatten(1))
            self._owners.append(torch.full((int(strong.sum()),), number))
        self._by_assistant.append(role == "assistant")
        self._lengths.append(len(terms or ()))
        for term in terms or ():
            self._postings[term].append(number)
        self._joined = None

    def scores(self, queries: Tensor, asked: Sequence[int]) -> Tensor:
        """(S,) float32: each statement's score for a question, higher for a better match.

        `queries`: (tokens, layers, heads, r), the question's, the last of them where the reply begins. `asked`:
        numbers of the question's words.
        """
        if not len(self):
            return torch.zeros(0)
        behind = torch.tensor(self._by_assistant, dtype=torch.float32) * self._matcher.assistant
        return self._by_keys(queries[-1]) + self._matcher.words * self._by_words(asked) + behind

    def chosen(self, queries: Tensor, asked: Sequence[int]) -> list[tuple[int, float]]:
        """The statements that a reply to the question reads with their scores, best first; none below the floor."""
        return self._matcher.best(self.scores(queries, asked))

    def _by_keys(self, queries: Tensor) -> Tensor:
        """(S,): −1 for a statement without a strong token."""
        if not self._keys:
            return torch.full((len(self),), -1.0)
        if self._joined is None:
            self._joined = torch.cat(self._keys), torch.cat(self._owners)
            self._keys, self._owners = [self._joined[0]], [self._joined[1]]
        keys, owners = self._joined
        weighted = (queries.float() * self._matcher.weights[:, :, None]).flatten()
        return torch.full((len(self),), -1.0).scatter_reduce(0, owners, keys @ weighted, "amax")

    def _by_words(self, asked: Sequence[int]) -> Tensor:
        """(S,): BM25 among the statements, 0 for one without a word of the question."""
        found = np.zeros(len(self), np.float32)
        lengths = np.array(self._lengths, np.float32)
        room = FREQUENCY_SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / max(1.0, float(lengths.mean())))
        for term in set(asked):
            if term not in self._postings:
                continue
            holders, counts = np.unique(np.array(self._postings[term]), return_counts=True)
            rarity = np.log1p((len(self) - len(holders) + 0.5) / (len(holders) + 0.5))
            found[holders] += rarity * counts * (FREQUENCY_SATURATION + 1) / (counts + room[holders])
        return torch.from_numpy(found)
