"""The words of statements, scored by BM25 for a question."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SATURATION, LENGTH_SHARE = 1.2, 0.5
"""k1 and b of BM25."""


class WordIndex:
    """The words of S statements, numbered in the order in which they were added.

    A word is a number. `commonness`: a factor on the weight of single words, 1 for words that it lacks.
    """

    def __init__(self, commonness: Mapping[int, float]) -> None:
        self._commonness = commonness
        self._lengths = array("i")
        self._distinct = array("i")
        self._postings: dict[int, tuple[array[int], array[int]]] = defaultdict(lambda: (array("i"), array("i")))

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, words: Sequence[int]) -> None:
        """Add the next statement."""
        number = len(self)
        counted = Counter(words)
        self._lengths.append(len(words))
        self._distinct.append(len(counted))
        for word, count in counted.items():
            numbers, counts = self._postings[word]
            numbers.append(number)
            counts.append(count)

    def has_words(self, number: int) -> bool:
        """Whether a statement has any word."""
        return bool(self._lengths[number])

    def holds(self, number: int, word: int) -> bool:
        """Whether a statement has a word."""
        holders = self._holders(word)
        at = bisect_left(holders, number)
        return at < len(holders) and holders[at] == number

    def scores(self, asked: Collection[int]) -> NDArray[np.float32]:
        """(S,): BM25 score of each statement; 0 for a statement that has no word of the question."""
        found = np.zeros(len(self), np.float32)
        lengths = np.array(self._lengths, np.float32)
        room = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / max(1.0, float(lengths.mean())))
        for word in set(asked) & self._postings.keys():
            holders, counts = (np.array(each) for each in self._postings[word])
            found[holders] += self._weight(word) * (SATURATION + 1) * counts / (counts + room[holders])
        return found

    def covered(self, asked: Collection[int]) -> Tensor:
        """(S,): the share of the question's words, by weight, that each statement has."""
        weights = {word: self._weight(word) for word in set(asked)}
        total = sum(weights.values()) or 1.0
        covered = np.zeros(len(self), np.float32)
        for word in weights.keys() & self._postings.keys():
            covered[np.array(self._holders(word))] += weights[word] / total
        return torch.from_numpy(covered)

    def naming(self, words: Collection[int]) -> Tensor:
        """(S,) bool: the statements that have any of these words."""
        found = torch.zeros(len(self), dtype=torch.bool)
        for word in words:
            found[torch.tensor(self._holders(word), dtype=torch.long)] = True
        return found

    def adding_to(self, asked: Collection[int]) -> Tensor:
        """(S,) bool: the statements that have a word besides the question's, or no words at all."""
        shared = np.zeros(len(self), np.int32)
        for word in set(asked):
            shared[np.array(self._holders(word), np.int64)] += 1
        distinct = np.array(self._distinct, np.int32)
        return torch.from_numpy((shared < distinct) | (distinct == 0))

    def wordless(self) -> Tensor:
        """(S,) bool: the statements without words."""
        return torch.tensor(self._lengths) == 0

    def lacking(self, one: int, other: int, asked: Collection[int]) -> float:
        """Of the question's words that are in `one` or `other`, the share, by weight, that is only in `one`.

        Commonness counts twice here: a common word ("tell", "about") that only one of them has does not mean that they
        are about different things.
        """
        total = only = 0.0
        for word in asked:
            in_one, in_other = self.holds(one, word), self.holds(other, word)
            weight = self._weight(word) * self._commonness.get(word, 1.0)
            total += weight * (in_one or in_other)
            only += weight * (in_one and not in_other)
        return only / total if total else 0.0

    def _weight(self, word: int) -> float:
        """The weight of a question's word: the rarer, the higher (BM25's idf), times its commonness."""
        holders = len(self._holders(word))
        rarity = math.log1p((len(self) - holders + 0.5) / (holders + 0.5))
        return rarity * self._commonness.get(word, 1.0)

    def _holders(self, word: int) -> Sequence[int]:
        """The statements that have a word, ascending."""
        return self._postings[word][0] if word in self._postings else ()
