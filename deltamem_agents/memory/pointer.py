"""Saying a told value exactly: at each step of a reply, tokens of the chosen statements become more likely.

The memory's state says roughly what was told; the statements know the tokens. Which token is pointed at is told by how
its key answers the queries of the question and of the step, by whether it stands near words of the question, and by
whether it goes on in the statement from what the reply said last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.writes import Writes

STATIC_FEATURES, STEP_FEATURES = 6, 8
"""What a candidate is judged by beside q·k: once a reply, and at each of its steps."""

NEARNESS = 0.8
"""How much less a word of the question counts for each token that lies between it and a candidate."""

LEAST_LOG_PROBABILITY = -20.0

_NOTHING = -1

PointedAt = tuple[Writes, Sequence[int], Sequence[int] | None]
"""What a statement wrote, the ids of the tokens that wrote it, and those of all tokens of its text, None without it."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The tokens that a reply may be pointed at, N of them, made once a reply.

    `ids`: (N,) int64. `before`: (N, 2) int64, the tokens one and two before each in its statement, −1 for none.
    `keys`: (N, layers, heads, r) float32, 0 for tokens that were not written. `static`: (N, STATIC_FEATURES + layers ·
    heads) float32: how strongly each was written, whether it was, how strongly the one before it; whether the question
    has it, how near behind and before it stands a token that the question has; q·k where the reply begins.
    """

    ids: Tensor
    before: Tensor
    keys: Tensor
    static: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, statements: Sequence[PointedAt], queries: Tensor, asked: frozenset[int]) -> Candidates:
        """From the chosen statements, the queries (layers, heads, r) where the reply begins, and the question's tokens.

        Without a statement's text its written tokens alone are candidates.
        """
        parts = [_of_one(*statement, queries, asked) for statement in statements]
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False)
class Pointer:
    """How much more likely a candidate becomes: softplus of a small network of its features, F in number.

    `hidden`: (units, F) and `hidden_bias`: (units,), then tanh, then `out`: (units,) and `out_bias`. F is
    STATIC_FEATURES + STEP_FEATURES + 2 · layers · heads. `common`: tokens that stand in most questions and tell
    nothing about where an answer stands. `eager`: one of the same features that raises told tokens more; it counts as
    far as the model is unsure of the next token, so that what the model says for sure stays a sentence.
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
        """What a reply on these statements may be pointed at.

        `queries`: (layers, heads, r), where the reply begins. `asked`: ids of the question's tokens.
        """
        return Candidates.of(statements, queries, frozenset(asked) - self.common)

    def bonus(
        self, logits: Tensor, queries: Tensor, candidates: Candidates, said: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Token ids (M,), each once, and what is added to their logits (M,), at least 0.

        What the reply said already gets nothing, unless it goes on from there.
        `logits`: (vocabulary,) of this step. `queries`: (layers, heads, r) of the token from which the next is
        predicted. `said`: the reply's tokens so far.
        """
        judged = features(logits, queries, candidates, said)
        raised = self._raised(judged)
        if self.eager is not None:
            unsure = 1 - float((logits.max() - logits.logsumexp(0)).exp())
            raised = raised + unsure * (self.eager._raised(judged) - raised).clamp_min(0)
        raised = raised.masked_fill(_again(candidates, said), 0)
        ids, owners = candidates.ids.unique(return_inverse=True)
        return ids, torch.zeros(len(ids)).scatter_reduce(0, owners, raised, "amax")

    def _raised(self, judged: Tensor) -> Tensor:
        """(N,), from features (N, F)."""
        return F.softplus(torch.tanh(judged @ self.hidden.T + self.hidden_bias) @ self.out + self.out_bias)


def features(logits: Tensor, queries: Tensor, candidates: Candidates, said: Sequence[int]) -> Tensor:
    """(N, F) float32: what each candidate is judged by at a step of a reply.

    `static`; then whether the token before it was said last, whether the one before that was said before it, the
    strength of the one before where it was said last; whether it was said already; its log-probability without the
    pointer, over 10, its square, and the same where the one before was said last; whether the reply begins here. Then
    its q·k in each layer and head.
    """
    last = (_NOTHING - 1, _NOTHING - 1, *said)[-2:]
    goes_on = (candidates.before[:, 0] == last[1]).float()
    repeated = torch.isin(candidates.ids, torch.tensor(said, dtype=torch.long)).float()
    likely = (logits[candidates.ids] - logits.logsumexp(0)).float().clamp_min(LEAST_LOG_PROBABILITY) / 10
    step = (
        goes_on,
        goes_on * (candidates.before[:, 1] == last[0]),
        goes_on * candidates.static[:, 2],
        repeated,
        likely,
        likely.square(),
        goes_on * likely,
        torch.full_like(likely, float(not said)),
    )
    return torch.cat([candidates.static, torch.stack(step, 1), _matches(candidates.keys, queries)], 1)


def _again(candidates: Candidates, said: Sequence[int]) -> Tensor:
    """(N,) bool: said already, and not what goes on in the statement from what was said last ("4" in "4471")."""
    if not said:
        return torch.zeros(len(candidates), dtype=torch.bool)
    return torch.isin(candidates.ids, torch.tensor(said)) & (candidates.before[:, 0] != said[-1])


def _matches(keys: Tensor, queries: Tensor) -> Tensor:
    """(N, layers · heads): q·k"""
    return torch.einsum("nlhr,lhr->nlh", keys, queries.float()).flatten(1)


def _of_one(
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
    """How near before each place a marked one stands: 1 right before it, NEARNESS less for each one between."""
    found, nearest = [], 0.0
    for mark in marked:
        found.append(nearest)
        nearest = max(mark, nearest * NEARNESS)
    return found


def _places(written: Sequence[int], text: Sequence[int]) -> list[int] | None:
    """Where the written tokens stand in the text, the first place each may have; None where they are not all in it."""
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
