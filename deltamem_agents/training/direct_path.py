"""The direct path from the memory to the vocabulary, as if the layers between did nothing.

What all layers add at the places where a told value is to be said is compared with the output rows of the words that
could have been told.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import unit
from deltamem_agents.memory.delta_rule import floored_gate
from deltamem_agents.training.strung import by_head, product, stacked_over_layers


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

    @classmethod
    def of(cls, adapter: Adapter) -> ReadWeights:
        """The adapter's own, with gradient to them."""
        stacked = partial(stacked_over_layers, adapter)
        if not adapter.config.read_gate:
            return cls(stacked("memory_q_proj"))
        return cls(stacked("memory_q_proj"), stacked("read_proj"), stacked("read_bias"))


def said(
    config: AdapterConfig, weights: ReadWeights, say: Tensor, state: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What all layers add (n, hidden) at `inputs` (layers, n, hidden), reading `state` (layers, n, heads, r, r).

    `say` (layers, hidden, width) turns what is read into what is added. Also the logits of the read gates
    (layers, n, heads), where the adapter has such gates.
    """
    query = unit(by_head(product(inputs, weights.query), config))
    reads = torch.einsum("lnhij,lnhj->lnhi", state, query)
    logits = None
    if weights.gate is not None and weights.gate_bias is not None:
        logits = product(inputs, weights.gate) + weights.gate_bias[:, None]
        reads = reads * floored_gate(logits, config.gate_floor)[..., None]
    return torch.einsum("lnr,ldr->nd", reads.flatten(2), say), logits


def directions(rows: Tensor) -> Tensor:
    """`rows` (n, hidden) seen from their mean, at length 1."""
    return F.normalize(rows - rows.mean(0), dim=-1)
