"""The loss: answer questions from the state alone, and keep the frozen model's predictions on other prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.lab.training.batches import (
    END_WEIGHT,
    FIRST_WEIGHT,
    PREFIX_WEIGHT,
    HistoryBatch,
    NeutralBatch,
    QuestionBatch,
)
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import KeyValueCache, empty_cache, with_cache
from deltamem_agents.memory.state import MemoryState


@dataclass(frozen=True)
class Outcome:
    """Loss and accuracy on a batch of questions.

    Scalars with gradient, 0 where not computed:

    - `loss`: weighted cross-entropy of the replies.
    - `begun`: mean cross-entropy of the replies' first tokens.
    - `noise`: how far write gates are open on filler.
    - `gates`: classification loss of the write gates (told values or not) and of the read gates (fact told or not).
    - `probed`: loss of the probe.
    - `untold`: KL divergence, in nats, from the frozen model in replies to questions about facts never told.

    Figures without gradient: `answer_nats`, mean cross-entropy of the answers' tokens; `first_right` and `all_right`,
    bool (questions,), whether the first token, or every token, of the answer is the likeliest; `direct`, share of
    answer tokens that the probe got right, None without a probe.
    """

    loss: Tensor
    answer_nats: float
    first_right: Tensor
    all_right: Tensor
    begun: Tensor
    noise: Tensor
    gates: Tensor
    probed: Tensor
    untold: Tensor
    direct: float | None = None


@torch.no_grad()
def write_history(model: nn.Module, adapter: Adapter, history: HistoryBatch) -> MemoryState:
    """The state after each history, read and written as in use. The adapter must be attached to the model."""
    states, order = [], []
    for index, rows in history.of_like_length():
        zero = adapter.zero_state(len(rows.tokens))
        call = MemoryCall(zero, rows.valid, rows.writable, replies=rows.replies)
        run_after_lead(model, rows.lead, rows.tokens, rows.valid, call)
        states.append(call.new_state().matrices)
        order.append(index)
    return MemoryState(torch.cat(states)[torch.cat(order).argsort()])


def openness(logits: Tensor, floor: float) -> Tensor:
    """Mean opening of gates (…, tokens, gates) above half of their `floor`; half the floor is a margin.

    A token's gates are averaged first.
    """
    return (torch.sigmoid(logits).mean(-1) - floor / 2).clamp_min(0).mean()


def answer_questions(model: nn.Module, state: MemoryState, questions: QuestionBatch, *, writes: bool) -> Tensor:
    """Logits (targets, vocabulary) float32, reading for each question the state of its own history.

    `writes`: also write question and reply as they are read, as a turn does.
    """
    call = MemoryCall(MemoryState(state.matrices[questions.row]), questions.valid, replies=questions.replies)
    call.write_mask = questions.writable if writes else None
    hidden = run_after_lead(model, questions.lead, questions.tokens, questions.valid, call)
    return logits_at(model, hidden, questions.places)


def disturbance(model: nn.Module, state: MemoryState, neutral: NeutralBatch) -> Tensor:
    """KL divergence, in nats, from the frozen model's predictions to those with the memory (see `divergence`).

    The exchange is written as it is read, as in a turn.
    """
    with torch.no_grad():
        hidden = run_after_lead(model, neutral.lead, neutral.tokens, neutral.valid, None)
        frozen = logits_at(model, hidden, neutral.places).log_softmax(-1)
    states = MemoryState(state.matrices[neutral.row])
    call = MemoryCall(states, neutral.valid, neutral.writable, replies=neutral.replies)
    hidden = run_after_lead(model, neutral.lead, neutral.tokens, neutral.valid, call)
    return divergence(logits_at(model, hidden, neutral.places).log_softmax(-1), frozen, neutral.places)


def divergence(steered: Tensor, frozen: Tensor, places: Tensor) -> Tensor:
    """KL in nats from `frozen` to `steered` log-probabilities (places, vocabulary) of replies.

    `places`: (row, position) pairs. The mean over the beginnings of replies and the mean over all other places count
    the same, since a reply's beginning decides what it says.
    """
    nats = F.kl_div(steered, frozen, log_target=True, reduction="none").sum(-1)
    begins = first_places(places)
    return (nats[begins].mean() + nats[~begins].mean()) / 2


def first_places(places: Tensor) -> Tensor:
    """Bool (places,): the first place of each row, in (row, position) pairs sorted by row."""
    rows = places[:, 0]
    return torch.cat([rows.new_ones(1, dtype=torch.bool), rows[1:] != rows[:-1]])


def logits_at(model: nn.Module, hidden: Tensor, places: Tensor) -> Tensor:
    """Logits (places, vocabulary) float32 at (row, position) pairs of `hidden` (batch, T, hidden)."""
    rows, positions = places.unbind(-1)
    logits: Tensor = output_layer(model)(hidden[rows, positions]).float()
    cap: float | None = getattr(cast(Any, model.config).get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def output_layer(model: nn.Module) -> nn.Linear:
    """The frozen model's output embedding: hidden states to vocabulary logits."""
    return cast(Callable[[], nn.Linear], model.get_output_embeddings)()


