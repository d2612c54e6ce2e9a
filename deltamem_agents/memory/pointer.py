"""A copy mechanism (pointer) for exact values: each decoding step raises the logits of tokens of the chosen statements.

The memory's state holds only roughly what was told; the statements hold the exact tokens. How much a token is raised
depends on its q·k with the question and with the current step, on its distance from words of the question, and on
whether it continues the statement after the reply's last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.writes import Writes

STATIC_FEATURES, STEP_FEATURES = 6, 8
"""Numbers of a candidate's features besides q·k: those computed once per reply, and those computed at each step."""

NEARNESS = 0.8
"""Decay of a question token's nearness for each token between it and a candidate."""

LEAST_LOG_PROBABILITY = -20.0

_NOTHING = -1

PointedAt = tuple[Writes, Sequence[int], Sequence[int] | None]
"""A statement's writes, the ids of the tokens that made them, and the ids of its whole text (None without text)."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The N statement tokens that the pointer may raise, computed once per reply.

    `ids`: (N,) int64. `before`: (N, 2) int64, the tokens one and two places before each in its statement, −1 for none.
    `keys`: (N, layers, heads, r) float32, 0 for tokens that were not written. `static`: (N, STATIC_FEATURES + layers ·
    heads) float32: the token's mean write gate, whether it was written, the mean write gate of the token before it;
    whether it occurs in the question, and how near it is to a question token before it and to one after it; its q·k
    with the query from which the reply's first token is predicted.
    """

    ids: Tensor
    before: Tensor
    keys: Tensor
    static: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def distinct(self) -> tuple[Tensor, Tensor]:
        """The distinct ids (M,), and the place of each candidate's id among them (N,)."""
        ids, owners = self.ids.unique(return_inverse=True)
        return ids, owners

    @cached_property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """`before`, `keys`, `static`, and the place of each candidate's id among the distinct ones."""
        return self.before.numpy(), self.keys.numpy(), self.static.numpy(), self.distinct[1].numpy()

    @classmethod
    def of(cls, statements: Sequence[PointedAt], queries: Tensor, asked: frozenset[int]) -> Candidates:
        """The candidates of the chosen statements.

        `queries`: (layers, heads, r), from which the reply's first token is predicted. `asked`: the question's tokens.
        If a statement's text is not known, only its written tokens are candidates.
        """
        parts = [_candidates_of(*statement, queries, asked) for statement in statements]
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False)
class Pointer:
    """A small network that computes what is added to each candidate's logit: softplus of a tanh layer on F features.

    `hidden`: (units, F) and `hidden_bias`: (units,), then tanh, then `out`: (units,) and `out_bias`. F is
    STATIC_FEATURES + STEP_FEATURES + 2 · layers · heads. `common`: tokens that occur in most questions, and so do not
    help to find the answer. `eager`: a second pointer on the same features that raises statement tokens more. Its
    surplus is scaled by 1 − the model's highest token probability: where the model is sure of the next token, the
    sentence stays grammatical.
    """

    hidden: Tensor
    hidden_bias: Tensor
    out: Tensor
    out_bias: float
    common: frozenset[int] = frozenset()
    eager: Pointer | None = None

    def __post_init__(self) -> None:
        units, count = self.hidden.shape
        if self.hidden_bias.shape != (units,) or self.out.shape != (units,):
            raise ConfigError(
                f"a pointer has weights of shapes {tuple(self.hidden.shape)}, {tuple(self.hidden_bias.shape)} and "
                f"{tuple(self.out.shape)}, expected (units, {count}), (units,) and (units,)"
            )

    def candidates(self, statements: Sequence[PointedAt], queries: Tensor, asked: Sequence[int]) -> Candidates:
        """The candidates of a reply that reads these statements.

        `queries`: (layers, heads, r), from which the reply's first token is predicted. `asked`: ids of the question's
        tokens.
        """
        return Candidates.of(statements, queries, frozenset(asked) - self.common)

    def bonus(
        self, logits: Tensor, queries: Tensor, candidates: Candidates, said: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Distinct token ids (M,) and what is added to their logits (M,), at least 0.

        A token that the reply contains already gets 0, unless it continues the statement after the reply's last token.
        `logits`: (vocabulary,) float32 of this step. `queries`: (layers, heads, r), from which the next token is
        predicted. `said`: the reply's tokens so far. Both tensors are on the CPU.
        """
        total, scores, (before, keys, static, owners) = float(logits.logsumexp(0)), logits.numpy(), candidates.arrays
        own = scores[candidates.ids.numpy()] - np.float32(total)
        repeated = _said(candidates, said).numpy()
        step = _step_features(own, before, static, repeated, said)
        judged = np.concatenate([static, step, (keys * queries.float().numpy()).sum(-1).reshape(len(own), -1)], 1)
        raised = self._bonuses(judged)
        if self.eager is not None:
            unsure = np.float32(1 - math.exp(float(scores.max()) - total))
            raised += unsure * (self.eager._bonuses(judged) - raised).clip(0)
        # A repeated token may continue the statement, as the second 4 of "4471" does.
        raised[repeated & (before[:, 0] != (said[-1] if said else _NOTHING))] = 0
        ids, _ = candidates.distinct
        most = np.zeros(len(ids), np.float32)
        np.maximum.at(most, owners, raised)
        return ids, torch.from_numpy(most)

    def _bonuses(self, judged: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logit bonuses (N,) from features (N, F)."""
        units = np.tanh(judged @ self.hidden.numpy().T + self.hidden_bias.numpy())
        softplus: NDArray[np.float32] = np.logaddexp(0, units @ self.out.numpy() + self.out_bias, dtype=np.float32)
        return softplus


def features(logits: Tensor, queries: Tensor, candidates: Candidates, said: Sequence[int]) -> Tensor:
    """(N, F) float32: each candidate's features at a step of a reply.

    First the static features. Then "continues": whether the token before it in the statement is the reply's last one;
    the same for the last two tokens; "continues" times the mean write gate of the token before it; whether the reply
    contains it already; its log-probability without the pointer, divided by 10; the square of that; "continues" times
    that; whether this is the reply's first token. Last, its q·k in each layer and head.
    """
    own = (logits[candidates.ids] - logits.logsumexp(0)).float().numpy()
    before, _, static, _ = candidates.arrays
    step = _step_features(own, before, static, _said(candidates, said).numpy(), said)
    return torch.cat([candidates.static, torch.from_numpy(step), _matches(candidates.keys, queries)], 1)


def _step_features(
    logprobs: NDArray[np.float32],
    before: NDArray[np.int64],
    static: NDArray[np.float32],
    repeated: NDArray[np.bool_],
    said: Sequence[int],
) -> NDArray[np.float32]:
    """The features (N, STEP_FEATURES) of the candidates that change from step to step. NumPy, because for arrays this
    small PyTorch's overhead per call exceeds the computation."""
    last = (_NOTHING - 1, _NOTHING - 1, *said)[-2:]
    goes_on = before[:, 0] == last[1]
    likely = logprobs.clip(LEAST_LOG_PROBABILITY) / np.float32(10)
    step = np.empty((len(logprobs), STEP_FEATURES), np.float32)
    step[:, 0], step[:, 1] = goes_on, goes_on & (before[:, 1] == last[0])
    step[:, 2], step[:, 3] = goes_on * static[:, 2], repeated
    step[:, 4], step[:, 5], step[:, 6] = likely, likely * likely, goes_on * likely
    step[:, 7] = not said
    return step


def _said(candidates: Candidates, said: Sequence[int]) -> Tensor:
    """(N,) bool: the reply has the token already."""
    # Several times as fast as torch.isin, for so few.
    return (candidates.ids[:, None] == torch.tensor(said, dtype=torch.long)).any(1)


def _matches(keys: Tensor, queries: Tensor) -> Tensor:
    """q·k: (N, layers · heads)."""
    return (keys * queries.float()).sum(-1).flatten(1)


def _candidates_of(
    writes: Writes, written: Sequence[int], text: Sequence[int] | None, queries: Tensor, asked: frozenset[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    places = None if text is None else _places(written, text)
    if text is None or places is None:
        text, places = written, list(range(len(written)))
    keys = torch.zeros(len(text), *writes.geometry)
    strengths = torch.zeros(len(text) + 1)
    keys[places], strengths[torch.tensor(places, dtype=torch.long) + 1] = writes.keys.float(), writes.strengths
    before = torch.tensor([_NOTHING, _NOTHING, *text])
    in_question = [float(token in asked) for token in text]
    static = (
        strengths[1:],
        (strengths[1:] > 0).float(),
        strengths[:-1],
        torch.tensor(in_question),
        torch.tensor(_nearness(in_question)),
        torch.tensor(_nearness(in_question[::-1])[::-1]),
    )
    judged = torch.cat([torch.stack(static, 1), _matches(keys, queries)], 1)
    return before[2:], torch.stack([before[1:-1], before[:-2]], 1), keys, judged


def _nearness(marked: Sequence[float]) -> list[float]:
    """Nearness of the closest marked place before each: 1 if adjacent, times NEARNESS for each place between."""
    found, nearest = [], 0.0
    for mark in marked:
        found.append(nearest)
        nearest = max(mark, nearest * NEARNESS)
    return found


def _places(written: Sequence[int], text: Sequence[int]) -> list[int] | None:
    """Positions of the written tokens in the text, each the earliest possible; None if the text lacks one of them."""
    places: list[int] = []
    at = 0
    for token in written:
        while at < len(text) and text[at] != token:
            at += 1
        if at == len(text):
            return None
        places.append(at)
        at += 1
    return places
