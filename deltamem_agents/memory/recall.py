"""Recall: which statements a reply is about, told by the memory's own queries and keys and by the words they share.

A statement is a message with the writes that it left. Where a reply begins, the queries of the question's tokens are
matched with the keys of all statements; the best make the state that the reply reads. No second model takes part.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory.writes import KEY_STEPS, StoredWrites, Writes
from deltamem_agents.types import Role

LEAST_STRENGTH = 0.05
"""Mean write gate from which a token's key takes part in matching: a token written more weakly tells little."""

STRONG = 0.2
"""Mean write gate from which a token counts as strongly written."""

SATURATION, LENGTH_SHARE = 1.2, 0.5
"""k1 and b of BM25."""

NEAR = 8
"""Statements before and behind one whose words count for it too: they are mostly about the same thing."""

NEAR_DECAY = 0.6
"""How much less each further one of them counts."""

KEYS_AT_ONCE = 4096
"""Keys that are matched in one product, which bounds what it needs beside them."""

_ONE_SIDE = NEAR_DECAY ** torch.arange(NEAR, dtype=torch.float32)
AROUND = torch.cat([_ONE_SIDE.flip(0), torch.zeros(1), _ONE_SIDE])
"""What a statement's neighbours count for it, itself in the middle: (2 · NEAR + 1,)."""


@dataclass(frozen=True)
class Replacing:
    """When a newer statement is read in place of an older one that fits better: it says the same anew.

    It does where its keys are at least `alike` the older one's (mean q·k of their most alike tokens, −1 to 1), where it
    lacks at most the share `missing` of the question that the older one has, and where its score reaches the floor and
    is at most `behind` below. A statement in which `long` tokens or more were written strongly says several things, and
    others are alike it in one of them: there `alike_long` takes the place of `alike`.
    """

    alike: float = 1.0
    alike_long: float = 1.0
    long: int = 7
    missing: float = 0.0
    behind: float = 0.0


@dataclass(frozen=True, eq=False)
class Matcher:
    """How a question is matched with statements, and which statements are then read.

    A statement's score is the sum of
    - its best token's q·k, each layer and head times its weight in `weights` (layers, heads), −`weights`.sum() where no
      token was written strongly,
    - `words` times its BM25 score for the question's words, each of which counts as `commonness` says, 1 where it says
      nothing: words that stand in most questions find nothing,
    - `near` times these scores of the statements around it, each further one counting less,
    - `assistant` if the assistant said it itself, `newest` times its age, from 0 for the oldest to 1 for the newest.

    `replacing`: when a newer statement takes the place of the best one. None: never.

    Nothing is read where no score reaches `floor` + `floor_rise` · ln(S): of many statements some fit a question by
    chance. Nor where `asking`, (layers, heads, r), times the mean of the question's queries stays below −`asking_bias`:
    what asks for nothing that could have been told. Further statements are read if their scores lie at most `margin`
    below the best, `most` of them at most.

    `overview` and `overview_bias` tell in the same way what asks for everything at once: the newest `most` statements
    that were not the assistant's own are read then.

    `show_tokens`: tokens of the prompt for chosen statements that return to the window, where the user does not say;
    of those alone in which at least `show_from` tokens were written strongly. What says one thing is read from its
    state word for word; what says several is read better where it is seen.
    """

    weights: Tensor
    words: float = 0.8
    near: float = 0.25
    assistant: float = -1.5
    newest: float = 0.1
    floor: float = -math.inf
    floor_rise: float = 0.0
    margin: float = 0.0
    most: int = 8
    asking: Tensor | None = None
    asking_bias: float = 0.0
    overview: Tensor | None = None
    overview_bias: float = 0.0
    show_tokens: int = 0
    show_from: int = 5
    commonness: Mapping[int, float] = field(default_factory=dict)
    replacing: Replacing | None = None

    def __post_init__(self) -> None:
        if self.weights.ndim != 2:
            raise ConfigError(f"matcher weights have shape {tuple(self.weights.shape)}, expected (layers, heads)")
        for name, judge in (("asking", self.asking), ("overview", self.overview)):
            if judge is not None and judge.shape[:2] != self.weights.shape:
                raise ConfigError(
                    f"the matcher's {name} has shape {tuple(judge.shape)}, "
                    f"expected {tuple(self.weights.shape)} layers and heads"
                )
        if self.most < 1:
            raise ConfigError(f"matcher reads at most {self.most} statements, expected at least 1")

    @classmethod
    def uniform(cls, layers: int, heads: int) -> Matcher:
        """Every layer counts the same and there is no floor: for adapters that nothing was fitted for."""
        return cls(torch.full((layers, heads), 10 / (layers * heads)))

    def asks(self, queries: Tensor) -> bool:
        """Whether a question with queries (tokens, layers, heads, r) asks for something that could have been told."""
        return self.asking is None or _judged(self.asking, self.asking_bias, queries)

    def asks_for_all(self, queries: Tensor) -> bool:
        """Whether a question with queries (tokens, layers, heads, r) asks for everything that was told."""
        return self.overview is not None and _judged(self.overview, self.overview_bias, queries)

    def without_floor(self) -> Matcher:
        """One that chooses something however little it fits."""
        return replace(self, floor=-math.inf, asking=None, overview=None)

    def least(self, statements: int) -> float:
        """The score that one of so many statements needs to be read."""
        return self.floor + self.floor_rise * math.log(statements)

    def best(self, scores: Tensor) -> list[tuple[int, float]]:
        """The statements to read with their scores, best first, from all scores (S,)."""
        if not len(scores):
            return []
        order = scores.argsort(descending=True, stable=True)[: self.most].tolist()
        least = max(self.least(len(scores)), float(scores[order[0]]) - self.margin)
        return [(place, float(scores[place])) for place in order if float(scores[place]) >= least]


