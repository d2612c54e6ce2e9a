"""Recall: choose the statements that a reply reads.

A statement is a message with the writes that it left. It is scored by the memory's own queries and keys and by the
words it shares with the question (BM25): before a reply, the query of the question's last token is matched with the
keys of all statements. The state that the reply reads is built from the best statements. No second model is used.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory.writes import KEY_STEPS, StoredWrites, Writes
from deltamem_agents.types import Role

LEAST_STRENGTH = 0.05
"""Least mean write gate of a token whose key is matched. Tokens written more weakly carry little information."""

STRONG = 0.2
"""Least mean write gate of a strongly written token."""

SATURATION, LENGTH_SHARE = 1.2, 0.5
"""k1 and b of BM25."""

NEAR = 8
"""How many statements before and after one share their word scores with it: neighbours mostly have one topic."""

NEAR_DECAY = 0.6
"""Factor on a neighbour's share for each step of distance."""

KEYS_AT_ONCE = 4096
"""Keys per matrix product, which bounds the temporary memory."""

_ONE_SIDE = NEAR_DECAY ** torch.arange(NEAR, dtype=torch.float32)
AROUND = torch.cat([_ONE_SIDE.flip(0), torch.zeros(1), _ONE_SIDE])
"""Weights of a statement's neighbours, (2 · NEAR + 1,); 0 in the middle, for the statement itself."""


@dataclass(frozen=True)
class Replacing:
    """When another statement takes the place of the best-matching one, because both say the same kind of fact.

    There are two reasons. The first is checked first.

    - *Whose fact it is.* The other statement differs from the question in fewer owners, and the similarity of their
      keys is at least `alike_owner`. Owners are words such as "sister" and "Tom". An owner differs if only one of the
      statement and the question names it. A statement with `long` or more strongly written tokens says several facts,
      so this rule leaves it alone.
    - *An update of the same fact.* The other statement is newer and differs in no more owners. The similarity of their
      keys is at least `alike`, or `alike_long` if one of them has `long` or more strongly written tokens. Of the words
      that the question shares with one of the two, at most a share `missing` is only in the older one.

    Both reach the floor, and the other's score is at most `behind` lower. Similarity is the mean k·k of the most
    similar pair of tokens, −1 to 1.
    """

    alike: float = 1.0
    alike_long: float = 1.0
    alike_owner: float = math.inf
    long: int = 7
    missing: float = 0.0
    behind: float = 0.0


