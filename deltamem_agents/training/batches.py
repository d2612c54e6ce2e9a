"""Episodes as tensors: the hidden history, and the questions asked in a fresh prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deltamem_agents.errors import ConfigError
from deltamem_agents.training.episodes import Episode, Question
from deltamem_agents.types import Message

PREFIX_WEIGHT = 0.1
"""Weight of the reply's tokens before and after the answer, against 1 for the answer's own."""


class Rendering(Protocol):
    """Token ids, and for each the index of the message whose content it is, −1 for scaffolding."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def owner(self) -> Sequence[int]: ...


class Renderer(Protocol):
    """What is used of a chat template."""

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = True, continue_final: bool = False
    ) -> Rendering: ...


@dataclass(frozen=True)
class HistoryBatch:
    """Right-padded histories without their lead. `tokens`, `valid` and `writable` are (batch, T).

    `valid` is False for padding. `lead` (tokens,) is the system part all of them begin with, which neither
    reads nor writes, so that its keys and values are the same for every history.
    """

    lead: Tensor
    tokens: Tensor
    valid: Tensor
    writable: Tensor

    def to(self, device: torch.device) -> HistoryBatch:
        return HistoryBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class QuestionBatch:
    """Right-padded prompts with their replies, without their lead.

    `row` (questions,) says whose history each belongs to. `places` (targets, 2) lists (question, position) of the
    hidden states that predict `targets` (targets,); `is_answer` and `is_first` mark the answer's own tokens and its
    first one.
    """

    lead: Tensor
    tokens: Tensor
    valid: Tensor
    row: Tensor
    places: Tensor
    targets: Tensor
    is_answer: Tensor
    is_first: Tensor

    def to(self, device: torch.device) -> QuestionBatch:
        return QuestionBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def lead_length(owner: Sequence[int], messages: Sequence[Message]) -> int:
    """How many tokens come before the first content that is not a system message's."""
    spoken = {index for index, message in enumerate(messages) if message.role != "system"}
    return next((place for place, index in enumerate(owner) if index in spoken), len(owner))


def history_batch(renderer: Renderer, histories: Sequence[Sequence[Message]]) -> HistoryBatch:
    """Raises ConfigError unless all histories begin with the same system part."""
    rows = [renderer.render(messages, generation_prompt=False) for messages in histories]
    lead = _common_lead([row.ids[: lead_length(row.owner, m)] for row, m in zip(rows, histories, strict=True)])
    tokens, valid = _pad([row.ids[len(lead) :] for row in rows])
    writable = torch.zeros_like(valid)
    for index, row in enumerate(rows):
        owner = torch.tensor(row.owner[len(lead) :])
        writable[index, : len(owner)] = owner >= 0
    return HistoryBatch(torch.tensor(lead), tokens, valid, writable)


def question_batch(renderer: Renderer, episodes: Sequence[Episode]) -> QuestionBatch:
    rows: list[int] = []
    ids: list[Sequence[int]] = []
    leads: list[Sequence[int]] = []
    places: list[tuple[int, int]] = []
    targets: list[tuple[int, bool, bool]] = []
    for row, episode in enumerate(episodes):
        for question in episode.questions:
            asked = (Message("user", question.question), Message("assistant", question.reply))
            rendered = renderer.render(asked, generation_prompt=False)
            lead = lead_length(rendered.owner, asked)
            # The end-of-turn mark is learned too; what follows it is the template's business.
            end = max(i for i, owner in enumerate(rendered.owner) if owner == 1) + 2
            start, stop = _answer_span(renderer, question)
            for place in range(rendered.owner.index(1), end):
                places.append((len(ids), place - 1 - lead))
                targets.append((rendered.ids[place], start <= place < stop, place == start))
            ids.append(rendered.ids[lead : end - 1])
            leads.append(rendered.ids[:lead])
            rows.append(row)
    tokens, valid = _pad(ids)
    token, answer, begin = zip(*targets, strict=True)
    return QuestionBatch(
        torch.tensor(_common_lead(leads)),
        tokens,
        valid,
        torch.tensor(rows),
        torch.tensor(places),
        torch.tensor(token),
        torch.tensor(answer),
        torch.tensor(begin),
    )


@dataclass(frozen=True)
class NeutralBatch:
    """Right-padded exchanges that memory should not change, without their lead.

    `row`: whose history's state is read. `places` (N, 2): where the prediction is compared with the frozen
    model's.
    """

    lead: Tensor
    tokens: Tensor
    valid: Tensor
    row: Tensor
    places: Tensor

    def to(self, device: torch.device) -> NeutralBatch:
        return NeutralBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def neutral_batch(renderer: Renderer, exchanges: Sequence[Sequence[Message]]) -> NeutralBatch:
    """One exchange a row: a user's message, and the reply if its wording is to be kept.

    Without a reply only the choice of its first token is compared.
    """
    rows = [renderer.render(messages, generation_prompt=len(messages) == 1) for messages in exchanges]
    leads = [row.ids[: lead_length(row.owner, m)] for row, m in zip(rows, exchanges, strict=True)]
    lead = _common_lead(leads)
    tokens, valid = _pad([row.ids[len(lead) :] for row in rows])
    places: list[tuple[int, int]] = []
    for index, row in enumerate(rows):
        spoken = [place for place, owner in enumerate(row.owner) if owner == 1] or [len(row.ids)]
        places += [(index, place - 1 - len(lead)) for place in spoken]
    return NeutralBatch(torch.tensor(lead), tokens, valid, torch.arange(len(rows)), torch.tensor(places))


def told_places(renderer: Renderer, episodes: Sequence[Episode], histories: HistoryBatch) -> tuple[Tensor, Tensor]:
    """Where values were told: places (tokens, 2) as (row, position), and a mask (batch, T) of them.

    In the order of the episodes' questions.
    """
    mask = torch.zeros_like(histories.valid)
    places: list[tuple[int, int]] = []
    for row, episode in enumerate(episodes):
        for question in episode.questions:
            assert question.told is not None
            before = episode.messages[: question.told.message]
            message = episode.messages[question.told.message]

            def position(end: int, before: Sequence[Message] = before, message: Message = message) -> int:
                cut = Message(message.role, message.content[:end].rstrip())
                rendered = renderer.render((*before, cut), generation_prompt=False, continue_final=True)
                return len(rendered.ids) - len(histories.lead)

            start, stop = position(question.told.start), position(question.told.start + len(question.answer))
            mask[row, start:stop] = True
            places += [(row, place) for place in range(start, stop)]
    return torch.tensor(places), mask


def _common_lead(leads: Sequence[Sequence[int]]) -> list[int]:
    if any(list(lead) != list(leads[0]) for lead in leads):
        raise ConfigError("training conversations begin with different system parts; give all of them the same one")
    return list(leads[0])


def _answer_span(renderer: Renderer, question: Question) -> tuple[int, int]:
    """First and one past the last position of the answer's tokens in the rendered exchange."""

    def length(reply: str) -> int:
        asked = (Message("user", question.question), Message("assistant", reply))
        return len(renderer.render(asked, generation_prompt=False, continue_final=True).ids)

    return length(question.prefix), length(f"{question.prefix} {question.answer}")


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    attended = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        attended[index, : len(row)] = True
    return tokens, attended
