"""The frozen model's activations at told facts, questions and filler, collected once and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.training.batches import (
    HistoryBatch,
    QuestionBatch,
    Renderer,
    history_batch,
    question_batch,
    told_places,
)
from deltamem_agents.lab.training.objective import run_and_keep
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.types import Message

COLLECT_BATCH = 32


@dataclass(frozen=True)
class Exchanges:
    """Attention inputs of the target layers over many short conversations, concatenated.

    `inputs` (layers, N, hidden) in bfloat16. `more`: further tensors of this kind that follow it; they are never
    concatenated, since a copy would take gigabytes. `contents`: for each conversation, the places (indices into all of
    these) of its content tokens, in order. `told` (places,) bool: tokens of told values.
    """

    inputs: Tensor
    contents: tuple[Tensor, ...]
    told: Tensor
    more: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Number of places."""
        return len(self.told)

    def at(self, places: Tensor) -> Tensor:
        """Attention inputs (layers, n, hidden) at `places` (n,)."""
        if not self.more:
            return self.inputs[:, places]
        found = self.inputs.new_empty(len(self.inputs), len(places), self.inputs.shape[-1])
        begin = 0
        for part in (self.inputs, *self.more):
            here = ((places >= begin) & (places < begin + part.shape[1])).nonzero().squeeze(-1)
            found[:, here] = part[:, places[here] - begin]
            begin += part.shape[1]
        return found


@dataclass(frozen=True)
class CachedPrompt:
    """A question after the common lead, cached up to where its reply begins, and the reply to learn.

    `kept` (layers of the model, 2, heads, T, head size): keys and values of the question's tokens, in bfloat16.
    `tokens` (R,): what still has to run, beginning with the token that predicts the reply's first. `targets`,
    `is_answer` and `is_first` (R,): as in QuestionBatch.
    """

    kept: Tensor
    tokens: Tensor
    targets: Tensor
    is_answer: Tensor
    is_first: Tensor


@dataclass(frozen=True)
class Activations:
    """Cached activations of tellings, filler and questions.

    - `tellings`: exchanges that state one fact each. `subjects` and `attributes`: what each is about, for example
      "Tom's city" and "city". `earlier`: for each telling, the places in `tellings` of an earlier message that stated
      the fact with another value; empty if the fact never changed.
    - `asides`: filler.
    - `questions`: the questions about the tellings, in the same order. `prompts`: the same, cached to continue from.
    - `asked` (layers, Q, hidden): inputs at the positions that predict a told token. For each of them: `target` (Q,),
      the token; `telling` (Q,), the index of its telling; `told_at` (Q,), the place in `tellings` where it was told.
    - `begun` (layers, tellings, hidden): inputs at the positions where each reply begins.
    - `replies` (layers, P, hidden): inputs at all other positions that predict a reply's token.
    """

    tellings: Exchanges
    earlier: tuple[Tensor, ...]
    subjects: tuple[frozenset[str], ...]
    attributes: tuple[str, ...]
    asides: Exchanges
    questions: Exchanges
    prompts: tuple[CachedPrompt, ...]
    asked: Tensor
    target: Tensor
    telling: Tensor
    told_at: Tensor
    begun: Tensor
    replies: Tensor


