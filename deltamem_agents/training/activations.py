"""The frozen model's own activations at what is told, asked and said aside, collected once for a warm start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.training.batches import HistoryBatch, Renderer, history_batch, question_batch, told_places
from deltamem_agents.training.episodes import Episode
from deltamem_agents.training.objective import run_after_lead
from deltamem_agents.types import Message

COLLECT_BATCH = 32


@dataclass(frozen=True)
class Exchanges:
    """Attention inputs of the target layers over many short conversations, one after the other.

    `inputs` (layers, N, hidden) in bfloat16. `contents`: for each conversation the places among the
    N of its content tokens, in order. `told` (N,) bool: the tokens of a told value.
    """

    inputs: Tensor
    contents: tuple[Tensor, ...]
    told: Tensor


@dataclass(frozen=True)
class Activations:
    """`tellings` tell one fact each, about `subjects`; `asides` tell nothing.

    `asked` (layers, Q, hidden): inputs at the places from which a told token is to be said; `target` (Q,) is
    that token, `telling` (Q,) who told it. `replies` (layers, P, hidden): other places of such replies.
    """

    tellings: Exchanges
    subjects: tuple[frozenset[str], ...]
    asides: Exchanges
    asked: Tensor
    target: Tensor
    telling: Tensor
    replies: Tensor


@torch.no_grad()
def collect_activations(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    episodes: Sequence[Episode],
    asides: Sequence[Sequence[Message]],
    say: Callable[[str], None],
) -> Activations:
    """Activations of episodes of one fact and of exchanges that tell nothing. The model carries the adapter.

    Raises ConfigError when the tokenizer gives a told value other tokens than the same value in a reply.
    """
    tellings = _Gathering.of(renderer, [episode.messages for episode in episodes], adapter)
    asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(episodes), COLLECT_BATCH):
        some = episodes[start : start + COLLECT_BATCH]
        history = history_batch(renderer, [episode.messages for episode in some])
        places, mask = told_places(renderer, some, history)
        tellings.add(history, _inputs(model, adapter, history.lead, history.tokens, history.valid), mask)
        asked.append(_asked(model, adapter, renderer, some, start, history.tokens[places[:, 0], places[:, 1]]))
        if start % (20 * COLLECT_BATCH) == 0:
            say(f"activations of {start + len(some)} of {len(episodes)} episodes")
    spoken = _Gathering.of(renderer, asides, adapter)
    for start in range(0, len(asides), COLLECT_BATCH):
        history = history_batch(renderer, asides[start : start + COLLECT_BATCH])
        inputs = _inputs(model, adapter, history.lead, history.tokens, history.valid)
        spoken.add(history, inputs, torch.zeros_like(history.valid))
    at_answers, targets, owners, at_others = zip(*asked, strict=True)
    return Activations(
        tellings=tellings.exchanges(),
        subjects=tuple(frozenset(question.subject for question in episode.questions) for episode in episodes),
        asides=spoken.exchanges(),
        asked=torch.cat(at_answers, dim=1),
        target=torch.cat(targets),
        telling=torch.cat(owners),
        replies=torch.cat(at_others, dim=1),
    )


def _asked(
    model: nn.Module, adapter: Adapter, renderer: Renderer, episodes: Sequence[Episode], start: int, told: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    questions = question_batch(renderer, episodes)
    targets = questions.targets[questions.is_answer]
    if not torch.equal(told, targets):
        raise ConfigError(
            "the tokenizer encodes a told value otherwise than the same value in a reply, which a warm start "
            'compares token by token; train this model with "warm_start": null'
        )
    inputs = _inputs(model, adapter, questions.lead, questions.tokens, questions.valid)
    at, other = questions.places[questions.is_answer], questions.places[~questions.is_answer]
    telling = start + questions.row[at[:, 0]]
    inputs = inputs.bfloat16()
    return inputs[:, at[:, 0], at[:, 1]], targets, telling, inputs[:, other[:, 0], other[:, 1]]


class _Gathering:
    """Exchanges in the making. Their room is taken at once: activations fill gigabytes, and copies as many."""

    def __init__(self, inputs: Tensor) -> None:
        self._inputs, self._filled = inputs, 0
        self._contents: list[Tensor] = []
        self._told: list[Tensor] = []

    @classmethod
    def of(cls, renderer: Renderer, conversations: Sequence[Sequence[Message]], adapter: Adapter) -> _Gathering:
        """With room for all of `conversations`."""
        tokens = sum(len(renderer.render(messages, generation_prompt=False).ids) for messages in conversations)
        layer = adapter.layer(0)
        return cls(torch.empty(len(adapter.indices), tokens, layer.widths.hidden, dtype=torch.bfloat16))

    def add(self, history: HistoryBatch, inputs: Tensor, told: Tensor) -> None:
        """A batch's `inputs` (layers, batch, T, hidden), of which the padding is left out, and its told places."""
        valid = history.valid
        for row, writable in zip(valid, history.writable, strict=True):
            self._contents.append(self._filled + writable[row].nonzero().squeeze(-1))
            self._filled += int(row.sum())
        count = int(valid.sum())
        self._inputs[:, self._filled - count : self._filled] = inputs[:, valid].to(self._inputs.dtype)
        self._told.append(told[valid])

    def exchanges(self) -> Exchanges:
        return Exchanges(self._inputs[:, : self._filled], tuple(self._contents), torch.cat(self._told))


def _inputs(model: nn.Module, adapter: Adapter, lead: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Attention inputs of the target layers without memory, (layers, batch, T, hidden), on the CPU."""
    device = next(model.parameters()).device
    call = MemoryCall(adapter.zero_state(len(tokens)), valid.to(device), inputs={})
    run_after_lead(model, lead.to(device), tokens.to(device), valid.to(device), call)
    assert call.inputs is not None
    return torch.stack([call.inputs[slot] for slot in range(len(adapter.indices))]).cpu()
