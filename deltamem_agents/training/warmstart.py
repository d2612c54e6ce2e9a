"""A data-aware start: memory projections fitted to the frozen model's own activations.

End-to-end training from random projections first has to find out what to store, under which key, and how
to say it again, through thirty frozen layers. Each of these is a small regression on activations that can
be collected once, and solved in a minute:

- values: read a told word's identity from the attention input at its last tokens and write it back as a
  direction that the model's output matrix recognises (`memory_v_proj`, `delta_o_proj`);
- keys: agree between the place where a fact is told and the place where it is asked, differ between facts
  (`memory_k_proj`, `memory_k_shift_proj`, `memory_q_proj`);
- gate: open on told values, closed elsewhere (`beta_proj`, `beta_bias`).

Nothing here sees a value, phrasing or attribute that is held out for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.training.batches import (
    HistoryBatch,
    QuestionBatch,
    Renderer,
    history_batch,
    question_batch,
    told_places,
)
from deltamem_agents.training.episodes import Episode
from deltamem_agents.training.objective import output_layer, run_after_lead

FIT_BATCH = 256
KEY_BATCH = 192
COLLECT_BATCH = 32
CROSS_KEY_WEIGHT = 2.0


@dataclass(frozen=True)
class Activations:
    """Attention inputs of the target layers at matching places, (N, layers, hidden) in the model's dtype.

    `value`: at a token of a told value; `before`: one token earlier; `query`: where the reply is about to
    say that token; `other`: at content tokens that belong to no told value, (M, layers, hidden).
    `token` (N,): the token's id. `label` (N,): equal where the same key is meant.
    """

    value: Tensor
    before: Tensor
    query: Tensor
    other: Tensor
    token: Tensor
    label: Tensor


def warm_start(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    draw: Callable[[], Episode],
    *,
    episodes: int,
    steps: int,
    gain: float,
    generator: torch.Generator,
    say: Callable[[str], None],
) -> None:
    """Set the adapter's projections from `episodes` drawn episodes. The model has to carry the adapter.

    `gain` scales the correction: large enough to be heard, small enough to leave other text alone.
    Raises ConfigError when the tokenizer gives a told value other tokens than the same value in a reply.
    """
    found = collect_activations(model, adapter, renderer, [draw() for _ in range(episodes)], generator, say)
    say(f"fitting values, keys and gate on {len(found.token)} told tokens")
    fit_values(adapter, found, output_layer(model).weight.detach().float(), steps, gain, generator)
    fit_keys(adapter, found, steps, generator)
    fit_gate(adapter, found, steps, generator)


@torch.no_grad()
def collect_activations(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    episodes: Sequence[Episode],
    generator: torch.Generator,
    say: Callable[[str], None],
) -> Activations:
    """Activations at every told token of `episodes`, and at twice as many other places."""
    parts: list[Activations] = []
    labels: dict[tuple[str, int], int] = {}
    for start in range(0, len(episodes), COLLECT_BATCH):
        some = episodes[start : start + COLLECT_BATCH]
        parts.append(_activations(model, adapter, renderer, some, labels, generator))
        if start % (20 * COLLECT_BATCH) == 0:
            say(f"activations of {start + len(some)} of {len(episodes)} episodes")
    return Activations(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in Activations.__dataclass_fields__}
    )


def _activations(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    episodes: Sequence[Episode],
    labels: dict[tuple[str, int], int],
    generator: torch.Generator,
) -> Activations:
    """Those of one batch. `labels` numbers the keys met so far and grows."""
    device = next(model.parameters()).device
    histories = history_batch(renderer, [episode.messages for episode in episodes]).to(device)
    questions = question_batch(renderer, episodes).to(device)
    places, of_value = told_places(renderer, episodes, histories)
    _check_same_tokens(histories, questions, places)
    told = _inputs(model, adapter, histories.lead, histories.tokens, histories.valid)
    asked = _inputs(model, adapter, questions.lead, questions.tokens, questions.valid)
    rows, at = places.unbind(-1)
    answers = questions.places[questions.is_answer]
    others = (histories.writable & ~of_value).nonzero()
    chosen = others[torch.randperm(len(others), generator=generator)[: 2 * len(places)].to(device)]
    keys = _keys(questions, [question.prefix for episode in episodes for question in episode.questions])
    return Activations(
        value=told[rows, :, at],
        before=told[rows, :, (at - 1).clamp_min(0)],
        query=asked[answers[:, 0], :, answers[:, 1]],
        other=told[chosen[:, 0], :, chosen[:, 1]],
        token=questions.targets[questions.is_answer].cpu(),
        label=torch.tensor([labels.setdefault(key, len(labels)) for key in keys]),
    )


def _check_same_tokens(histories: HistoryBatch, questions: QuestionBatch, places: Tensor) -> None:
    told, answered = histories.tokens[places[:, 0], places[:, 1]], questions.targets[questions.is_answer]
    if not torch.equal(told, answered):
        raise ConfigError(
            "the tokenizer encodes a told value otherwise than the same value in a reply, which a warm start "
            'compares token by token; train this model with "warm_start": null'
        )


def _keys(questions: QuestionBatch, prefixes: Sequence[str]) -> list[tuple[str, int]]:
    """What each answer token is looked up by: the first one by the question's subject, others by the token before."""
    asked = questions.places[questions.is_answer][:, 0].tolist()
    tokens = questions.targets[questions.is_answer].tolist()
    first = questions.is_first[questions.is_answer].tolist()
    return [
        (prefixes[question], -1) if begins else ("", previous)
        for question, begins, previous in zip(asked, first, [-1, *tokens[:-1]], strict=True)
    ]