@torch.no_grad()
def collect_activations(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    episodes: Sequence[Episode],
    asides: Exchanges,
    say: Callable[[str], None],
) -> Activations:
    """Activations of `episodes`, together with those of `asides`. The adapter must be attached to the model.

    An episode with one fact is one telling. In an episode with several, each exchange that states a fact is one.
    Raises ConfigError when the tokenizer encodes a told value differently from the same value in a reply.
    """
    tellings = _Gathering.of(renderer, [episode.messages for episode in episodes], adapter)
    asked: list[_Asked] = []
    told_at: list[Tensor] = []
    for start in range(0, len(episodes), COLLECT_BATCH):
        some = episodes[start : start + COLLECT_BATCH]
        history = history_batch(renderer, [episode.messages for episode in some])
        places, mask = told_places(renderer, some, history)
        inputs = attention_inputs(model, adapter, history.lead, history.tokens, history.valid)
        told_at.append(tellings.filled + (history.valid.flatten().cumsum(0) - 1).view_as(mask)[tuple(places.T)])
        tellings.add(history, inputs, mask, [_tellings(renderer, episode, len(history.lead)) for episode in some])
        asked.append(_asked(model, adapter, renderer, some, history.tokens[places[:, 0], places[:, 1]]))
        if start % (20 * COLLECT_BATCH) == 0:
            say(f"activations of {start + len(some)} of {len(episodes)} episodes")
    prompts = tuple(prompt for batch in asked for prompt in batch.prompts)
    answers = torch.tensor([int(prompt.is_answer.sum()) for prompt in prompts])
    told, questions = tellings.exchanges(), [question for episode in episodes for question in episode.questions]
    return Activations(
        tellings=replace(told, contents=told.contents[::2]),
        earlier=told.contents[1::2],
        subjects=tuple(frozenset({question.subject}) for question in questions),
        attributes=tuple(question.attribute for question in questions),
        asides=asides,
        questions=_question_exchanges(asked),
        prompts=prompts,
        asked=torch.cat([batch.at_answers for batch in asked], dim=1),
        target=torch.cat([prompt.targets[prompt.is_answer] for prompt in prompts]),
        telling=torch.arange(len(prompts)).repeat_interleave(answers),
        told_at=torch.cat(told_at),
        begun=torch.cat([batch.at_begins for batch in asked], dim=1),
        replies=torch.cat([batch.at_others for batch in asked], dim=1),
    )


@torch.no_grad()
def collect_asides(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    conversations: Sequence[Sequence[Message]],
    replied: Sequence[Sequence[Message]] = (),
) -> Exchanges:
    """Activations of filler: all of `conversations`, and the last message of each of `replied`.

    Each exchange of `conversations`, beginning with a user's message, becomes one entry of `contents`. In `replied`,
    only the last message counts as content. The adapter must be attached to the model.
    """
    both = [*conversations, *replied]
    spoken = _Gathering.of(renderer, both, adapter)
    for start in range(0, len(both), COLLECT_BATCH):
        some = both[start : start + COLLECT_BATCH]
        begins = [0 if start + row < len(conversations) else len(one) - 1 for row, one in enumerate(some)]
        history = history_batch(
            renderer,
            [one[:begin] for begin, one in zip(begins, some, strict=True)],
            [one[begin:] for begin, one in zip(begins, some, strict=True)],
        )
        inputs = attention_inputs(model, adapter, history.lead, history.tokens, history.valid)
        contents = [
            [row.nonzero().squeeze(-1)] if begin else _by_exchange(renderer, one, len(history.lead))
            for row, begin, one in zip(history.aside, begins, some, strict=True)
        ]
        spoken.add(history, inputs, torch.zeros_like(history.valid), contents)
    return spoken.exchanges()


def _by_exchange(renderer: Renderer, messages: Sequence[Message], lead: int) -> list[Tensor]:
    """For each exchange, which begins with a user's message: positions of its content tokens after the lead."""
    owner = torch.tensor(renderer.render(messages, generation_prompt=False).owner)[lead:]
    begins = [place for place, message in enumerate(messages) if message.role == "user"]
    return [
        ((owner >= begin) & (owner < end)).nonzero().squeeze(-1)
        for begin, end in zip(begins, [*begins[1:], len(messages)], strict=True)
    ]


