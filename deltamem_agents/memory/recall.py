"""Recall: choose the statements that a reply reads.

A statement is a message with the writes that it left. It is scored by the memory's own queries and keys and by the
words it shares with the question (BM25): before a reply, the query of the question's last token is matched with the
keys of all statements. The state that the reply reads is built from the best statements. No second model is used.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltamem_agents.errors import StateError
from deltamem_agents.memory.key_index import KeyIndex
from deltamem_agents.memory.matcher import LEAST_STRENGTH, STRONG, Matcher, Replacing
from deltamem_agents.memory.word_index import WordIndex
from deltamem_agents.memory.writes import StoredWrites, Writes
from deltamem_agents.types import Role

NEAR = 8
"""How many statements before and after one share their word scores with it: neighbours mostly have one topic."""

NEAR_DECAY = 0.6
"""Factor on a neighbour's share for each step of distance."""

_ONE_SIDE = NEAR_DECAY ** torch.arange(NEAR, dtype=torch.float32)
AROUND = torch.cat([_ONE_SIDE.flip(0), torch.zeros(1), _ONE_SIDE])
"""Weights of a statement's neighbours, (2 · NEAR + 1,); 0 in the middle, for the statement itself."""


class _Compared(NamedTuple):
    """What statements are compared by: scores (S,), which may be read (S,), and the question's words and owners."""

    scores: Tensor
    able: Tensor
    asked: frozenset[int]
    owners: frozenset[int]
    replacing: Replacing