@dataclass(frozen=True, eq=False)
class Matcher:
    """How statements are scored for a question, and which of them are read.

    A statement's score is the sum of
    - the q·k of its best-matching token, weighted per layer and head by `weights` (layers, heads); −`weights`.sum() if
      no token's mean write gate reaches `LEAST_STRENGTH`,
    - `words` times its BM25 score for the question's words. `commonness` is a factor on single words, 1 for words that
      it lacks: words that occur in most questions should match nothing,
    - `near` times the BM25 scores of the statements around it, which count less the further away they are,
    - `assistant` if the assistant said it, and `newest` times its position, from 0 for the oldest to 1 for the newest.

    `replacing`: when another statement replaces the best one; None for never. `relations` and `openers`: numbers of
    words that name people ("sister"), and of words that begin sentences without naming anybody ("my", "yesterday").
    Both are needed to know whose fact a statement is.

    Nothing is read in two cases. No statement reaches the floor: its score plus `coverage` times its share of the
    question's words is below `floor` + `floor_rise` · ln(S) for S statements, since among many some match by chance,
    and its q·k is below `sure`. Or the question asks for nothing that could have been told: a linear classifier,
    `asking` (layers, heads, r) on the mean of the question's queries plus `asking_bias`, is below 0.

    A question about somebody else is not answered by what was told of another. If it names owners, statements that name
    none of them and have fewer than `owned_from` strongly written tokens are not read. Statements without text are.

    Otherwise up to `most` statements are read: the best, and those that reach the floor and whose scores are at most
    `margin` below it. One of the two must have at least `margin_from` strongly written tokens: two single facts with
    like scores are mostly about two people.

    `overview` and `overview_bias` are the classifier of questions that ask for everything. The newest `overview_most`
    statements that the assistant did not say are then read. `advice` and `advice_bias` are that of questions for what
    the assistant said ("What did you recommend?"): then `advised` is used in place of `assistant`.

    `show_tokens`: default prompt budget, in tokens, for chosen statements whose text is put back into the window. A
    statement that is read alone is shown only if it holds several facts, which is if it has at least `show_from`
    strongly written tokens: a single fact is read exactly from the state, several are read better as text.
    """

    weights: Tensor
    words: float = 0.8
    near: float = 0.25
    assistant: float = -1.5
    newest: float = 0.1
    floor: float = -math.inf
    floor_rise: float = 0.0
    coverage: float = 0.0
    sure: float = math.inf
    margin: float = 0.0
    most: int = 8
    margin_from: int = 0
    owned_from: int = 0
    asking: Tensor | None = None
    asking_bias: float = 0.0
    overview: Tensor | None = None
    overview_bias: float = 0.0
    overview_most: int = 8
    advice: Tensor | None = None
    advice_bias: float = 0.0
    advised: float = 0.0
    show_tokens: int = 0
    show_from: int = 5
    commonness: Mapping[int, float] = field(default_factory=dict)
    replacing: Replacing | None = None
    relations: frozenset[int] = frozenset()
    openers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.weights.ndim != 2:
            raise ConfigError(f"matcher weights have shape {tuple(self.weights.shape)}, expected (layers, heads)")
        for name, judge in (("asking", self.asking), ("overview", self.overview), ("advice", self.advice)):
            if judge is not None and judge.shape[:2] != self.weights.shape:
                raise ConfigError(
                    f"the matcher's {name} has shape {tuple(judge.shape)}, "
                    f"expected {tuple(self.weights.shape)} layers and heads"
                )
        if self.most < 1:
            raise ConfigError(f"matcher reads at most {self.most} statements, expected at least 1")

    @classmethod
    def uniform(cls, layers: int, heads: int) -> Matcher:
        """Equal weights for all layers and heads and no floor, for adapters without a fitted matcher."""
        return cls(torch.full((layers, heads), 10 / (layers * heads)))

    def asks(self, queries: Tensor) -> bool:
        """Whether a question with queries (tokens, layers, heads, r) asks for something that could have been told."""
        return self.asking is None or _is_positive(self.asking, self.asking_bias, queries)

    def asks_for_all(self, queries: Tensor) -> bool:
        """Whether a question with queries (tokens, layers, heads, r) asks for everything that was told at once."""
        return self.overview is not None and _is_positive(self.overview, self.overview_bias, queries)

    def of_assistant(self, queries: Tensor) -> float:
        """What a question with queries (tokens, layers, heads, r) adds to the scores of the assistant's statements."""
        asks_back = self.advice is not None and _is_positive(self.advice, self.advice_bias, queries)
        return self.advised if asks_back else self.assistant

    def without_floor(self) -> Matcher:
        """A copy that always chooses at least one statement, however low its score."""
        return replace(self, floor=-math.inf, asking=None, overview=None, owned_from=0)

    def heights(self, scores: Tensor, covered: Tensor) -> Tensor:
        """(S,): what is compared with `floor`, for statements with these scores (S,).

        `covered`: (S,), the share of the question's words that each statement has.
        """
        return scores + self.coverage * covered - self.floor_rise * math.log(max(1, len(scores)))

    def best(self, scores: Tensor, able: Tensor) -> list[tuple[int, float]]:
        """The statements to read and their scores, best first.

        `scores`: (S,), the scores of all statements. `able`: (S,) bool, which of them may be read.
        """
        scores = scores.masked_fill(~able, -math.inf)
        order = scores.argsort(descending=True, stable=True)[: min(self.most, int(able.sum()))].tolist()
        found = [(place, float(scores[place])) for place in order]
        return [(place, score) for place, score in found if score >= found[0][1] - self.margin]