def joined(parts: Sequence[Activations]) -> Activations:
    """All parts as one. The asides are the first part's."""
    kinds = {name: _joined_exchanges([getattr(part, name) for part in parts]) for name in ("tellings", "questions")}
    counts = torch.tensor([len(part.prompts) for part in parts])
    begins = (counts.cumsum(0) - counts).tolist()
    lengths = torch.tensor([len(part.tellings) for part in parts])
    starts: list[int] = (lengths.cumsum(0) - lengths).tolist()
    return Activations(
        **kinds,
        earlier=tuple(places + start for part, start in zip(parts, starts, strict=True) for places in part.earlier),
        subjects=tuple(subject for part in parts for subject in part.subjects),
        attributes=tuple(attribute for part in parts for attribute in part.attributes),
        asides=parts[0].asides,
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        asked=torch.cat([part.asked for part in parts], dim=1),
        target=torch.cat([part.target for part in parts]),
        telling=torch.cat([part.telling + begin for part, begin in zip(parts, begins, strict=True)]),
        told_at=torch.cat([part.told_at + start for part, start in zip(parts, starts, strict=True)]),
        begun=torch.cat([part.begun for part in parts], dim=1),
        replies=torch.cat([part.replies for part in parts], dim=1),
    )


def _joined_exchanges(parts: Sequence[Exchanges]) -> Exchanges:
    contents: list[Tensor] = []
    begin = 0
    for part in parts:
        contents += [places + begin for places in part.contents]
        begin += len(part)
    pieces = [piece for part in parts for piece in (part.inputs, *part.more)]
    return Exchanges(pieces[0], tuple(contents), torch.cat([part.told for part in parts]), tuple(pieces[1:]))


def _tellings(renderer: Renderer, episode: Episode, lead: int) -> list[Tensor]:
    """For each of an episode's facts, two tensors of content positions after the lead.

    The first is the telling's. The second is that of the earlier message with the outdated value, without the reply;
    empty if there is none.
    """
    owner = torch.tensor(renderer.render(episode.messages, generation_prompt=False).owner)[lead:]

    def within(messages: range) -> Tensor:
        return ((owner >= messages.start) & (owner < messages.stop)).nonzero().squeeze(-1)

    found = []
    for question in episode.questions:
        assert question.told is not None
        before = question.told_before
        whole = len(episode.questions) == 1 and before is None
        found.append(within(range(len(episode.messages)) if whole else episode.exchange_places(question.told)))
        spoken = range(0) if before is None else range(episode.exchange_places(before).start, before.message + 1)
        found.append(within(spoken))
    return found


@dataclass(frozen=True)
class _Asked:
    """The cached data of a batch of questions.

    `inputs` (layers, tokens, hidden): attention inputs. `questions`: for each question, the indices of its content
    tokens and of the token before them.
    """

    inputs: Tensor
    questions: list[Tensor]
    prompts: list[CachedPrompt]
    at_answers: Tensor
    at_begins: Tensor
    at_others: Tensor


def _question_exchanges(asked: Sequence[_Asked]) -> Exchanges:
    inputs = [batch.inputs[:, rows] for batch in asked for rows in batch.questions]
    counts = torch.tensor([one.shape[1] for one in inputs])
    ends: list[int] = counts.cumsum(0).tolist()
    # Each question begins with the token before its content.
    contents = tuple(torch.arange(end - count + 1, end) for end, count in zip(ends, counts.tolist(), strict=True))
    return Exchanges(torch.cat(inputs, dim=1), contents, torch.zeros(ends[-1], dtype=torch.bool))