def fit_values(
    adapter: Adapter, found: Activations, output: Tensor, steps: int, gain: float, generator: torch.Generator
) -> None:
    """Low-rank maps, one a layer, whose sum points from a told token to its row of `output` (vocabulary, hidden)."""
    device = found.value.device
    rows, target = output_rows(found, output)
    layers, width = found.value.shape[1], adapter.config.width
    read = _noise((layers, width, found.value.shape[2]), 0.02, generator, device)
    say_again = _noise((layers, output.shape[1], width), 0.05, generator, device)
    sharpness = torch.tensor(3.0, device=device, requires_grad=True)

    def loss(picked: Tensor) -> Tensor:
        return value_loss(found.value[picked], rows, target[picked], read, say_again, sharpness)

    _descend([read, say_again, sharpness], loss, len(target), FIT_BATCH, steps, 3e-3, generator)
    with torch.no_grad():
        for slot in range(layers):
            memory = adapter.layer(slot)
            memory.memory_v_proj.copy_(read[slot])
            if "o" in adapter.config.delta_heads:
                memory.get_parameter("delta_o_proj").copy_(say_again[slot] * gain)


def output_rows(found: Activations, output: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (C, hidden) of the told tokens in `output`, apart from what they share, and each token's own (N,)."""
    candidates, target = found.token.unique(return_inverse=True)
    rows = output[candidates.to(output.device)].to(found.value.device)
    return F.normalize(rows - rows.mean(0), dim=-1), target.to(found.value.device)


def value_loss(x: Tensor, rows: Tensor, target: Tensor, read: Tensor, say_again: Tensor, sharpness: Tensor) -> Tensor:
    """Cross-entropy of telling told tokens apart by what the layers together say about them.

    x (N, layers, hidden), rows (C, hidden), target (N,), read (layers, width, hidden), say_again
    (layers, hidden, width).
    """
    values = torch.einsum("nld,lrd->nlr", x.float(), read)
    spoken = F.normalize(torch.einsum("nlr,ldr->nd", values, say_again), dim=-1)
    return F.cross_entropy(spoken @ rows.T * sharpness.exp(), target)


def fit_keys(adapter: Adapter, found: Activations, steps: int, generator: torch.Generator) -> None:
    """Keys and queries that agree within a label and are orthogonal across labels, layer by layer."""
    config, device = adapter.config, found.value.device
    layers, hidden = found.value.shape[1:]
    shape = (layers, config.width, hidden)
    here, query = _noise(shape, 0.02, generator, device), _noise(shape, 0.02, generator, device)
    before = _noise(shape, 0.02, generator, device)
    label = found.label.to(device)

    def loss(picked: Tensor) -> Tensor:
        keys = torch.einsum("nld,lrd->nlr", found.value[picked].float(), here)
        if config.key_shift:
            keys = keys + torch.einsum("nld,lrd->nlr", found.before[picked].float(), before)
        queries = torch.einsum("nld,lrd->nlr", found.query[picked].float(), query)
        return key_loss(keys, queries, label[picked], config.num_state_heads)

    _descend([here, before, query], loss, len(label), KEY_BATCH, steps, 2e-3, generator)
    with torch.no_grad():
        for slot in range(layers):
            memory = adapter.layer(slot)
            memory.memory_k_proj.copy_(here[slot])
            memory.memory_q_proj.copy_(query[slot])
            if config.key_shift:
                memory.memory_k_shift_proj.copy_(before[slot])


def key_loss(keys: Tensor, queries: Tensor, label: Tensor, heads: int) -> Tensor:
    """How far queries are from the keys of their own label, and from being orthogonal to all others.

    keys, queries (N, layers, heads·r), before they are made unit vectors; label (N,).
    """

    def unit(raw: Tensor) -> Tensor:
        return F.normalize(torch.tanh(raw.unflatten(-1, (heads, -1))), dim=-1)

    match = torch.einsum("nlhr,mlhr->lhnm", unit(queries), unit(keys))
    same = (label[:, None] == label).float()
    agree = ((1 - match) * same).sum() / same.sum()
    differ = (match.square() * (1 - same)).sum() / (1 - same).sum().clamp_min(1)
    return (agree + CROSS_KEY_WEIGHT * differ) / match.shape[0] / match.shape[1]


def fit_gate(adapter: Adapter, found: Activations, steps: int, generator: torch.Generator) -> None:
    """Logistic regression, layer by layer: open on told values, closed on other content."""
    layers, hidden = found.value.shape[1:]
    weight = torch.zeros(layers, hidden, device=found.value.device, requires_grad=True)
    bias = torch.zeros(layers, device=found.value.device, requires_grad=True)

    def loss(picked: Tensor) -> Tensor:
        other = torch.randint(len(found.other), (len(picked),), generator=generator).to(picked.device)
        return gate_loss(found.value[picked], found.other[other], weight, bias)

    _descend([weight, bias], loss, len(found.token), FIT_BATCH, steps, 2e-3, generator)
    with torch.no_grad():
        for slot in range(layers):
            memory = adapter.layer(slot)
            memory.beta_proj.copy_(weight[slot].expand_as(memory.beta_proj))
            memory.beta_bias.copy_(bias[slot].expand_as(memory.beta_bias))


def gate_loss(value: Tensor, other: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Cross-entropy of telling values from other content, both (N, layers, hidden), by weight (layers, hidden)."""
    opens, closes = (torch.einsum("nld,ld->nl", x.float(), weight) + bias for x in (value, other))
    return F.softplus(-opens).mean() + F.softplus(closes).mean()


def _descend(
    weights: list[Tensor],
    loss: Callable[[Tensor], Tensor],
    count: int,
    batch: int,
    steps: int,
    rate: float,
    generator: torch.Generator,
) -> None:
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        picked = torch.randint(count, (batch,), generator=generator).to(weights[0].device)
        optimiser.zero_grad()
        loss(picked).backward()
        optimiser.step()


def _noise(shape: tuple[int, ...], size: float, generator: torch.Generator, device: torch.device) -> Tensor:
    return (torch.randn(shape, generator=generator) * size).to(device).requires_grad_(True)


def _inputs(model: nn.Module, adapter: Adapter, lead: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Attention inputs of the target layers, (batch, layers, T, hidden)."""
    call = MemoryCall(adapter.zero_state(len(tokens)), valid, inputs={})
    run_after_lead(model, lead, tokens, valid, call)
    assert call.inputs is not None
    return torch.stack([call.inputs[slot] for slot in range(len(adapter.indices))], dim=1)
