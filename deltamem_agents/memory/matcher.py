"""The settings of recall: how statements are scored for a question, and which of them are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deltamem_agents.errors import ConfigError

LEAST_STRENGTH = 0.05
"""Least mean write gate of a token whose key is matched. Tokens written more weakly carry little information."""

STRONG = 0.2
"""Least mean write gate of a strongly written token."""


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

    With a floor, statements that cannot be the answer are not read: those without a word besides the question's,
    such as the same question asked before; and what the assistant said, if another statement reaches the floor and the
    question does not ask for what the assistant said. Its replies repeat the question's words, so a wrong one would
    match best.

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

    def asks_back(self, queries: Tensor) -> bool:
        """Whether a question with queries (tokens, layers, heads, r) asks for what the assistant said."""
        return self.advice is not None and _is_positive(self.advice, self.advice_bias, queries)

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
