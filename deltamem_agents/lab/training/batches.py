"""Episodes as tensors: the hidden history, and the questions asked in a fresh prompt."""

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
"""Weight of the reply's tokens before and after the answer, against 1 for the answer's own."""

FIRST_WEIGHT = 0.5
"""Weight of the reply's first token, which decides whether it will be an answer."""

END_WEIGHT = 1.5
"""Weight of the token behind the answer, which decides whether its last word ends there."""

LIKE_LENGTH = 0.7
"""Histories are run together while the shortest has at least this share of the longest one's tokens."""


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
    """Right-padded histories without their lead. `tokens` and the masks are (batch, T).

    `valid` is False for padding, `replies` True where a token of a reply is predicted, `writable` for contents,
    which are written, `aside` for those of them that hold nothing to remember. `lead` (tokens,) is what all of them
    begin with; it neither reads nor writes, so that its keys and values are the same for every history.
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
        """The rows in groups that hardly need padding, each group with its rows' places in this batch."""
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

    `tokens`, `valid`, `replies`, `writable` (questions, T) as in HistoryBatch.

    `row` (questions,) says whose history each belongs to. `places` (targets, 2) lists (question, position) of
    the hidden states that predict `targets` (targets,); `is_answer` and `is_first` mark the answer's own
    tokens and its first one.
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
    """Each history, followed by its messages of `asides`, in which nothing is told.

    Raises ConfigError unless all histories begin with the same system part, of two tokens at least.
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
    """Every question of every episode, in order, with the reply to learn.

    Raises ConfigError unless all prompts begin with the same system part, of two tokens at least.
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
    """A question and its reply, `messages`, behind their lead, up to and with the token that ends the reply.

    `owner`: of `all_ids`, as the renderer says. `reply`: where the reply's tokens begin; `answer`: the places
    of the answer's.
    """

    messages: tuple[Message, ...]
    lead: Sequence[int]
    all_ids: Sequence[int]
    owner: Sequence[int]
    reply: int
    answer: range

    @property
    def ids(self) -> Sequence[int]:
        """What the model is shown: the last token is only predicted."""
        return self.all_ids[:-1]


def _exchange(renderer: Renderer, question: Question) -> _Exchange:
    def exchange(reply: str) -> tuple[Message, ...]:
        return Message("user", question.question), Message("assistant", reply)

    def render(reply: str, *, cut: bool) -> Rendering:
        return renderer.render(exchange(reply), generation_prompt=False, continue_final=cut)

    whole = render(question.reply, cut=False)
    lead = lead_length(whole.owner, exchange(question.reply))
    reply = [place for place, owner in enumerate(whole.owner) if owner == 1]
    # The end-of-turn mark is learned too; what follows it is the template's business.
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
    """Messages of which the last is a reply. `cut`: it is only the beginning of one."""

    messages: tuple[Message, ...]
    cut: bool = False


@dataclass(frozen=True)
class NeutralBatch:
    """Right-padded exchanges that memory should not change, without their lead.

    `tokens`, `valid`, `replies`, `writable` (rows, T) as in HistoryBatch. `row` (rows,): whose history's state is read.
    `places` (N, 2): where the prediction is compared with the frozen model's.
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
    """Each exchange read with the state of its history. Compared are its reply's tokens and what comes after them."""
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
    """Where values were told: places (tokens, 2) as (row, position), and a mask (batch, T) of them.

    In the order of the episodes' questions, each of which has to say where its fact was told. The mask has the values
    that were changed later as well.
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
    """Where among the tokens of an episode, whose messages `owner` numbers, a told value stands."""
    begins, content = owner.index(told.message), episode.messages[told.message].content
    start, stop = (_content_tokens(renderer, content[:cut]) for cut in (told.start, told.start + len(value)))
    return range(begins + start, begins + stop)


def _content_tokens(renderer: Renderer, text: str) -> int:
    """How many tokens a user's message that begins with `text` has for it, a space at its end left out."""
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
            "needs two: one to begin with, one that shifts the first key; give the tokenizer a template with turn marks"
        )
    return list(leads[0])


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as (batch, T), and which places of it are theirs."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        valid[index, : len(row)] = True
    return tokens, valid


def _contents(owners: Sequence[Sequence[int]], valid: Tensor, first: Sequence[int] | None = None) -> Tensor:
    """Bool (batch, T): the tokens of some message's content, in each row from its message `first` on."""
    marked = torch.zeros_like(valid)
    for index, owner in enumerate(owners):
        marked[index, : len(owner)] = torch.tensor(owner) >= (0 if first is None else first[index])
    return marked


def _speaks(owners: Sequence[Sequence[int]], rows: Sequence[Sequence[Message]], valid: Tensor) -> Tensor:
    """Bool (batch, T): the tokens from which a token of an assistant's message is predicted."""
    marked = torch.zeros_like(valid)
    for index, (owner, messages) in enumerate(zip(owners, rows, strict=True)):
        marked[index, : len(owner)] = torch.tensor(replies(owner, messages, prompted=False))
    return marked