class StatementIndex:
    """A search index of statements, numbered in the order in which they were added, oldest first."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._keys = KeyIndex()
        self._words = WordIndex(matcher.commonness)
        self._by_assistant = array("b")
        self._whose: list[frozenset[int]] = []
        self._strong = array("i")

    def __len__(self) -> int:
        return len(self._strong)

    def add(
        self,
        writes: Writes | StoredWrites | None,
        terms: Sequence[int] | None,
        role: Role,
        owners: frozenset[int] = frozenset(),
    ) -> None:
        """Add the next statement. `terms`: numbers of the words of its text, None if no text is kept.

        `writes`: None for a statement that is found by its words only. `owners`: those of `terms` that tell whose a
        fact is.

        Raises StateError if the writes' layers and heads differ from the matcher's.
        """
        if writes is not None and writes.geometry[:2] != tuple(self.matcher.weights.shape):
            raise StateError(
                f"writes have (layers, heads, r) = {writes.geometry}, "
                f"the matcher expects {tuple(self.matcher.weights.shape)} layers and heads"
            )
        strengths = torch.zeros(0)
        if writes is not None:
            strengths = writes.strengths
            self._keys.add(len(self), writes.key_steps(strengths >= LEAST_STRENGTH).flatten(1))
        self._strong.append(int((strengths >= STRONG).sum()))
        self._by_assistant.append(role == "assistant")
        self._whose.append(owners)
        self._words.add(terms or ())

    def scores(self, queries: Tensor, asked: Sequence[int]) -> Tensor:
        """(S,) float32: each statement's score for a question, higher for a better match.

        `queries`: (tokens, layers, heads, r), the queries of the question's tokens; the last one is that of the token
        before the reply. `asked`: numbers of the question's words.
        """
        return self._scores(self._key_scores(queries), asked, queries)

    def heights(self, queries: Tensor, asked: Sequence[int]) -> Tensor:
        """(S,): what is compared with the matcher's floor. `queries`, `asked`: as in `scores`."""
        return self.matcher.heights(self.scores(queries, asked), self._words.covered(asked))

    def word_scores(self, asked: Sequence[int]) -> NDArray[np.float32]:
        """(S,): BM25 score of each statement for the question's words."""
        return self._words.scores(asked)

    def chosen(
        self,
        queries: Tensor,
        asked: Sequence[int],
        able: Tensor | None = None,
        matcher: Matcher | None = None,
        owners: frozenset[int] = frozenset(),
    ) -> list[tuple[int, float]]:
        """The statements that a reply to the question reads, with their scores, best first; empty if none matches.

        `queries`, `asked`: as in `scores`. `able`: (S,) bool, which statements may be read; None for all. `matcher`:
        overrides how statements are chosen from their scores; the scores stay those of the index's own matcher.
        `owners`: those of `asked` that tell whose fact is asked for.
        """
        matcher = matcher or self.matcher
        overview = matcher.asks_for_all(queries)
        if not len(self) or not (overview or matcher.asks(queries)):
            return []
        keys = self._key_scores(queries)
        scores = self._scores(keys, asked, queries)
        able = torch.ones(len(self), dtype=torch.bool) if able is None else able
        if overview:
            told = [place for place in self._said_by_others() if able[place]][-matcher.overview_most :]
            return [(place, float(scores[place])) for place in reversed(told)]
        heights = matcher.heights(scores, self._words.covered(asked))
        able = able & ((heights >= matcher.floor) | (keys >= matcher.sure))
        if owners and matcher.owned_from:
            exempt = (torch.tensor(self._strong) >= matcher.owned_from) | self._words.wordless()
            able = able & (exempt | self._words.naming(owners))
        if matcher.floor > -math.inf:
            able = self._answering(able & self._words.adding_to(asked), matcher.asks_back(queries))
        found = matcher.best(scores, able)
        if found and matcher.replacing is not None:
            compared = _Compared(scores, able, frozenset(asked), owners, matcher.replacing)
            found = self._with_replacement(found, compared)
        return [
            each
            for at, each in enumerate(found)
            if not at or max(self._strong[found[0][0]], self._strong[each[0]]) >= matcher.margin_from
        ]

    def _answering(self, able: Tensor, asks_back: bool) -> Tensor:
        """(S,) bool: `able` without the assistant's statements, if others are left and the question is not for them."""
        others = able & ~torch.tensor(self._by_assistant, dtype=torch.bool)
        return others if bool(others.any()) and not asks_back else able

    def _scores(self, keys: Tensor, asked: Sequence[int], queries: Tensor) -> Tensor:
        """`scores`, from the statements' key scores (S,)."""
        if not len(self):
            return torch.zeros(0)
        matcher, words = self.matcher, self._words.scores(asked)
        others = matcher.words * words + matcher.near * around(words)
        of_assistant = matcher.advised if matcher.asks_back(queries) else matcher.assistant
        others += of_assistant * np.array(self._by_assistant, np.float32)
        others += matcher.newest * np.arange(len(self), dtype=np.float32) / max(1, len(self) - 1)
        return keys + torch.from_numpy(others)

    def _key_scores(self, queries: Tensor) -> Tensor:
        """(S,): each statement's best weighted q·k; −`weights`.sum() for a statement without an indexed key."""
        weights = self.matcher.weights
        asked = (queries[-1].float() * weights[:, :, None]).flatten()
        return self._keys.best(asked, len(self), without=-float(weights.sum()))

    def _with_replacement(self, best: list[tuple[int, float]], compared: _Compared) -> list[tuple[int, float]]:
        """`best`, with its first statement replaced as in `Replacing`."""
        first = best[0][0]
        chosen = self._newest_update(self._of_closest_owner(first, compared), compared)
        if chosen == first:
            return best
        return [(chosen, float(compared.scores[chosen])), *(each for each in best[1:] if each[0] != chosen)]

    def _of_closest_owner(self, place: int, compared: _Compared) -> int:
        """The statement of the same kind of fact that differs from the question in fewest owners."""
        rule, least = compared.replacing, self._differing_owners(place, compared)
        closer = [
            (differing, -float(compared.scores[other]), other)
            for other in self._rivals(place, compared)
            if (differing := self._differing_owners(other, compared)) < least
            and self._strong[other] < rule.long
            and self._similarity(place, other) >= rule.alike_owner
        ]
        return min(closer)[2] if closer else place

    def _newest_update(self, place: int, compared: _Compared) -> int:
        """The newest statement of the same fact."""
        rule, most = compared.replacing, self._differing_owners(place, compared)
        for other in reversed(self._rivals(place, compared)):
            if other < place or self._differing_owners(other, compared) > most:
                continue
            several = max(self._strong[place], self._strong[other]) >= rule.long
            alike = rule.alike_long if several else rule.alike
            lacking = self._words.lacking(place, other, compared.asked)
            if lacking <= rule.missing and self._similarity(place, other) >= alike:
                return other
        return place

    def _rivals(self, place: int, compared: _Compared) -> list[int]:
        """The statements that may replace one, oldest first."""
        near = compared.able & (compared.scores >= compared.scores[place] - compared.replacing.behind)
        said_by = self._by_assistant
        return [other for other in near.nonzero()[:, 0].tolist() if other != place and said_by[other] <= said_by[place]]

    def _differing_owners(self, place: int, compared: _Compared) -> int:
        """The number of owners that only one of a statement and the question names.

        0 for a statement that says several facts or has no text.
        """
        if self._strong[place] >= compared.replacing.long or not self._words.has_words(place):
            return 0
        missing = sum(not self._words.holds(place, term) for term in compared.owners)
        return missing + len(self._whose[place] - compared.asked)

    def _similarity(self, one: int, other: int) -> float:
        """k·k, mean over layers and heads, of the most similar tokens of two statements; −∞ if one has no key."""
        return self._keys.similarity(one, other) / self.matcher.weights.numel()

    def _said_by_others(self) -> list[int]:
        """Statements with an indexed key that the assistant did not say, ascending."""
        return [place for place in self._keys.statements() if not self._by_assistant[place]]


def around(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(S,): for each statement, the weighted sum of its neighbours' scores; see `AROUND`."""
    return np.convolve(scores, AROUND.numpy())[NEAR : NEAR + len(scores)]
