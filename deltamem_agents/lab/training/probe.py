"""A linear probe of the direct path from the memory to the vocabulary, as an auxiliary loss.

Rehearsal fits the whole memory on that path. The probe keeps that training signal: it tells the memory what to store
and under which key, while the loss through the model says little about that early in training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.composing import Conversation, WriteWeights, stacked_over_layers
from deltamem_agents.lab.training.direct_path import (
    ReadWeights,
    added_output,
    directions,
    matching_loss,
    speaking_weight,
    spoken_loss,
)
from deltamem_agents.lab.training.told_tokens import Asked, Pairs
from deltamem_agents.memory.attach import Adapter

SHARPNESS = 3.0

SIZE = 0.05
"""Initial standard deviation of the probe's weights. The scale of its output does not matter."""


class Probe(nn.Module):
    """A linear readout of the state, trained beside the adapter and not saved with it.

    `say` (layers, hidden, width): its weights.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        first = adapter.layer(0)
        self.say = nn.Parameter(torch.zeros(len(adapter.indices), first.widths.hidden, adapter.config.width))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    @torch.no_grad()
    def begin(self, adapter: Adapter) -> None:
        """Copies the adapter's own readout, which rehearsal has fitted."""
        if speaking := speaking_weight(adapter.config):
            for slot, say in enumerate(self.say):
                say.copy_(adapter.layer(slot).get_parameter(speaking))
        else:
            nn.init.normal_(self.say)
        self.say.mul_(SIZE / self.say.std().clamp_min(1e-6))

    def loss(
        self,
        adapter: Adapter,
        found: Activations,
        conversations: Sequence[Conversation],
        pairs: Pairs,
        asked: Asked,
        rng: random.Random,
        state: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, float]:
        """The probe's loss, and the share of the conversations' told tokens that it gets right.

        The loss is the sum of three cross-entropies: reading the told tokens from the states, with all tokens of
        collected answers as candidates; matching questions, `asked` of `pairs`, with told values (`matching_loss`); and
        saying spoken values from what is stored of them, by the probe and by the adapter's readout (`spoken_loss`).

        `state` (layers, conversations, heads, r, r) with gradient. `rows` (vocabulary, hidden): output directions.
        """
        row_of = torch.full((len(found.subjects),), -1)
        for number, conversation in enumerate(conversations):
            row_of[list(conversation.tellings)] = number
        # A telling that occurs in several conversations is read from the last of them.
        place = (row_of[found.telling] >= 0).nonzero().squeeze(-1)
        row = row_of[found.telling[place]]
        candidates, target = found.target.unique(return_inverse=True)
        inputs = found.asked[:, place].to(state.device)
        reading = ReadWeights.of(adapter)
        added, _ = added_output(adapter.config, reading, self.say, state[:, row], inputs)
        logits = F.normalize(added, dim=-1) @ directions(rows[candidates]).T * self.sharpness.exp()
        wanted = target[place].to(state.device)
        writing = WriteWeights.of(adapter)
        matched = matching_loss(adapter.config, writing, reading, self.say, self.sharpness, pairs, asked, rows)
        for say in (self.say, stacked_over_layers(adapter, "readout_proj")) if adapter.config.readout else (self.say,):
            matched = matched + spoken_loss(writing.value, say, self.sharpness, pairs.spoken, rows, rng)
        return matched + F.cross_entropy(logits, wanted), float((logits.argmax(-1) == wanted).float().mean())
