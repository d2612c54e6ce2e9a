"""Saying a told value exactly: at each step of a reply, the tokens of the chosen statements become more likely.

The memory's state says roughly what was told; the statements know the tokens. A token is pointed at when its key
answers the query of the step, and when it follows in the statement on what the reply said last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.memory.writes import Writes

NOTHING = -1
"""Stands for the token before a statement's first."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The tokens that a reply may be pointed at, N of them, made once a reply.

    `ids`, `before`: (N,) int64, a token and the one before it in its statement. `keys`: (N, layers, heads, r)
    float32 and `strengths`: (N,) float32, both zero for tokens that were not written.
    """

    ids: Tensor
    before: Tensor
    keys: Tensor
    strengths: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, statements: Sequence[tuple[Writes, Sequence[int], Sequence[int] | None]]) -> Candidates:
        """From the chosen statements: writes, ids of the written tokens, and ids of all tokens of the text.

        Without the text the written tokens alone are candidates.
        """
        parts = [cls._of_one(*statement) for statement in statements]
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))

    @staticmethod
    def _of_one(
        writes: Writes, written: Sequence[int], text: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places = None if text is None else _places(written, text)
        if text is None or places is None:
            text, places = written, list(range(len(written)))
        keys = torch.zeros(len(text), *writes.geometry)
        strengths = torch.zeros(len(text))
        keys[places], strengths[places] = writes.keys.float(), writes.strengths
        return torch.tensor(text), torch.tensor([NOTHING, *text[:-1]]), keys, strengths


@dataclass(frozen=True, eq=False)
class Pointer:
    """How much more likely a candidate becomes.

    `weights`: (layers, heads) float32, summing to 1: a token's match is the weighted mean of q·k. Its bonus is
    `slope` times what the match has above `floor`, and `continuation` where it follows on the last token said.
    """

    weights: Tensor
    slope: float = 20.0
    floor: float = 0.3
    continuation: float = 3.0

    def bonus(
        self, logits: Tensor, queries: Tensor, candidates: Candidates, said: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Token ids (M,), each once, and what is added to their logits (M,), at least 0.

        `logits`: (vocabulary,) of this step. `queries`: (layers, heads, r) of the token from which the next is
        predicted. `said`: the reply's tokens so far.
        """
        match = torch.einsum("nlhr,lhr,lh->n", candidates.keys, queries.float(), self.weights)
        bonus = self.slope * (match - self.floor).clamp_min(0)
        if said:
            bonus = bonus + self.continuation * (candidates.before == said[-1]) * (candidates.strengths > 0)
        ids, owners = candidates.ids.unique(return_inverse=True)
        return ids, torch.zeros(len(ids)).scatter_reduce(0, owners, bonus, "amax")


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