def _asked(model: nn.Module, adapter: Adapter, renderer: Renderer, episodes: Sequence[Episode], told: Tensor) -> _Asked:
    questions = question_batch(renderer, episodes)
    if not torch.equal(told, questions.targets[questions.is_answer]):
        raise ConfigError(
            "the tokenizer encodes a told value differently from the same value in a reply, and training compares them "
            "token by token; choose a model whose tokenizer puts the space before a word into the word's first token"
        )
    inputs, cache = _run(model, adapter, questions.lead, questions.tokens, questions.valid)
    inputs = inputs.bfloat16()
    content = questions.writable & ~questions.replies
    content[:, :-1] |= content[:, 1:].clone()
    numbered = content.flatten().cumsum(0).view_as(content) - 1
    at, other = questions.places[questions.is_answer], questions.places[~questions.is_answer]
    # Targets are ordered by question, and within a question by position in the reply.
    _, counts = questions.places[:, 0].unique_consecutive(return_counts=True)
    begin = questions.places[counts.cumsum(0) - counts]
    return _Asked(
        inputs[:, content],
        [numbers[mask] for numbers, mask in zip(numbered, content, strict=True)],
        _prompts(questions, cache),
        inputs[:, at[:, 0], at[:, 1]],
        inputs[:, begin[:, 0], begin[:, 1]],
        inputs[:, other[:, 0], other[:, 1]],
    )


def _prompts(questions: QuestionBatch, cache: Any) -> list[CachedPrompt]:
    kept = torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers]).bfloat16().cpu()
    prompts = []
    for row, (tokens, count) in enumerate(zip(questions.tokens, questions.valid.sum(dim=1).tolist(), strict=True)):
        of_row = questions.places[:, 0] == row
        begin, lead = int(questions.places[of_row, 1][0]), len(questions.lead)
        prompts.append(
            CachedPrompt(
                kept[:, :, row, :, lead : lead + begin].clone(),
                tokens[begin:count],
                questions.targets[of_row],
                questions.is_answer[of_row],
                questions.is_first[of_row],
            )
        )
    return prompts


class _Gathering:
    """Builds an Exchanges. Memory is allocated once: activations take gigabytes, and a copy would take as many more."""

    def __init__(self, inputs: Tensor) -> None:
        self._inputs, self.filled = inputs, 0
        self._contents: list[Tensor] = []
        self._told: list[Tensor] = []

    @classmethod
    def of(cls, renderer: Renderer, conversations: Sequence[Sequence[Message]], adapter: Adapter) -> _Gathering:
        """An empty one with room for all of `conversations`."""
        tokens = sum(len(renderer.render(messages, generation_prompt=False).ids) for messages in conversations)
        layer = adapter.layer(0)
        return cls(torch.empty(len(adapter.indices), tokens, layer.widths.hidden, dtype=torch.bfloat16))

    def add(self, history: HistoryBatch, inputs: Tensor, told: Tensor, contents: Sequence[Sequence[Tensor]]) -> None:
        """Adds a batch's `inputs` (layers, batch, T, hidden) without padding, and its `told` mask.

        `contents`: for each row, the positions of content tokens, grouped by exchange.
        """
        valid = history.valid
        for row, belonging in zip(valid, contents, strict=True):
            self._contents += [self.filled + places for places in belonging]
            self.filled += int(row.sum())
        count = int(valid.sum())
        self._inputs[:, self.filled - count : self.filled] = inputs[:, valid].to(self._inputs.dtype)
        self._told.append(told[valid])

    def exchanges(self) -> Exchanges:
        return Exchanges(self._inputs[:, : self.filled], tuple(self._contents), torch.cat(self._told))


def attention_inputs(model: nn.Module, adapter: Adapter, lead: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Attention inputs (layers, batch, T, hidden) of the target layers without memory, on the CPU."""
    return _run(model, adapter, lead, tokens, valid)[0]


def _run(model: nn.Module, adapter: Adapter, lead: Tensor, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Any]:
    """As `attention_inputs`, and also the key–value cache of the lead and the tokens."""
    device = next(model.parameters()).device
    call = MemoryCall(adapter.zero_state(len(tokens)), valid.to(device), inputs={})
    _, cache = run_and_keep(model, lead.to(device), tokens.to(device), valid.to(device), call)
    assert call.inputs is not None
    return torch.stack([call.inputs[slot] for slot in range(len(adapter.indices))]).cpu(), cache
