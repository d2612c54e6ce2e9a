"""Which told value a question means, learned from the told values alone.

A memory that held nothing else, and whose writes erased nothing, would answer a question with the sum of all told
values, each weighted by how far its key matches the question's query. Keys, queries and values can be learned on
that sum for many facts at a time in hundredths of a second a step: no token that tells nothing takes part, and no
update rule. What states add to it, gates and interference, is learned afterwards from conversations.
A question about something that was never told should match nothing. Where its reply begins a question matches as
well, the first token of what it asks for: there the model decides whether it has an answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.direct_path import ReadWeights, directions
from deltamem_agents.lab.training.pairs import Pairs
from deltamem_agents.lab.training.strung import WriteWeights, about_different, alike_tellings, by_head, product
from deltamem_agents.memory.attention import unit

MATCH_SHARPNESS = 12.0
"""What a match of −1 to 1 is multiplied by to be compared with others. Low, so that others have to be far off."""

MATCHES_NOTHING = 0.5
"""A question matches what it asks for by more than this, and everything else by less."""

GROUPS = 3
"""Of so many attributes several people's are told or asked for at once."""

RIDGE = 0.01
"""Share of the inputs' mean power that the fit of values is damped by."""


@dataclass(frozen=True)
class Asked:
    """Numbers of answer tokens: all those of some tellings (n,), and all those of others, which are never told (m,)."""

    told: Tensor
    never_told: Tensor


def draw_asked(pairs: Pairs, facts: int, rng: random.Random) -> Asked:
    """Of `facts` tellings, and half as many never told, all about different subjects, as far as there are so many.

    Up to half of all are the same of several people, told of some and never told of others.
    """
    count = facts + facts // 2
    alike = [one for _ in range(GROUPS) for one in alike_tellings(pairs.attributes, count // (2 * GROUPS) - 1, rng)]
    chosen = about_different(pairs.subjects, count, rng, alike)
    rng.shuffle(chosen)
    tellings = torch.tensor(chosen)
    told, others = (torch.isin(pairs.telling, some) for some in (tellings[:facts], tellings[facts:]))
    return Asked(told.nonzero().squeeze(-1), others.nonzero().squeeze(-1))


def matching_loss(
    config: AdapterConfig,
    writing: WriteWeights,
    reading: ReadWeights,
    say: Tensor,
    sharpness: Tensor,
    pairs: Pairs,
    asked: Asked,
    rows: Tensor,
) -> Tensor:
    """Cross-entropy of what questions match, and of the tokens then said, if nothing but `asked.told` was told.

    `say` (layers, hidden, width) turns what is read into what is said, in directions of `rows` (vocabulary, hidden);
    `sharpness` is the logarithm of what these are compared with.
    """
    device, count = writing.key.device, len(asked.told)
    told = pairs.told[:, asked.told].to(device)
    keys = product(told, writing.key)
    if writing.before is not None:
        keys = keys + product(pairs.before[:, asked.told].to(device), writing.before)
    tellings, others = pairs.telling[asked.told], pairs.telling[asked.never_told]
    firsts = _firsts(tellings)
    places = [
        pairs.asked[:, asked.told],
        pairs.begun[:, tellings[firsts]],
        pairs.asked[:, asked.never_told],
        pairs.begun[:, others[_firsts(others)]],
    ]
    query = unit(by_head(product(torch.cat(places, 1).to(device), reading.query), config))
    match = torch.einsum("lqhr,lkhr->lhqk", query, unit(by_head(keys, config)))
    level = F.pad(match.mean((0, 1)), (0, 1), value=MATCHES_NOTHING)
    meant = torch.full((len(level),), count, device=device)
    meant[: count + len(firsts)] = torch.cat([torch.arange(count), firsts]).to(device)
    reads = torch.einsum("lhqk,lkhr->lqhr", match[:, :, :count], by_head(product(told, writing.value), config))
    said = F.normalize(torch.einsum("lqw,ldw->qd", reads.flatten(2), say), dim=-1)
    candidates, target = pairs.target.unique(return_inverse=True)
    logits = said @ directions(rows[candidates]).T * sharpness.exp()
    return F.cross_entropy(level * MATCH_SHARPNESS, meant) + F.cross_entropy(logits, target[asked.told].to(device))


def _firsts(tellings: Tensor) -> Tensor:
    """Where among the tellings of answer tokens, in their order, each telling comes first."""
    first = torch.ones_like(tellings, dtype=torch.bool)
    first[1:] = tellings[1:] != tellings[:-1]
    return first.nonzero().squeeze(-1)


@torch.no_grad()
def values_that_say(config: AdapterConfig, pairs: Pairs, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Value projections (layers, width, hidden), and what turns their values into tokens (layers, hidden, width).

    By ridge regression from what stands at told tokens to the directions of these tokens in `rows` (vocabulary,
    hidden), of which each layer keeps other dimensions, as far as there are so many.
    """
    layers, _, hidden = pairs.told.shape
    target = pairs.target if pairs.spoken is None else torch.cat([pairs.target, pairs.spoken.target])
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q
    wanted = directions(rows.float())[target]
    values, says = [], []
    for layer in range(layers):
        x = pairs.told[layer].float()
        if pairs.spoken is not None:
            x = torch.cat([x, pairs.spoken.told[layer].float()])
        products = x.T @ x
        products.diagonal().add_(RIDGE * products.diagonal().mean())
        own = axes[:, torch.arange(layer * config.width, (layer + 1) * config.width) % hidden]
        values.append(own.T @ torch.linalg.solve(products, x.T @ wanted).T)
        says.append(own)
    return torch.stack(values), torch.stack(says)
