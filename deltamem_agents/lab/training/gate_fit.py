"""Fits the write gates alone, on single tokens, before any training through the model.

Where only replies read the memory (`read_scope`), a told token's activations do not depend on the memory. So a write
gate can be fitted like any other classifier:

- Told tokens open it: tokens of tellings, of spoken words, and of names and jobs in users' introductions.
- Other tokens of tellings keep their previous gate, since existing weights were trained with it.
- Small talk, neutral prompts and questions close it. If one in 20,000 of these tokens opens it, that costs as much as a
  missed fact, so they weigh more.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.composing import WriteWeights, logit
from deltamem_agents.lab.training.recipe import GateFit
from deltamem_agents.lab.training.told_tokens import Pairs, SpokenValues
from deltamem_agents.memory.attach import Adapter

TOLD, SHUT = 1536, 1536
"""Number of told tokens and of filler tokens per step."""

LINEAR, HIDDEN = ("beta_proj", "beta_bias"), ("gate_hidden_proj", "gate_hidden_bias", "beta_hidden_proj")
"""The weights of write gates."""

LINEAR_RATE, HIDDEN_RATE = 3e-4, 2e-3
"""Adam's learning rates. The linear part is already trained; hidden units start from noise."""

WARMUP, LAST_RATE = 30, 0.02
"""Number of warm-up steps, and the share of the learning rate at the end of the cosine decay."""

MARGIN = 1.0
"""Target distance, in logits, of a closed gate below the floor."""

LEAST_FLOOR = 0.02
"""The gate value that counts as closed where gates have no floor."""


def fit_gates(
    adapter: Adapter,
    found: Activations,
    pairs: Pairs,
    plan: GateFit,
    introduced: SpokenValues,
    rng: random.Random,
    say: Callable[[str], None],
) -> None:
    """Fits the adapter's write gates in place; no other weight changes. `introduced`: told tokens of introductions."""
    before = WriteWeights.of(copy.deepcopy(adapter))
    edge = logit(max(adapter.config.gate_floor, LEAST_FLOOR)) - MARGIN
    optimiser = torch.optim.Adam(
        [
            {"params": _named(adapter, LINEAR), "lr": LINEAR_RATE},
            {"params": _named(adapter, HIDDEN), "lr": HIDDEN_RATE},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate_factor(step, plan.steps))
    sampled = _Tokens(found, pairs, introduced, plan.beside, rng)
    for step in range(plan.steps):
        told, beside, shut = (x.to(before.gate.device) for x in sampled.draw())
        writing = WriteWeights.of(adapter)
        with torch.no_grad():
            kept = torch.sigmoid(before.gates(torch.cat([told, beside], dim=1)))
            kept[:, : told.shape[1]].clamp_(min=plan.opened)
        # Dropout, so that no gate relies on single dimensions or words.
        x = F.dropout(torch.cat([told, beside, shut], dim=1), plan.dropout)
        gates = writing.gates(x)
        writes, rests = gates.split([kept.shape[1], shut.shape[1]], dim=1)
        loss = F.binary_cross_entropy_with_logits(writes, kept) + plan.shut * F.softplus(rests - edge).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == plan.steps - 1:
            say(f"write gates, step {step} of {plan.steps}: {_mean_openings(adapter, told, beside, shut)}")


class _Tokens:
    """Samples attention inputs of each kind of token."""

    def __init__(
        self, found: Activations, pairs: Pairs, introduced: SpokenValues, beside: int, rng: random.Random
    ) -> None:
        self._beside_a_step = beside
        self._generator = torch.Generator().manual_seed(rng.getrandbits(32))
        contents = _places(found.tellings.contents)
        self._tellings, self._beside = found.tellings, contents[~found.tellings.told[contents]]
        spoken = () if pairs.spoken is None else (pairs.spoken.told,)
        self._told = [pairs.told, *spoken, introduced.told]
        self._shut = [(kind, _places(kind.contents)) for kind in (found.asides, found.questions)]

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (layers, n, hidden) of told tokens, of other tokens of tellings, and of filler."""
        told = [kind[:, self._some(kind.shape[1], TOLD // len(self._told))] for kind in self._told]
        beside = self._tellings.at(self._beside[self._some(len(self._beside), self._beside_a_step)])
        whole = sum(len(places) for _, places in self._shut)
        shut = [
            kind.at(places[self._some(len(places), round(SHUT * len(places) / max(1, whole)))])
            for kind, places in self._shut
        ]
        return torch.cat(told, dim=1), beside, torch.cat(shut, dim=1)

    def _some(self, count: int, wanted: int) -> Tensor:
        return torch.randint(max(1, count), (wanted if count else 0,), generator=self._generator)


def _places(contents: Sequence[Tensor]) -> Tensor:
    places: Tensor = torch.cat([torch.zeros(0, dtype=torch.long), *contents]).unique()
    return places


def _named(adapter: Adapter, kinds: Sequence[str]) -> list[Tensor]:
    return [value for name, value in adapter.named_parameters() if name.rsplit(".", 1)[-1] in kinds]


def _learning_rate_factor(step: int, steps: int) -> float:
    falling = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / WARMUP) * falling


@torch.no_grad()
def _mean_openings(adapter: Adapter, *kinds: Tensor) -> str:
    writing, floor = WriteWeights.of(adapter), adapter.config.gate_floor
    means = [float(((torch.sigmoid(writing.gates(x)) - floor) / (1 - floor)).clamp_min(0).mean()) for x in kinds]
    names = ("told tokens", "other tokens of tellings", "filler")
    return ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, means, strict=True))