def _judged(weights: Tensor, bias: float, queries: Tensor) -> bool:
    return float((queries.float().mean(0) * weights).sum()) + bias >= 0


class StatementIndex:
    """Many statements, ready to be matched. They are numbered in the order they were added, oldest first."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._keys = torch.zeros(0, 0, dtype=torch.int8)
        self._owners = torch.zeros(0, dtype=torch.long)
        self._tokens = 0
        self._by_assistant = array("b")
        self._strong = array("i")
        self._lengths = array("i")
        self._postings: dict[int, tuple[array[int], array[int]]] = defaultdict(lambda: (array("i"), array("i")))

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, writes: Writes | StoredWrites | None, terms: Sequence[int] | None, role: Role) -> None:
        """The next statement. `terms`: numbers of its text's words, None where no text is kept.

        `writes`: None where a statement has its words alone.

        Raises StateError for writes of another geometry than the matcher's.
        """
        if writes is not None and writes.geometry[:2] != tuple(self._matcher.weights.shape):
            raise StateError(
                f"writes have (layers, heads, r) = {writes.geometry}, "
                f"the matcher expects {tuple(self._matcher.weights.shape)} layers and heads"
            )
        number, strengths = len(self), torch.zeros(0)
        if writes is not None:
            strengths = writes.strengths
            self._add_keys(number, writes.key_steps(strengths >= LEAST_STRENGTH).flatten(1))
        self._strong.append(int((strengths >= STRONG).sum()))
        self._by_assistant.append(role == "assistant")
        self._lengths.append(len(terms or ()))
        for term, count in Counter(terms or ()).items():
            numbers, counts = self._postings[term]
            numbers.append(number)
            counts.append(count)

    def _add_keys(self, number: int, keys: Tensor) -> None:
        """Keys (n, layers · heads · r) int8 of a statement. There is room for twice as many whenever it runs out."""
        if not len(keys):
            return
        end = self._tokens + len(keys)
        if end > len(self._owners):
            room = max(2 * end, 64)
            old, owners = self._all_keys()
            self._keys = torch.zeros(room, keys.shape[1], dtype=torch.int8)
            self._owners = torch.zeros(room, dtype=torch.long)
            self._keys[: len(old)], self._owners[: len(old)] = old.view(-1, keys.shape[1]), owners
        self._keys[self._tokens : end], self._owners[self._tokens : end] = keys, number
        self._tokens = end

    def scores(self, queries: Tensor, asked: Sequence[int]) -> Tensor:
        """(S,) float32: each statement's score for a question, higher for a better match.

        `queries`: (tokens, layers, heads, r), the question's, the last of them where the reply begins. `asked`:
        numbers of the question's words.
        """
        if not len(self):
            return torch.zeros(0)
        matcher = self._matcher
        words = self.word_scores(asked)
        others = matcher.words * words + matcher.near * around(words)
        others += matcher.assistant * np.array(self._by_assistant, np.float32)
        others += matcher.newest * np.arange(len(self), dtype=np.float32) / max(1, len(self) - 1)
        return self._by_keys(queries[-1]) + torch.from_numpy(others)

    def chosen(
        self,
        queries: Tensor,
        asked: Sequence[int],
        able: Tensor | None = None,
        matcher: Matcher | None = None,
    ) -> list[tuple[int, float]]:
        """The statements that a reply to the question reads, with their scores, best first; none where none fits.

        Arguments as in `scores`. `able`: (S,) bool, those that may be read, None for all. `matcher`: one that scores as
        this index's does, and chooses otherwise.
        """
        matcher = matcher or self._matcher
        overview = matcher.asks_for_all(queries)
        if not len(self) or not (overview or matcher.asks(queries)):
            return []
        scores = self.scores(queries, asked)
        if able is not None:
            scores = scores.masked_fill(~able, -math.inf)
        if overview:
            told = [place for place in self._told() if scores[place] > -math.inf][-matcher.most :]
            return [(place, float(scores[place])) for place in reversed(told)]
        best = [(place, score) for place, score in matcher.best(scores) if score > -math.inf]
        return self._up_to_date(best, scores, asked, matcher)

    def _up_to_date(
        self, best: list[tuple[int, float]], scores: Tensor, asked: Sequence[int], matcher: Matcher
    ) -> list[tuple[int, float]]:
        """`best`, its first statement replaced by the newest one that says the same anew."""
        replacing = matcher.replacing
        if replacing is None or not best:
            return best
        first, score = best[0]
        least = max(matcher.least(len(scores)), score - replacing.behind)
        near = (scores[first + 1 :] >= least).nonzero()[:, 0] + first + 1
        shares = self._shares(asked) if len(near) else []
        for place in reversed(near.tolist()):
            lacks = sum(share for share, holders in shares if first in holders and place not in holders)
            if self._by_assistant[place] > self._by_assistant[first] or lacks > replacing.missing:
                continue
            several = max(self._strong[first], self._strong[place]) >= replacing.long
            if self._alike(first, place) >= (replacing.alike_long if several else replacing.alike):
                return [(place, float(scores[place])), *(each for each in best[1:] if each[0] != place)]
        return best

    def _told(self) -> list[int]:
        """The statements with a strong token that were not the assistant's own, ascending."""
        _, owners = self._all_keys()
        return [place for place in owners.unique().tolist() if not self._by_assistant[place]]

    def _shares(self, asked: Sequence[int]) -> list[tuple[float, frozenset[int]]]:
        """Of each of the question's words that statements have: its share of the question, and which have it."""
        known = [term for term in set(asked) if term in self._postings]
        weights = [self._weight(term) for term in known]
        total = sum(weights) + sum(self._weight(term) for term in set(asked) - set(known)) or 1.0
        return [
            (weight / total, frozenset(self._postings[term][0])) for term, weight in zip(known, weights, strict=True)
        ]

    def _alike(self, one: int, other: int) -> float:
        """The mean q·k over layers and heads of the two statements' most alike tokens, −1 where one has none."""
        keys = [self._keys_of(number) for number in (one, other)]
        if not all(map(len, keys)):
            return -1.0
        return float((keys[0] @ keys[1].T).max()) / self._matcher.weights.numel()

    def _by_keys(self, queries: Tensor) -> Tensor:
        """(S,): −`weights`.sum() for a statement without a strong token."""
        keys, owners = self._all_keys()
        weights = self._matcher.weights
        asked = (queries.float() * weights[:, :, None]).flatten() / KEY_STEPS
        parts = zip(keys.split(KEYS_AT_ONCE), owners.split(KEYS_AT_ONCE), strict=True)
        best = torch.full((len(self),), -float(weights.sum()))
        for part, own in parts:
            if len(own):
                best = best.scatter_reduce(0, own, part.float() @ asked, "amax")
        return best

    def _all_keys(self) -> tuple[Tensor, Tensor]:
        """The keys of all strong tokens (N, layers · heads · r) int8 and whose they are (N,), ascending."""
        return self._keys[: self._tokens], self._owners[: self._tokens]

    def _keys_of(self, number: int) -> Tensor:
        """One statement's strong keys (n, layers · heads · r) float32."""
        keys, owners = self._all_keys()
        begin, end = torch.searchsorted(owners, torch.tensor([number, number + 1])).tolist()
        return keys[begin:end].float() / KEY_STEPS

    def _weight(self, term: int) -> float:
        """How much a word of a question counts: the rarer, the more."""
        holders = len(self._postings[term][0]) if term in self._postings else 0
        rarity = math.log1p((len(self) - holders + 0.5) / (holders + 0.5))
        return rarity * self._matcher.commonness.get(term, 1.0)

    def word_scores(self, asked: Sequence[int]) -> NDArray[np.float32]:
        """(S,): BM25 among the statements, 0 for one without a word of the question."""
        found = np.zeros(len(self), np.float32)
        lengths = np.array(self._lengths, np.float32)
        room = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / max(1.0, float(lengths.mean())))
        for term in set(asked) & self._postings.keys():
            holders, counts = (np.array(each) for each in self._postings[term])
            weight = self._weight(term) * (SATURATION + 1)
            found[holders] += weight * counts / (counts + room[holders])
        return found


def around(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(S,): the sum of the scores around each, without its own, each further one counting less."""
    return np.convolve(scores, AROUND.numpy())[NEAR : NEAR + len(scores)]
