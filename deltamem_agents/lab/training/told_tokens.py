"""Told tokens beside the places where they are asked for, and told words alone: all that addresses and gates need.

A few vectors a telling, where a telling that is replayed keeps every token of it and its question's keys and values. So
they can be of many more tellings. What a memory stores of a value depends on the value's own tokens, and those cost
next to nothing behind a statement that is computed once: "My dog's name is", and then any word.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.training.activations import Activations, Exchanges, attention_inputs
from deltamem_agents.lab.training.batches import Renderer
from deltamem_agents.lab.training.strung import about_different, alike_tellings
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.types import Message

BESIDE_TELLING, BESIDE_QUESTION = 3, 1
"""So many tokens that are not told are kept for each telling, and for each question."""

WORDS_A_STATEMENT = 128

GROUPS = 3
"""Of so many attributes several people's are told or asked for at once."""


@dataclass(frozen=True)
class SpokenValues:
    """Attention inputs `told` (layers, n, hidden) at the tokens `target` (n,) of told words."""

    told: Tensor
    target: Tensor


@dataclass(frozen=True)
class Pairs:
    """Attention inputs (layers, n, hidden) at n told tokens, one telling's after another's.

    `told` at the token, `before` at the one before it, `asked` at the place from which it is to be said; `target` (n,)
    is the token and `telling` (n,) who told it. `begun` (layers, tellings, hidden): where each reply begins.
    `subjects`: what each telling is about, each one of `attributes` of somebody. `beside` (layers, m, hidden): some
    tokens of tellings and questions that are not told. `spoken`: told values of which there is nothing else.
    """

    told: Tensor
    before: Tensor
    asked: Tensor
    target: Tensor
    telling: Tensor
    begun: Tensor
    subjects: tuple[frozenset[str], ...]
    attributes: tuple[str, ...]
    beside: Tensor
    spoken: SpokenValues | None = None

    @classmethod
    def of(cls, found: Activations) -> Pairs:
        return cls(
            told=found.tellings.at(found.told_at),
            before=found.tellings.at((found.told_at - 1).clamp_min(0)),
            asked=found.asked,
            target=found.target,
            telling=found.telling,
            begun=found.begun,
            subjects=found.subjects,
            attributes=found.attributes,
            beside=torch.cat(
                [
                    _not_told(found.tellings, BESIDE_TELLING * len(found.subjects)),
                    _not_told(found.questions, BESIDE_QUESTION * len(found.subjects)),
                ],
                dim=1,
            ),
        )


def joined_pairs(parts: Sequence[Pairs]) -> Pairs:
    """All of them as one, in order, with the spoken values of the first."""
    counts = torch.tensor([len(part.subjects) for part in parts])
    begins = (counts.cumsum(0) - counts).tolist()
    return Pairs(
        **{
            name: torch.cat([getattr(part, name) for part in parts], 1)
            for name in ("told", "before", "asked", "begun", "beside")
        },
        target=torch.cat([part.target for part in parts]),
        telling=torch.cat([part.telling + begin for part, begin in zip(parts, begins, strict=True)]),
        subjects=tuple(subject for part in parts for subject in part.subjects),
        attributes=tuple(attribute for part in parts for attribute in part.attributes),
        spoken=parts[0].spoken,
    )


def _not_told(source: Exchanges, count: int) -> Tensor:
    """Inputs at up to `count` of the contents that are not told, always the same ones."""
    contents = torch.cat(source.contents).unique()
    others = contents[~source.told[contents]]
    picked = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:count]
    return source.at(others[picked.sort().values])


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
