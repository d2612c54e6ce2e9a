"""Told tokens beside the places where they are asked for: all that addresses and gates need of a telling.

A few vectors a telling, where a telling that is replayed keeps every token of it and its question's keys and values.
So they can be of many more tellings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.lab.training.activations import Activations, Exchanges
from deltamem_agents.lab.training.spoken_values import SpokenValues

BESIDE_TELLING, BESIDE_QUESTION = 3, 1
"""So many tokens that are not told are kept for each telling, and for each question."""


@dataclass(frozen=True)
class Pairs:
    """Attention inputs (layers, n, hidden) at n told tokens, one telling's after another's.

    `told` at the token, `before` at the one before it, `asked` at the place from which it is to be said; `target` (n,)
    is the token and `telling` (n,) who told it. `begun` (layers, tellings, hidden): where each reply begins.
    `subjects`: what each telling is about, each one of `attributes` of somebody. `beside` (layers, m, hidden): some
    tokens of tellings and questions that are not told. `spoken`: told values of which there is nothing else.
    """

    told: Tensor
    before: Tensor
    asked: Tensor
    target: Tensor
    telling: Tensor
    begun: Tensor
    subjects: tuple[frozenset[str], ...]
    attributes: tuple[str, ...]
    beside: Tensor
    spoken: SpokenValues | None = None

    @classmethod
    def of(cls, found: Activations) -> Pairs:
        return cls(
            told=found.tellings.at(found.told_at),
            before=found.tellings.at((found.told_at - 1).clamp_min(0)),
            asked=found.asked,
            target=found.target,
            telling=found.telling,
            begun=found.begun,
            subjects=found.subjects,
            attributes=found.attributes,
            beside=torch.cat(
                [
                    _not_told(found.tellings, BESIDE_TELLING * len(found.subjects)),
                    _not_told(found.questions, BESIDE_QUESTION * len(found.subjects)),
                ],
                dim=1,
            ),
        )


def joined_pairs(parts: Sequence[Pairs]) -> Pairs:
    """All of them as one, in order, with the spoken values of the first."""
    counts = torch.tensor([len(part.subjects) for part in parts])
    begins = (counts.cumsum(0) - counts).tolist()
    return Pairs(
        **{
            name: torch.cat([getattr(part, name) for part in parts], 1)
            for name in ("told", "before", "asked", "begun", "beside")
        },
        target=torch.cat([part.target for part in parts]),
        telling=torch.cat([part.telling + begin for part, begin in zip(parts, begins, strict=True)]),
        subjects=tuple(subject for part in parts for subject in part.subjects),
        attributes=tuple(attribute for part in parts for attribute in part.attributes),
        spoken=parts[0].spoken,
    )


def _not_told(source: Exchanges, count: int) -> Tensor:
    """Inputs at up to `count` of the contents that are not told, always the same ones."""
    contents = torch.cat(source.contents).unique()
    others = contents[~source.told[contents]]
    picked = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:count]
    return source.at(others[picked.sort().values])
