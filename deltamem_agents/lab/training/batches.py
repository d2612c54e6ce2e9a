"""Episodes as tensors: the history, and questions asked in a new prompt that does not show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deltamem_agents.chat.speaking import lead_length, replies
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.episodes import Episode, Question, Told
from deltamem_agents.types import Message

PREFIX_WEIGHT = 0.1
"""Loss weight of a reply's tokens before and after the answer. The answer's own tokens weigh 1."""

FIRST_WEIGHT = 0.5
"""Loss weight of a reply's first token, which decides whether the model answers at all."""

END_WEIGHT = 1.5
"""Loss weight of the token after the answer, which decides whether the answer's last word ends there."""

LIKE_LENGTH = 0.7
"""Histories share a batch while the shortest has at least this share of the longest one's tokens."""


class Rendering(Protocol):
    """Token ids, and for each the index of the message whose content it belongs to, −1 for template tokens."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def owner(self) -> Sequence[int]: ...


class Renderer(Protocol):
    """The part of a chat template that training uses."""

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = True, continue_final: bool = False
    ) -> Rendering: ...


@dataclass(frozen=True)
class HistoryBatch:
    """Right-padded histories without their lead. `tokens` and the masks are (batch, T).

    `valid`: False for padding. `replies`: True at positions that predict a reply's token. `writable`: content tokens,
    which are written. `aside`: content tokens of exchanges that state no fact. `lead` (tokens,): what all histories
    begin with. It neither reads nor writes, so its keys and values are the same for every history.
    """

    lead: Tensor
    tokens: Tensor
    valid: Tensor
    replies: Tensor
    writable: Tensor
    aside: Tensor

    def to(self, device: torch.device) -> HistoryBatch:
        return HistoryBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def of_like_length(self) -> list[tuple[Tensor, HistoryBatch]]:
        """The rows in groups of similar length, to save padding; each group with its rows' indices in this batch."""
        lengths = self.valid.sum(dim=1)
        groups: list[list[int]] = []
        for row in lengths.argsort(descending=True).tolist():
            if not groups or lengths[row] < LIKE_LENGTH * lengths[groups[-1][0]]:
                groups.append([])
            groups[-1].append(row)
        return [(torch.tensor(rows), self._rows(rows, int(lengths[rows[0]]))) for rows in groups]

    def _rows(self, rows: list[int], longest: int) -> HistoryBatch:
        cut = (getattr(self, name)[rows, :longest] for name in ("tokens", "valid", "replies", "writable", "aside"))
        return HistoryBatch(self.lead, *cut)


@dataclass(frozen=True)
class QuestionBatch:
    """Right-padded prompts with their replies, without their lead.

    `tokens`, `valid`, `replies`, `writable` (questions, T): as in HistoryBatch. `row` (questions,): index of the
    history that each question belongs to. `places` (targets, 2): (question, position) of the hidden states that predict
    `targets` (targets,). `is_answer`, `is_first` (targets,): the answer's tokens, and its first token.
    """

    lead: Tensor
    tokens: Tensor
    valid: Tensor
    replies: Tensor
    writable: Tensor
    row: Tensor
    places: Tensor
    targets: Tensor
    is_answer: Tensor
    is_first: Tensor

    def to(self, device: torch.device) -> QuestionBatch:
        return QuestionBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def history_batch(
    renderer: Renderer,
    histories: Sequence[Sequence[Message]],
    asides: Sequence[Sequence[Message]] | None = None,
) -> HistoryBatch:
    """Batches the histories, each followed by its messages in `asides`, which state no fact.

    Raises ConfigError unless all histories begin with the same system part of at least two tokens.
    """
    after = asides or [()] * len(histories)
    whole = [(*history, *aside) for history, aside in zip(histories, after, strict=True)]
    rows = [renderer.render(messages, generation_prompt=False) for messages in whole]
    lead = _common_lead([row.ids[: lead_length(row.owner, m)] for row, m in zip(rows, whole, strict=True)])
    tokens, valid = _pad([row.ids[len(lead) :] for row in rows])
    owners = [row.owner[len(lead) :] for row in rows]
    aside = _contents(owners, valid, [len(history) for history in histories])
    speaks = _speaks(owners, whole, valid)
    return HistoryBatch(torch.tensor(lead), tokens, valid, speaks, _contents(owners, valid), aside)


