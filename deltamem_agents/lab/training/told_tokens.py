"""Told tokens paired with the positions that ask for them, and told words alone: the data for keys, queries and gates.

Told tokens need a few vectors per telling. A replayed telling needs all its tokens, and its question's keys and values.
So this data has room for many more tellings. The stored value depends on the value's own tokens. These are cheap to
collect: the beginning of a statement, such as "My dog's name is", runs once, and any word can follow it.
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
from deltamem_agents.lab.training.composing import about_different, alike_tellings
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.types import Message

BESIDE_TELLING, BESIDE_QUESTION = 3, 1
"""Number of other tokens kept per telling, and per question."""

WORDS_A_STATEMENT = 128

SHARED_ATTRIBUTES = 3
"""Number of attributes for which several people's values appear in one sample."""


@dataclass(frozen=True)
class SpokenValues:
    """Words collected after the beginning of a statement.

    `told` (layers, n, hidden): attention inputs at their tokens. `target` (n,): these tokens.
    """

    told: Tensor
    target: Tensor


@dataclass(frozen=True)
class Pairs:
    """Attention inputs at n told tokens, ordered by telling.

    `told`, `before`, `asked` (layers, n, hidden): inputs at the token, at the token before it, and at the position that
    predicts it in the reply. `target` (n,): the token. `telling` (n,): index of its telling. `begun` (layers, tellings,
    hidden): inputs where each reply begins. `subjects`, `attributes`: what each telling is about, for example "Tom's
    city" and "city". `beside` (layers, m, hidden): inputs at some other tokens of tellings and questions. `spoken`:
    words without a question.
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
    """All pairs as one, in order. The spoken values are the first part's."""
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
    """Inputs at up to `count` content tokens that are not told; the same ones on every call."""
    contents = torch.cat(source.contents).unique()
    others = contents[~source.told[contents]]
    picked = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:count]
    return source.at(others[picked.sort().values])


@dataclass(frozen=True)
class Asked:
    """Indices of answer tokens: those of told tellings (n,), and those of tellings that are asked but not told (m,)."""

    told: Tensor
    never_told: Tensor


def draw_asked(pairs: Pairs, facts: int, rng: random.Random) -> Asked:
    """Draws `facts` told tellings and half as many never told, all about different subjects, if there are enough.

    Up to half of all share attributes: told of some people, never told of others.
    """
    count = facts + facts // 2
    alike = [
        one
        for _ in range(SHARED_ATTRIBUTES)
        for one in alike_tellings(pairs.attributes, count // (2 * SHARED_ATTRIBUTES) - 1, rng)
    ]
    chosen = about_different(pairs.subjects, count, rng, alike)
    rng.shuffle(chosen)
    tellings = torch.tensor(chosen)
    told, others = (torch.isin(pairs.telling, some) for some in (tellings[:facts], tellings[facts:]))
    return Asked(told.nonzero().squeeze(-1), others.nonzero().squeeze(-1))


def collect_spoken(
    model: nn.Module, adapter: Adapter, renderer: Renderer, episodes: Sequence[Episode], words: Sequence[str]
) -> SpokenValues:
    """All `words` as values behind users' statements from `episodes`, with WORDS_A_STATEMENT words per statement.

    The adapter must be attached to the model.
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
    """Words, each behind the statement's beginning it comes with. The adapter must be attached to the model."""
    told: list[Tensor] = []
    target: list[Tensor] = []
    for said, words in statements:
        lead = _tokens_up_to(renderer, said)
        spoken = [_tokens_up_to(renderer, f"{said} {word}") for word in words]
        # Skip the rare words that change the tokens before them.
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
    """The user's message up to the first question's value; "" if the value begins it or no user told it."""
    told = episode.questions[0].told
    if told is None or episode.messages[told.message].role != "user":
        return ""
    return episode.messages[told.message].content[: told.start].rstrip()


def _tokens_up_to(renderer: Renderer, text: str) -> Tensor:
    """The tokens of a conversation that begins with the user's `text`, up to the end of `text`."""
    rendered = renderer.render([Message("user", text)], generation_prompt=False)
    return torch.tensor(rendered.ids[: max(place for place, owner in enumerate(rendered.owner) if owner == 0) + 1])
