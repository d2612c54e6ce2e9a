"""Losses on cached activations: does the memory store, find and say what it was told? The model does not run.

Saying is measured on the direct path from the memory to the vocabulary, as if the layers in between did nothing. At the
positions that predict a told value, the sum of all layers' outputs is compared with the output rows of all values that
could have been told.

Finding is learned from told values alone, with attention over them instead of a state. This is how a memory would read
if it held nothing else and its writes erased nothing: the sum of all told values, each weighted by the match between
its key and the question's query. Such a step takes hundredths of a second for many facts at once. Gates and
interference, which come with states, are learned afterwards from conversations. A question about a fact never told
should match nothing. The position where the reply begins should match the first token of the answer, since the model
decides there whether it has an answer.
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
from deltamem_agents.lab.training.composing import WriteWeights, by_head, product, stacked_over_layers
from deltamem_agents.lab.training.told_tokens import Asked, Pairs, SpokenValues
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import unit
from deltamem_agents.memory.delta_rule import floored_gate

MATCH_SHARPNESS = 12.0
"""Scale of the softmax over matches, which lie in −1 to 1. It is low, so that wrong matches must be far off."""

MATCHES_NOTHING = 0.5
"""Match of the "nothing" candidate: a right value must match a question by more, everything else by less."""

SAID_AT_ONCE, CANDIDATES = 256, 4096
"""Number of spoken words' tokens per step, and of random tokens among which each must be identified."""

TOLD, BESIDE, ASIDE = 768, 1280, 1280
"""Number of told tokens, of other tokens of tellings and questions, and of filler tokens per step."""

TOLD_WEIGHT = 0.5
"""Loss weight of a told token relative to another. Below 1, since other tokens are far more frequent in use."""


def speaking_weight(config: AdapterConfig) -> str | None:
    """Name of the projection with the most direct path from a layer's read to the vocabulary, None without one."""
    if config.readout:
        return "readout_proj"
    return "delta_o_proj" if "o" in config.delta_heads else None


@dataclass(frozen=True)
class ReadWeights:
    """The adapter's projections for reading, stacked over layers (layers, …)."""

    query: Tensor
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    found: Tensor | None = None

    @classmethod
    def of(cls, adapter: Adapter) -> ReadWeights:
        """The adapter's own projections, with gradient."""
        stacked = partial(stacked_over_layers, adapter)
        if not adapter.config.read_gate:
            return cls(stacked("memory_q_proj"))
        found = stacked("found_proj") if adapter.config.gate_on_reads else None
        return cls(stacked("memory_q_proj"), stacked("read_proj"), stacked("read_bias"), found)


def added_output(
    config: AdapterConfig, weights: ReadWeights, say: Tensor, state: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The sum (n, hidden) of all layers' outputs at `inputs` (layers, n, hidden).

    `state` (layers, n, heads, r, r): what is read. `say` (layers, hidden, width): the readout. Also returns the read
    gate logits (layers, n, heads), None if the adapter has no read gates.
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
    """Read gate logits (layers, n, heads), None without read gates."""
    if weights.gate is None or weights.gate_bias is None:
        return None
    logits = product(inputs, weights.gate) + weights.gate_bias[:, None]
    if weights.found is None:
        return logits
    # Each layer's gate also sees the reads of the layers before it.
    return logits + torch.einsum("lnw,lhw->lnh", reads.flatten(2), weights.found).cumsum(0)


def opening_loss(
    config: AdapterConfig,
    weights: ReadWeights,
    state: Tensor,
    found: Activations,
    told: Sequence[tuple[int, int]],
    never_told: Sequence[tuple[int, int]],
) -> Tensor:
    """Cross-entropy of read gates, at the beginning of replies, as classifiers of whether the fact asked for was told.

    `told`, `never_told`: (conversation, telling) pairs. `state` (layers, conversations, heads, r, r). Only the second
    half of the layers counts, whose gates see enough earlier reads. 0 unless the gates see reads (`gate_on_reads`).
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
    """`rows` (n, hidden) minus their mean, normalised to length 1."""
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
    """Cross-entropy of the value each question matches, and of the token then said, if only `asked.told` was told.

    `say` (layers, hidden, width): readout. `rows` (vocabulary, hidden): output directions of the tokens. `sharpness`:
    logarithm of the softmax scale over tokens.
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
    """Indices of each telling's first answer token. `tellings`: the telling of each token, in order."""
    first = torch.ones_like(tellings, dtype=torch.bool)
    first[1:] = tellings[1:] != tellings[:-1]
    return first.nonzero().squeeze(-1)


def spoken_loss(
    value: Tensor, say: Tensor, sharpness: Tensor, spoken: SpokenValues | None, rows: Tensor, rng: random.Random
) -> Tensor:
    """Cross-entropy of saying a token from its stored value alone, if nothing else was stored.

    `value` (layers, width, hidden): value projection. `say` (layers, hidden, width): readout. `rows` (vocabulary,
    hidden): output directions of the tokens. 0 without spoken values.
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
    """Cross-entropy of the write gates as classifiers of told tokens against others.

    A conversation has few told tokens, and a step's conversations use few tellings. Sampling from all tellings and from
    filler gives better classifiers.
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
