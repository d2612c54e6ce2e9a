"""The direct path from the memory to the vocabulary, as if the layers between did nothing.

What all layers add at the places where a told value is to be said is compared with the output rows of the words that
could have been told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.strung import by_head, product, stacked_over_layers
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import unit
from deltamem_agents.memory.delta_rule import floored_gate


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
