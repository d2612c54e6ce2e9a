"""A probe of the direct path from the memory to the vocabulary, beside the loss through the model.

Rehearsal fits the whole memory on that path. The probe keeps to it: it tells the memory what to store and under which
key, where the answers themselves say little yet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.direct_path import (
    ReadWeights,
    directions,
    matching_loss,
    said,
    speaking_weight,
    spoken_loss,
)
from deltamem_agents.lab.training.strung import Conversation, WriteWeights, stacked_over_layers
from deltamem_agents.lab.training.told_tokens import Asked, Pairs
from deltamem_agents.memory.attach import Adapter

SHARPNESS = 3.0

SIZE = 0.05
"""What the probe's weights are at on average when it begins; how loud it says anything does not count."""


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
        """Say things as the adapter does, which rehearsal has fitted."""
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
        """Cross-entropy of all that `conversations` tell, and the share that comes out right.

        `state` (layers, conversations, heads, r, r) with gradient; `rows` (vocabulary, hidden) the directions in
        which the model says each token. Every token that a collected answer has is a candidate. What
        `asked` of `pairs` matches, were nothing else told, counts as well, and so does what is stored and said of
        values spoken elsewhere, by the probe as by the adapter's own readout.
        """
        row_of = torch.full((len(found.subjects),), -1)
        for number, conversation in enumerate(conversations):
            row_of[list(conversation.tellings)] = number
        # A telling in several conversations is asked for in the last of them.
        place = (row_of[found.telling] >= 0).nonzero().squeeze(-1)
        row = row_of[found.telling[place]]
        candidates, target = found.target.unique(return_inverse=True)
        inputs = found.asked[:, place].to(state.device)
        reading = ReadWeights.of(adapter)
        added, _ = said(adapter.config, reading, self.say, state[:, row], inputs)
        logits = F.normalize(added, dim=-1) @ directions(rows[candidates]).T * self.sharpness.exp()
        wanted = target[place].to(state.device)
        writing = WriteWeights.of(adapter)
        matched = matching_loss(adapter.config, writing, reading, self.say, self.sharpness, pairs, asked, rows)
        for say in (self.say, stacked_over_layers(adapter, "readout_proj")) if adapter.config.readout else (self.say,):
            matched = matched + spoken_loss(writing.value, say, self.sharpness, pairs.spoken, rows, rng)
        return matched + F.cross_entropy(logits, wanted), float((logits.argmax(-1) == wanted).float().mean())
