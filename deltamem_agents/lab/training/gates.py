"""Which tokens a memory writes, learned from single tokens of many tellings.

A write gate is a classifier: does this token tell a value? In a conversation few do, and the conversations of a step
come from few tellings. Told tokens of all tellings there are, beside tokens that tell nothing, make better ones.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.lab.training.activations import Exchanges
from deltamem_agents.lab.training.pairs import Pairs
from deltamem_agents.lab.training.strung import WriteWeights

TOLD, BESIDE, ASIDE = 768, 1280, 1280
"""So many tokens a step: told ones, others of tellings and questions, and those of what tells nothing at all."""

TOLD_WEIGHT = 0.5
"""What a told token counts beside another. Below 1, because in use the others are far more than in a sample."""


def gate_loss(writing: WriteWeights, pairs: Pairs, asides: Exchanges, rng: random.Random) -> Tensor:
    """Cross-entropy of the write gates as a guess of which of some tokens are told."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))

    def some(count: int, wanted: int) -> Tensor:
        return torch.randint(count, (wanted if count else 0,), generator=generator)

    spoken = torch.cat(asides.contents) if asides.contents else torch.zeros(0, dtype=torch.long)
    x = torch.cat(
        [
            pairs.told[:, some(len(pairs.target), TOLD)],
            pairs.beside[:, some(pairs.beside.shape[1], BESIDE)],
            asides.at(spoken[some(len(spoken), ASIDE)]),
        ],
        dim=1,
    ).to(writing.gate.device)
    gates = writing.gates(x)
    told = torch.arange(gates.shape[1], device=gates.device) < TOLD
    weight = torch.where(told, TOLD_WEIGHT, 1.0)[None, :, None].expand_as(gates)
    return F.binary_cross_entropy_with_logits(gates, told.float()[None, :, None].expand_as(gates), weight=weight)
