"""What words look like to the layers of a model where they are told, of far more words than could be told in full.

A telling costs a conversation, a question and a reply. What a memory stores of a value depends on the value's own
tokens, and those cost next to nothing behind a statement that is computed once: "My dog's name is", and then any word.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.lab.training.activations import attention_inputs
from deltamem_agents.lab.training.batches import Renderer
from deltamem_agents.lab.training.direct_path import directions
from deltamem_agents.lab.training.episodes import Episode
from deltamem_agents.lab.training.strung import product
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.types import Message

WORDS_A_STATEMENT = 128

SAID_AT_ONCE, CANDIDATES = 256, 4096
"""Tokens that a step looks at, and among how many others each has to be found."""


@dataclass(frozen=True)
class SpokenValues:
    """Attention inputs `told` (layers, n, hidden) at the tokens `target` (n,) of told words."""

    told: Tensor
    target: Tensor


def collect_spoken(
    model: nn.Module, adapter: Adapter, renderer: Renderer, episodes: Sequence[Episode], words: Sequence[str]
) -> SpokenValues:
    """All `words` as values of what users tell in `episodes`, a new statement every WORDS_A_STATEMENT of them.

    The model carries the adapter.
    """
    before = [said for episode in episodes if (said := _before_the_value(episode))]
    starts = range(0, len(words) if before else 0, WORDS_A_STATEMENT)
    statements = [
        (before[number % len(before)], words[start : start + WORDS_A_STATEMENT]) for number, start in enumerate(starts)
    ]
    return collect_behind(model, adapter, renderer, statements)


@torch.no_grad()
def collect_behind(
    model: nn.Module, adapter: Adapter, renderer: Renderer, statements: Iterable[tuple[str, Sequence[str]]]
) -> SpokenValues:
    """Words, each behind the statement it comes with. The model carries the adapter."""
    told: list[Tensor] = []
    target: list[Tensor] = []
    for said, words in statements:
        lead = _said(renderer, said)
        spoken = [_said(renderer, f"{said} {word}") for word in words]
        # Hardly ever do the tokens before a word depend on it.
        tokens = [whole[len(lead) :] for whole in spoken if torch.equal(whole[: len(lead)], lead)]
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        valid = torch.arange(padded.shape[1]) < torch.tensor([len(one) for one in tokens])[:, None]
        inputs = attention_inputs(model, adapter, lead, padded, valid)
        told.append(inputs[:, valid].bfloat16())
        target.append(padded[valid])
    layers, hidden = len(adapter.indices), adapter.layer(0).widths.hidden
    return SpokenValues(
        torch.cat([torch.zeros(layers, 0, hidden, dtype=torch.bfloat16), *told], dim=1),
        torch.cat([torch.zeros(0, dtype=torch.long), *target]),
    )


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


def _before_the_value(episode: Episode) -> str:
    """What the user says up to the value asked for first, empty where that begins a message or none tells it."""
    told = episode.questions[0].told
    if told is None or episode.messages[told.message].role != "user":
        return ""
    return episode.messages[told.message].content[: told.start].rstrip()


def _said(renderer: Renderer, text: str) -> Tensor:
    """The tokens of a conversation up to the end of a user's first words."""
    rendered = renderer.render([Message("user", text)], generation_prompt=False)
    return torch.tensor(rendered.ids[: max(place for place, owner in enumerate(rendered.owner) if owner == 0) + 1])
