"""Synthetic activations in which every token's value and subject are known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.lab.training.activations import Activations, Exchanges

LAYERS, HIDDEN = 2, 32
SUBJECTS, VALUES = 10, 24
VALUE, SUBJECT, KIND = slice(0, 12), slice(12, 24), slice(24, 32)
TOLD, ASKED, REPLY, PLAIN = range(4)


@dataclass(frozen=True)
class World:
    """Activations that encode a token's value, its subject, and whether it tells or asks.

    `values` (layers, VALUES, 12) and `subjects` (layers, SUBJECTS, 12) are in the first dimensions. `rows` (VALUES,
    HIDDEN): output directions of the values.
    """

    subjects: Tensor
    values: Tensor
    rows: Tensor

    @classmethod
    def drawn(cls) -> World:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return cls(noise(LAYERS, SUBJECTS, 12), noise(LAYERS, VALUES, 12), noise(VALUES, HIDDEN))

    def activations(self, tellings: int, seed: int) -> Activations:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

        def place(kind: int, subject: int | None = None, value: int | None = None) -> Tensor:
            x = 0.3 * torch.randn(LAYERS, HIDDEN, generator=generator)
            x[:, KIND.start + kind] += 3
            if subject is not None:
                x[:, SUBJECT] += self.subjects[:, subject]
            if value is not None:
                x[:, VALUE] += self.values[:, value]
            return x

        facts = [(rng.randrange(SUBJECTS), rng.randrange(VALUES)) for _ in range(tellings)]
        told = [
            [place(PLAIN, s) for _ in range(rng.randint(1, 3))] + [place(TOLD, s, v), place(PLAIN), place(PLAIN)]
            for s, v in facts
        ]
        aside = [[place(PLAIN, rng.randrange(SUBJECTS)) for _ in range(rng.randint(3, 6))] for _ in range(40)]
        return Activations(
            tellings=_exchanges(told, told_at=-3),
            earlier=(torch.zeros(0, dtype=torch.long),) * tellings,
            attributes=tuple(str(subject) for subject, _ in facts),
            subjects=tuple(frozenset({str(subject)}) for subject, _ in facts),
            asides=_exchanges(aside, told_at=None),
            questions=_exchanges([[place(PLAIN), place(PLAIN, subject)] for subject, _ in facts], told_at=None),
            prompts=(),
            asked=torch.stack([place(ASKED, subject) for subject, _ in facts], dim=1),
            target=torch.tensor([value for _, value in facts]),
            telling=torch.arange(tellings),
            told_at=torch.tensor([len(one) for one in told]).cumsum(0) - 3,
            begun=torch.stack([place(REPLY, subject) for subject, _ in facts], dim=1),
            replies=torch.stack([place(REPLY) for _ in range(60)], dim=1),
        )


def _exchanges(conversations: Sequence[Sequence[Tensor]], told_at: int | None) -> Exchanges:
    """The conversations, concatenated. The last token of each is not content."""
    ends = torch.tensor([len(one) for one in conversations]).cumsum(0).tolist()
    told = torch.zeros(ends[-1], dtype=torch.bool)
    if told_at is not None:
        told[torch.tensor(ends) + told_at] = True
    contents = tuple(torch.arange(end - len(one), end - 1) for end, one in zip(ends, conversations, strict=True))
    return Exchanges(torch.stack([x for one in conversations for x in one], dim=1), contents, told)


WORLD = World.drawn()