def question_batch(renderer: Renderer, episodes: Sequence[Episode]) -> QuestionBatch:
    """Batches every question of every episode, in order, with the reply to learn.

    Raises ConfigError unless all prompts begin with the same system part of at least two tokens.
    """
    asked = [(row, question) for row, episode in enumerate(episodes) for question in episode.questions]
    exchanges = [_exchange(renderer, question) for _, question in asked]
    tokens, valid = _pad([exchange.ids for exchange in exchanges])
    learned = [(index, place) for index, one in enumerate(exchanges) for place in range(one.reply, len(one.all_ids))]
    return QuestionBatch(
        torch.tensor(_common_lead([exchange.lead for exchange in exchanges])),
        tokens,
        valid,
        _speaks([exchange.owner[:-1] for exchange in exchanges], [exchange.messages for exchange in exchanges], valid),
        _contents([exchange.owner[:-1] for exchange in exchanges], valid),
        torch.tensor([row for row, _ in asked]),
        torch.tensor([(index, place - 1) for index, place in learned]),
        torch.tensor([exchanges[index].all_ids[place] for index, place in learned]),
        torch.tensor([place in exchanges[index].answer for index, place in learned]),
        torch.tensor([place == exchanges[index].answer.start for index, place in learned]),
    )


@dataclass(frozen=True)
class _Exchange:
    """A question and its reply (`messages`) without the `lead`, up to and including the token that ends the reply.

    `owner`: message index of each of `all_ids`. `reply`: position of the reply's first token. `answer`: positions of
    the answer's tokens.
    """

    messages: tuple[Message, ...]
    lead: Sequence[int]
    all_ids: Sequence[int]
    owner: Sequence[int]
    reply: int
    answer: range

    @property
    def ids(self) -> Sequence[int]:
        """The model's input. The last token is only predicted, never read."""
        return self.all_ids[:-1]


def _exchange(renderer: Renderer, question: Question) -> _Exchange:
    def exchange(reply: str) -> tuple[Message, ...]:
        return Message("user", question.question), Message("assistant", reply)

    def render(reply: str, *, cut: bool) -> Rendering:
        return renderer.render(exchange(reply), generation_prompt=False, continue_final=cut)

    whole = render(question.reply, cut=False)
    lead = lead_length(whole.owner, exchange(question.reply))
    reply = [place for place, owner in enumerate(whole.owner) if owner == 1]
    # The end-of-turn token is learned too. The template alone produces what follows it.
    end = min(reply[-1] + 2, len(whole.ids))
    start = len(render(question.prefix, cut=True).ids)
    stop = len(render(f"{question.prefix} {question.answer}", cut=True).ids)
    return _Exchange(
        exchange(question.reply),
        whole.ids[:lead],
        whole.ids[lead:end],
        whole.owner[lead:end],
        reply[0] - lead,
        range(start - lead, stop - lead),
    )


@dataclass(frozen=True)
class Exchange:
    """Messages that end with a reply. `cut`: the reply is unfinished."""

    messages: tuple[Message, ...]
    cut: bool = False


@dataclass(frozen=True)
class NeutralBatch:
    """Right-padded exchanges whose replies memory should not change, without their lead.

    `tokens`, `valid`, `replies`, `writable` (rows, T): as in HistoryBatch. `row` (rows,): index of the history whose
    state is read. `places` (N, 2): (row, position) where predictions are compared with the frozen model's.
    """

    lead: Tensor
    tokens: Tensor
    valid: Tensor
    replies: Tensor
    writable: Tensor
    row: Tensor
    places: Tensor

    def to(self, device: torch.device) -> NeutralBatch:
        return NeutralBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def neutral_batch(renderer: Renderer, exchanges: Sequence[Exchange], histories: Sequence[int]) -> NeutralBatch:
    """Batches exchanges, each to be read with the state of its history.

    Predictions are compared at the reply's tokens and at the token after them.
    """
    rows = [renderer.render(one.messages, generation_prompt=False, continue_final=one.cut) for one in exchanges]
    leads = [row.ids[: lead_length(row.owner, one.messages)] for row, one in zip(rows, exchanges, strict=True)]
    lead = _common_lead(leads)
    tokens, valid = _pad([row.ids[len(lead) :] for row in rows])
    places: list[tuple[int, int]] = []
    for index, (row, one) in enumerate(zip(rows, exchanges, strict=True)):
        reply = len(one.messages) - 1
        spoken = [place - len(lead) for place, owner in enumerate(row.owner) if owner == reply]
        places += [(index, place) for place in (spoken[0] - 1, *spoken)]
    owners = [row.owner[len(lead) :] for row in rows]
    return NeutralBatch(
        torch.tensor(lead),
        tokens,
        valid,
        _speaks(owners, [one.messages for one in exchanges], valid),
        _contents(owners, valid),
        torch.tensor(histories),
        torch.tensor(places),
    )