def _is_positive(weights: Tensor, bias: float, queries: Tensor) -> bool:
    return float((queries.float().mean(0) * weights).sum()) + bias >= 0


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
        self._keys = torch.zeros(0, 0, dtype=torch.int8)
        self._owners = torch.zeros(0, dtype=torch.long)
        self._tokens = 0
        self._by_assistant = array("b")
        self._whose: list[frozenset[int]] = []
        self._strong = array("i")
        self._lengths = array("i")
        self._postings: dict[int, tuple[array[int], array[int]]] = defaultdict(lambda: (array("i"), array("i")))

    def __len__(self) -> int:
        return len(self._lengths)

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
        number, strengths = len(self), torch.zeros(0)
        if writes is not None:
            strengths = writes.strengths
            self._add_keys(number, writes.key_steps(strengths >= LEAST_STRENGTH).flatten(1))
        self._strong.append(int((strengths >= STRONG).sum()))
        self._by_assistant.append(role == "assistant")
        self._whose.append(owners)
        self._lengths.append(len(terms or ()))
        for term, count in Counter(terms or ()).items():
            numbers, counts = self._postings[term]
            numbers.append(number)
            counts.append(count)

    def _add_keys(self, number: int, keys: Tensor) -> None:
        """Add the keys (n, layers · heads · r) int8 of a statement. The buffer doubles when it is full."""
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

        `queries`: (tokens, layers, heads, r), the queries of the question's tokens; the last one is that of the token
        before the reply. `asked`: numbers of the question's words.
        """
        return self._scores(self._key_scores(queries[-1]), asked, self.matcher.of_assistant(queries))

    def _scores(self, keys: Tensor, asked: Sequence[int], of_assistant: float) -> Tensor:
        """`scores` from the statements' weighted q·k (S,), with what is added to those of the assistant."""
        if not len(self):
            return torch.zeros(0)
        matcher = self.matcher
        words = self.word_scores(asked)
        others = matcher.words * words + matcher.near * around(words)
        others += of_assistant * np.array(self._by_assistant, np.float32)
        others += matcher.newest * np.arange(len(self), dtype=np.float32) / max(1, len(self) - 1)
        return keys + torch.from_numpy(others)

    def heights(self, queries: Tensor, asked: Sequence[int]) -> Tensor:
        """(S,): what is compared with the matcher's floor. `queries`, `asked`: as in `scores`."""
        return self.matcher.heights(self.scores(queries, asked), self._covered(self._shares(asked)))

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
        keys = self._key_scores(queries[-1])
        scores = self._scores(keys, asked, self.matcher.of_assistant(queries))
        able = torch.ones(len(self), dtype=torch.bool) if able is None else able
        if overview:
            told = [place for place in self._said_by_others() if able[place]][-matcher.overview_most :]
            return [(place, float(scores[place])) for place in reversed(told)]
        shares = self._shares(asked)
        able = able & ((matcher.heights(scores, self._covered(shares)) >= matcher.floor) | (keys >= matcher.sure))
        if owners and matcher.owned_from:
            exempt = (torch.tensor(self._strong) >= matcher.owned_from) | (torch.tensor(self._lengths) == 0)
            able = able & (exempt | self._naming(owners))
        found = matcher.best(scores, able)
        if found and matcher.replacing is not None:
            compared = _Compared(scores, able, frozenset(asked), owners, matcher.replacing)
            found = self._with_replacement(found, compared)
        return [
            each
            for at, each in enumerate(found)
            if not at or max(self._strong[found[0][0]], self._strong[each[0]]) >= matcher.margin_from
        ]

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
            if self._lacks(place, other, compared.asked) <= rule.missing and self._similarity(place, other) >= (
                rule.alike_long if several else rule.alike
            ):
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
        if self._strong[place] >= compared.replacing.long or not self._lengths[place]:
            return 0
        missing = sum(not _has(self._holders(term), place) for term in compared.owners)
        return missing + len(self._whose[place] - compared.asked)

    def _lacks(self, one: int, other: int, asked: Collection[int]) -> float:
        """Of the question's words that are in `one` or `other`, the share, by weight, that is only in `one`.

        Commonness counts twice here: a common word ("tell", "about") that only one of them has does not mean that they
        are about different things.
        """
        found = {term: (_has(self._holders(term), one), _has(self._holders(term), other)) for term in asked}
        weights = {term: self._weight(term) * self.matcher.commonness.get(term, 1.0) for term in asked}
        total = sum(weights[term] for term, (in_one, in_other) in found.items() if in_one or in_other)
        only = sum(weights[term] for term, (in_one, in_other) in found.items() if in_one and not in_other)
        return only / total if total else 0.0

    def _naming(self, terms: Collection[int]) -> Tensor:
        """(S,) bool: the statements that have any of these words."""
        found = torch.zeros(len(self), dtype=torch.bool)
        for term in terms:
            found[torch.tensor(self._holders(term), dtype=torch.long)] = True
        return found

    def _holders(self, term: int) -> Sequence[int]:
        """The statements that have a word, ascending."""
        return self._postings[term][0] if term in self._postings else ()

    def _said_by_others(self) -> list[int]:
        """Statements with an indexed key that the assistant did not say, ascending."""
        _, owners = self._all_keys()
        return [place for place in owners.unique().tolist() if not self._by_assistant[place]]

    def _shares(self, asked: Sequence[int]) -> dict[int, float]:
        """The share of the question's weight that each of its words has, of the words that occur in statements."""
        weights = {term: self._weight(term) for term in set(asked)}
        total = sum(weights.values()) or 1.0
        return {term: weight / total for term, weight in weights.items() if term in self._postings}

    def _covered(self, shares: Mapping[int, float]) -> Tensor:
        """(S,): the share of the question's words, by weight, that each statement has."""
        covered = np.zeros(len(self), np.float32)
        for term, share in shares.items():
            covered[np.array(self._postings[term][0])] += share
        return torch.from_numpy(covered)

    def _similarity(self, one: int, other: int) -> float:
        """k·k, mean over layers and heads, of the most similar tokens of two statements; −1 if one has no key."""
        keys = [self._keys_of(number) for number in (one, other)]
        if not all(map(len, keys)):
            return -1.0
        return float((keys[0] @ keys[1].T).max()) / self.matcher.weights.numel()

    def _key_scores(self, queries: Tensor) -> Tensor:
        """(S,): each statement's best weighted q·k; −`weights`.sum() for a statement without an indexed key."""
        keys, owners = self._all_keys()
        weights = self.matcher.weights
        asked = (queries.float() * weights[:, :, None]).flatten() / KEY_STEPS
        parts = zip(keys.split(KEYS_AT_ONCE), owners.split(KEYS_AT_ONCE), strict=True)
        best = torch.full((len(self),), -float(weights.sum()))
        for part, own in parts:
            if len(own):
                best = best.scatter_reduce(0, own, part.float() @ asked, "amax")
        return best

    def _all_keys(self) -> tuple[Tensor, Tensor]:
        """All indexed keys (N, layers · heads · r) int8, and the statement (N,) of each, ascending."""
        return self._keys[: self._tokens], self._owners[: self._tokens]

    def _keys_of(self, number: int) -> Tensor:
        """One statement's indexed keys (n, layers · heads · r) float32."""
        keys, owners = self._all_keys()
        begin, end = torch.searchsorted(owners, torch.tensor([number, number + 1])).tolist()
        return keys[begin:end].float() / KEY_STEPS

    def _weight(self, term: int) -> float:
        """Weight of a word of a question: the rarer the word, the higher (BM25's idf), times its `commonness`."""
        holders = len(self._holders(term))
        rarity = math.log1p((len(self) - holders + 0.5) / (holders + 0.5))
        return rarity * self.matcher.commonness.get(term, 1.0)

    def word_scores(self, asked: Sequence[int]) -> NDArray[np.float32]:
        """(S,): BM25 score of each statement; 0 for a statement that has no word of the question."""
        found = np.zeros(len(self), np.float32)
        lengths = np.array(self._lengths, np.float32)
        room = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / max(1.0, float(lengths.mean())))
        for term in set(asked) & self._postings.keys():
            holders, counts = (np.array(each) for each in self._postings[term])
            weight = self._weight(term) * (SATURATION + 1)
            found[holders] += weight * counts / (counts + room[holders])
        return found


def _has(numbers: Sequence[int], number: int) -> bool:
    """Whether ascending `numbers` contain one."""
    at = bisect_left(numbers, number)
    return at < len(numbers) and numbers[at] == number


def around(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(S,): for each statement, the weighted sum of its neighbours' scores; see `AROUND`."""
    return np.convolve(scores, AROUND.numpy())[NEAR : NEAR + len(scores)]
