"""The direct path from the memory to the vocabulary, as if the layers between did nothing.

What all layers add at the places where a told value is to be said is compared with the output rows of the words that
could have been told. Rehearsal fits the whole memory on that path. Beside the loss through the model a probe keeps
to it: it tells the memory what to store and under which key, where the answers themselves say little yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.config import AdapterConfig
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import unit
from deltamem_agents.memory.delta_rule import floored_gate
from deltamem_agents.training.activations import Activations
from deltamem_agents.training.strung import Conversation, by_head, product, stacked_over_layers

SHARPNESS = 3.0

SIZE = 0.05
"""What the probe's weights are at on average when it begins; how loud it says anything does not count."""


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


class Probe(nn.Module):
    """Says what is read by one linear map of its own; trained beside an adapter, and left behind when it is saved.

    `say` (layers, hidden, width).
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        first = adapter.layer(0)
        self.say = nn.Parameter(torch.zeros(len(adapter.indices), first.widths.hidden, adapter.config.width))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    @torch.no_grad()
    def begin(self, adapter: Adapter) -> None:
        """Say things as the adapter's correction on o does, which rehearsal has fitted."""
        if "o" in adapter.config.delta_heads:
            for slot, say in enumerate(self.say):
                say.copy_(adapter.layer(slot).get_parameter("delta_o_proj"))
        else:
            nn.init.normal_(self.say)
        self.say.mul_(SIZE / self.say.std().clamp_min(1e-6))

    def loss(
        self, adapter: Adapter, found: Activations, conversations: Sequence[Conversation], state: Tensor, rows: Tensor
    ) -> tuple[Tensor, float]:
        """Cross-entropy of all that `conversations` tell, and the share that comes out right.

        `state` (layers, conversations, heads, r, r) with gradient; `rows` (vocabulary, hidden) the directions in
        which the model says each token. Every token that a collected answer has is a candidate.
        """
        row_of = torch.full((len(found.subjects),), -1)
        for number, conversation in enumerate(conversations):
            row_of[list(conversation.tellings)] = number
        # A telling in several conversations is asked for in the last of them.
        place = (row_of[found.telling] >= 0).nonzero().squeeze(-1)
        row = row_of[found.telling[place]]
        candidates, target = found.target.unique(return_inverse=True)
        inputs = found.asked[:, place].to(state.device)
        added, _ = said(adapter.config, ReadWeights.of(adapter), self.say, state[:, row], inputs)
        logits = F.normalize(added, dim=-1) @ directions(rows[candidates]).T * self.sharpness.exp()
        wanted = target[place].to(state.device)
        return F.cross_entropy(logits, wanted), float((logits.argmax(-1) == wanted).float().mean())