def told_places(renderer: Renderer, episodes: Sequence[Episode], histories: HistoryBatch) -> tuple[Tensor, Tensor]:
    """The places where values were told: (row, position) pairs (tokens, 2), and a mask (batch, T) of these positions.

    The pairs follow the order of the episodes' questions. Each question must say where its fact was told. The mask also
    covers values that were changed later.
    """
    mask = torch.zeros_like(histories.valid)
    places: list[tuple[int, int]] = []
    for row, episode in enumerate(episodes):
        owner = list(renderer.render(episode.messages, generation_prompt=False).owner)[len(histories.lead) :]
        for question in episode.questions:
            assert question.told is not None
            told = _value_tokens(renderer, episode, owner, question.told, question.answer)
            mask[row, told.start : told.stop] = True
            places += [(row, place) for place in told]
            if question.told_before is not None:
                before = _value_tokens(renderer, episode, owner, question.told_before, question.outdated[-1])
                mask[row, before.start : before.stop] = True
    return torch.tensor(places), mask


def _value_tokens(renderer: Renderer, episode: Episode, owner: Sequence[int], told: Told, value: str) -> range:
    """Positions of a told value among an episode's tokens. `owner`: message index of each token."""
    begins, content = owner.index(told.message), episode.messages[told.message].content
    start, stop = (_content_tokens(renderer, content[:cut]) for cut in (told.start, told.start + len(value)))
    return range(begins + start, begins + stop)


def _content_tokens(renderer: Renderer, text: str) -> int:
    """Number of tokens for `text` at the beginning of a user's message, without trailing spaces."""
    text = text.rstrip()
    if not text:
        return 0
    owner = renderer.render((Message("user", text),), generation_prompt=False).owner
    return sum(index == 0 for index in owner)


def _common_lead(leads: Sequence[Sequence[int]]) -> list[int]:
    if any(list(lead) != list(leads[0]) for lead in leads):
        raise ConfigError("training conversations begin with different system parts; give all of them the same one")
    if not leads[0]:
        raise ConfigError(
            "this chat template puts fewer than two tokens in front of a conversation's first content, and training "
            "needs two: a first token, and one before the first key; give the tokenizer a template with turn marks"
        )
    return list(leads[0])


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded to (batch, T), and a bool mask (batch, T) of the tokens that are not padding."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        valid[index, : len(row)] = True
    return tokens, valid


def _contents(owners: Sequence[Sequence[int]], valid: Tensor, first: Sequence[int] | None = None) -> Tensor:
    """Bool (batch, T): content tokens of messages. `first`: for each row, the first message that counts (default 0)."""
    marked = torch.zeros_like(valid)
    for index, owner in enumerate(owners):
        marked[index, : len(owner)] = torch.tensor(owner) >= (0 if first is None else first[index])
    return marked


def _speaks(owners: Sequence[Sequence[int]], rows: Sequence[Sequence[Message]], valid: Tensor) -> Tensor:
    """Bool (batch, T): positions that predict a token of an assistant's message."""
    marked = torch.zeros_like(valid)
    for index, (owner, messages) in enumerate(zip(owners, rows, strict=True)):
        marked[index, : len(owner)] = torch.tensor(replies(owner, messages, prompted=False))
    return marked
