"""Losses on cached activations: whether a memory stores, finds and says what it was told, without running the model.

The direct path from the memory to the vocabulary is taken as if the layers between did nothing: what all layers add at
the places where a told value is to be said is compared with the output rows of the words that could have been told.

Which told value a question means can be learned from the told values alone. A memory that held nothing else, and whose
writes erased nothing, would answer a question with the sum of all told values, each weighted by how far its key matches
the question's query. That sum costs hundredths of a second a step for many facts at a time; what states add to it,
gates and interference, is learned afterwards from conversations. A question about something that was never told should
match nothing. Where its reply begins a question matches as well, the first token of what it asks for: there the model
decides whether it has an answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.activations import Activations, Exchanges
from deltamem_agents.lab.training.strung import WriteWeights, by_head, product, stacked_over_layers
from deltamem_agents.lab.training.told_tokens import Asked, Pairs, SpokenValues
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import unit
from deltamem_agents.memory.delta_rule import floored_gate

MATCH_SHARPNESS = 12.0
"""What a match of −1 to 1 is multiplied by to be compared with others. Low, so that others have to be far off."""

MATCHES_NOTHING = 0.5
"""A question matches what it asks for by more than this, and everything else by less."""

SAID_AT_ONCE, CANDIDATES = 256, 4096
"""Tokens of spoken words that a step looks at, and among how many others each has to be found."""

TOLD, BESIDE, ASIDE = 768, 1280, 1280
"""So many tokens a step: told ones, others of tellings and questions, and those of what tells nothing at all."""

TOLD_WEIGHT = 0.5
"""What a told token counts beside another. Below 1, because in use the others are far more than in a sample."""


def speaking_weight(config: AdapterConfig) -> str | None:
    """Which of a layer's projections says what is read: the shortest way to the vocabulary that the adapter has."""
    if config.readout:
        return "readout_proj"
    return "delta_o_proj" if "o" in config.delta_heads else None


@dataclass(frozen=True)
class ReadWeights:
    """What the reads of all layers are computed with: the adapter's projections, stacked (layers, …)."""

    query: Tensor
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    found: Tensor | None = None

    @classmethod
    def of(cls, adapter: Adapter) -> ReadWeights:
        """The adapter's own, with gradient to them."""
        stacked = partial(stacked_over_layers, adapter)
        if not adapter.config.read_gate:
            return cls(stacked("memory_q_proj"))
        found = stacked("found_proj") if adapter.config.gate_on_reads else None
        return cls(stacked("memory_q_proj"), stacked("read_proj"), stacked("read_bias"), found)


def said(
    config: AdapterConfig, weights: ReadWeights, say: Tensor, state: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What all layers add (n, hidden) at `inputs` (layers, n, hidden), reading `state` (layers, n, heads, r, r).

    `say` (layers, hidden, width) turns what is read into what is added. Also the logits of the read gates
    (layers, n, heads), where the adapter has such gates.
    """
    reads = _reads(config, weights, state, inputs)
    logits = _gates(weights, reads, inputs)
    if logits is not None:
        reads = reads * floored_gate(logits, config.gate_floor)[..., None]
    return torch.einsum("lnr,ldr->nd", reads.flatten(2), say), logits


def _reads(config: AdapterConfig, weights: ReadWeights, state: Tensor, inputs: Tensor) -> Tensor:
    """(layers, n, heads, r)."""
    query = unit(by_head(product(inputs, weights.query), config))
    return torch.einsum("lnhij,lnhj->lnhi", state, query)


def _gates(weights: ReadWeights, reads: Tensor, inputs: Tensor) -> Tensor | None:
    """Logits (layers, n, heads) of the read gates, None without any."""
    if weights.gate is None or weights.gate_bias is None:
        return None
    logits = product(inputs, weights.gate) + weights.gate_bias[:, None]
    if weights.found is None:
        return logits
    # Each layer's gate also sees what the layers before it make of their reads.
    return logits + torch.einsum("lnw,lhw->lnh", reads.flatten(2), weights.found).cumsum(0)


def opening_loss(
    config: AdapterConfig,
    weights: ReadWeights,
    state: Tensor,
    found: Activations,
    told: Sequence[tuple[int, int]],
    never_told: Sequence[tuple[int, int]],
) -> Tensor:
    """Cross-entropy of read gates as a guess of whether what is asked for was told, where replies begin.

    `told`, `never_told`: pairs of a conversation and a telling; `state` (layers, conversations, heads, r, r). Of the
    second half of the layers, which see what those before them read. 0 where gates do not look at what is read.
    """
    if not config.gate_on_reads:
        return state.new_zeros(())
    row, telling = (torch.tensor(column) for column in zip(*told, *never_told, strict=True))
    inputs = found.begun[:, telling].to(state.device)
    logits = _gates(weights, _reads(config, weights, state[:, row], inputs), inputs)
    assert logits is not None
    late = logits[len(logits) // 2 :]
    wanted = (torch.arange(len(row), device=state.device) < len(told)).float()
    return F.binary_cross_entropy_with_logits(late, wanted[None, :, None].expand_as(late))


def directions(rows: Tensor) -> Tensor:
    """`rows` (n, hidden) seen from their mean, at length 1."""
    return F.normalize(rows - rows.mean(0), dim=-1)


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
    keys = writing.keys(told, pairs.before[:, asked.told].to(device))
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


def spoken_loss(
    value: Tensor, say: Tensor, sharpness: Tensor, spoken: SpokenValues | None, rows: Tensor, rng: random.Random
) -> Tensor:
    """Cross-entropy of tokens as said from what is stored of them, if nothing else was stored.

    `value` (layers, width, hidden) stores, `say` (layers, hidden, width) says, in directions of `rows` (vocabulary,
    hidden). 0 where nothing is spoken.
    """
    if spoken is None or not len(spoken.target):
        return value.new_zeros(())
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    picked, others = (torch.randint(len(spoken.target), (n,), generator=generator) for n in (SAID_AT_ONCE, CANDIDATES))
    candidates, place = spoken.target[torch.cat([picked, others])].unique(return_inverse=True)
    x = spoken.told[:, picked].to(value.device)
    said = F.normalize(torch.einsum("lnw,ldw->nd", product(x, value), say), dim=-1)
    logits = said @ directions(rows[candidates]).T * sharpness.exp()
    return F.cross_entropy(logits, place[: len(picked)].to(value.device))


def gate_loss(writing: WriteWeights, pairs: Pairs, asides: Exchanges, rng: random.Random) -> Tensor:
    """Cross-entropy of the write gates as a guess of which of some tokens are told.

    In a conversation few tokens tell a value, and the conversations of a step come from few tellings. Told tokens of
    all tellings there are, beside tokens that tell nothing, make better classifiers.
    """
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