def output_directions(model: nn.Module) -> Tensor:
    """(vocabulary, hidden) float32: for each token, the direction of the last hidden state that raises its logit."""
    rows = output_layer(model).weight.detach().float()
    norm = getattr(model.base_model, "norm", None)
    if norm is None or norm.weight.shape != rows.shape[1:]:
        return rows
    # A constant row leaves an RMS norm as its scale. The weight itself won't do: some families store scale − 1.
    constant = rows.new_full((1, rows.shape[1]), 2.0**20)
    scale: Tensor = norm(constant).detach().float()
    return rows * scale


def run_after_lead(model: nn.Module, lead: Tensor, tokens: Tensor, valid: Tensor, call: MemoryCall | None) -> Tensor:
    """Last hidden states (batch, T, hidden) of `tokens` after `lead`, which runs once for the whole batch."""
    return run_and_keep(model, lead, tokens, valid, call)[0]


def run_and_keep(
    model: nn.Module, lead: Tensor, tokens: Tensor, valid: Tensor, call: MemoryCall | None
) -> tuple[Tensor, KeyValueCache]:
    """As `run_after_lead`, and also the key–value cache, which begins with the lead."""
    decoder, batch = cast(nn.Module, model.base_model), len(tokens)
    kept = empty_cache()
    with torch.no_grad():
        decoder(input_ids=lead[None], **with_cache(decoder, kept))
    kept.batch_repeat_interleave(batch)
    seen = torch.cat([valid.new_ones(batch, len(lead)), valid], dim=1)
    memory = {} if call is None else {CALL_KEYWORD: call}
    out = decoder(input_ids=tokens, attention_mask=seen.long(), **with_cache(decoder, kept), **memory)
    return out.last_hidden_state, kept


def judge(logits: Tensor, questions: QuestionBatch) -> Outcome:
    """Weighted cross-entropy of the replies, and accuracy of the answers.

    Weights: 1 for the answer's tokens, END_WEIGHT for the token after it, FIRST_WEIGHT for the reply's first token,
    PREFIX_WEIGHT for all others.
    """
    nats = F.cross_entropy(logits, questions.targets, reduction="none")
    weight = torch.where(questions.is_answer.roll(1), END_WEIGHT, PREFIX_WEIGHT)
    first = first_places(questions.places)
    weight = torch.where(first, FIRST_WEIGHT, weight)
    weight = torch.where(questions.is_answer, 1.0, weight)
    loss = (nats * weight).sum() / weight.sum()
    right = logits.argmax(-1) == questions.targets
    count = len(questions.tokens)
    wrong = torch.zeros(count, device=logits.device).index_add(
        0, questions.places[:, 0], (questions.is_answer & ~right).float()
    )
    nothing = loss.new_zeros(())
    return Outcome(
        loss=loss,
        answer_nats=float(nats.detach()[questions.is_answer].mean()),
        first_right=right[questions.is_first],
        all_right=wrong == 0,
        begun=nats[first].mean(),
        noise=nothing,
        gates=nothing,
        probed=nothing,
        untold=nothing,
    )
