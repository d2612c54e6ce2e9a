"""Warm start: fits the adapter's projections to the frozen model's activations before training through the model.

From random projections, end-to-end training would have to learn through all frozen layers what to store, under which
key, and how to say it again. All of this can be learned in seconds instead of hours, from activations that are
collected once. Exchanges that state facts are composed into conversations, written into states by the real update
rule, and read at the positions that ask for their values. The result is measured on the direct path to the vocabulary
(see `direct_path.py`). So the memory learns what to store, under which key, when to write and when to read, for any
number of facts at once. It does not learn the scale that its output needs to pass through the layers in between;
`set_gain` chooses it by trying several.

No held-out value, phrasing or attribute is used here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.training.activations import Activations, Exchanges
from deltamem_agents.lab.training.batches import Renderer, history_batch, question_batch
from deltamem_agents.lab.training.composing import (
    ERASED,
    Conversation,
    WriteWeights,
    compose_conversation,
    never_told,
    write_composed,
)
from deltamem_agents.lab.training.direct_path import (
    ReadWeights,
    added_output,
    directions,
    gate_loss,
    matching_loss,
    opening_loss,
    speaking_weight,
    spoken_loss,
)
from deltamem_agents.lab.training.objective import answer_questions, judge, output_directions, write_history
from deltamem_agents.lab.training.recipe import Rehearsal
from deltamem_agents.lab.training.told_tokens import Pairs, draw_asked
from deltamem_agents.memory.attach import Adapter

GAINS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Candidates for the average length of what all layers together add at an answer."""

TRIED_ON = 48

GATE_WEIGHT = 1.0
"""Loss weight of the gates' classification, relative to 1 for the answers' cross-entropy."""

QUIET_WEIGHT = 0.1
"""Loss weight of the power added at other positions of a reply, relative to the power added at answers."""

RATE = 2e-3
ADDRESSING_RATE = 1e-3
WARMUP = 20
TOLD_AT_ONCE = (16, 32, 64)
"""Numbers of facts that compete for a question's match; each step draws one."""

ELSEWHERE = 48
"""Number of other positions of each kind per step at which the read gate is trained."""

REPORT_EVERY = 100

RIDGE = 0.01
"""Ridge penalty of the fit of value projections, as a share of the inputs' mean power."""


def warm_start(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    episodes: Sequence[Episode],
    found: Activations,
    pairs: Pairs,
    plan: Rehearsal,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Fits the adapter's projections on the activations `found` at `episodes`, and on `pairs`.

    The adapter must be attached to the model.
    """
    rehearse(adapter, found, pairs, output_directions(model).cpu(), plan, seed=seed, say=say)
    tried = random.Random(seed).sample(episodes, min(TRIED_ON, len(episodes)))
    say(f"gain {set_gain(model, adapter, renderer, tried):.0f}")


@torch.no_grad()
def set_gain(model: nn.Module, adapter: Adapter, renderer: Renderer, episodes: Sequence[Episode]) -> float:
    """Scales the readout by the gain of GAINS under which the episodes' answers are likeliest. Returns the gain."""
    speaking = speaking_weight(adapter.config)
    if speaking is None:
        return 1.0
    device = next(model.parameters()).device
    history = history_batch(renderer, [episode.messages for episode in episodes]).to(device)
    questions = question_batch(renderer, episodes).to(device)
    memories = [adapter.layer(slot) for slot in range(len(adapter.indices))]
    fitted: list[Tensor] = [memory.get_parameter(speaking).clone() for memory in memories]
    nats: dict[float, float] = {}

    def scale(gain: float) -> None:
        for memory, weight in zip(memories, fitted, strict=True):
            memory.get_parameter(speaking).copy_(weight * gain)

    for gain in GAINS:
        scale(gain)
        state = write_history(model, adapter, history)
        nats[gain] = judge(answer_questions(model, state, questions, writes=False), questions).answer_nats
    best = min(nats, key=nats.__getitem__)
    scale(best)
    return best


class _Stacked:
    """The adapter's projections while they are fitted: one tensor each, stacked over layers (layers, …)."""

    def __init__(self, config: AdapterConfig, layers: int, hidden: int, generator: torch.Generator) -> None:
        self.config = config
        width, heads = config.width, config.num_state_heads

        def noise(*shape: int, size: float) -> Tensor:
            return (torch.randn(shape, generator=generator) * size).requires_grad_(True)

        self.query = noise(layers, width, hidden, size=0.02)
        self.key = noise(layers, width, hidden, size=0.02)
        self.before = noise(layers, width, hidden, size=0.02)
        self.value = noise(layers, width, hidden, size=0.02)
        self.say = noise(layers, hidden, width, size=0.05)
        self.write = noise(layers, heads, hidden, size=0.002)
        self.write_bias = torch.zeros(layers, heads, requires_grad=True)
        self.read = noise(layers, heads, hidden, size=0.002)
        self.read_bias = torch.zeros(layers, heads, requires_grad=True)
        self.found = torch.zeros(layers, heads, width, requires_grad=True)
        self.hidden = noise(layers, config.gate_hidden, hidden, size=0.02)
        self.hidden_bias = torch.zeros(layers, config.gate_hidden, requires_grad=True)
        self.gate_hidden = torch.zeros(layers, heads, config.gate_hidden, requires_grad=True)
        self.sharpness = torch.tensor(2.5, requires_grad=True)
        self.erased = ERASED

    @property
    def weights(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    @property
    def writing(self) -> WriteWeights:
        before = self.before if self.config.key_shift else None
        writing = WriteWeights(
            self.key,
            before,
            self.value,
            self.write,
            self.write_bias,
            votes=self.config.gate_votes,
            erased=self.erased,
        )
        if not self.config.gate_hidden:
            return writing
        return replace(writing, hidden=self.hidden, hidden_bias=self.hidden_bias, gate_hidden=self.gate_hidden)

    @property
    def reading(self) -> ReadWeights:
        if not self.config.read_gate:
            return ReadWeights(self.query)
        return ReadWeights(self.query, self.read, self.read_bias, self.found if self.config.gate_on_reads else None)

    @torch.no_grad()
    def copy_to(self, adapter: Adapter) -> None:
        for slot in range(len(self.key)):
            memory = adapter.layer(slot)
            memory.memory_q_proj.copy_(self.query[slot])
            memory.memory_k_proj.copy_(self.key[slot])
            memory.memory_v_proj.copy_(self.value[slot])
            per_gate = self.config.gate_width // self.config.num_state_heads
            memory.beta_proj.copy_(self.write[slot].repeat_interleave(per_gate, dim=0))
            memory.beta_bias.copy_(self.write_bias[slot].repeat_interleave(per_gate, dim=0))
            if self.config.gate_hidden:
                memory.gate_hidden_proj.copy_(self.hidden[slot])
                memory.gate_hidden_bias.copy_(self.hidden_bias[slot])
                memory.beta_hidden_proj.copy_(self.gate_hidden[slot].repeat_interleave(per_gate, dim=0))
            if self.config.gate_on_reads:
                memory.found_proj.copy_(self.found[slot])
            if self.config.key_shift:
                memory.memory_k_shift_proj.copy_(self.before[slot])
            if self.config.read_gate:
                memory.read_proj.copy_(self.read[slot])
                memory.read_bias.copy_(self.read_bias[slot])
            if speaking := speaking_weight(self.config):
                memory.get_parameter(speaking).copy_(self.say[slot])


def rehearse(
    adapter: Adapter,
    found: Activations,
    pairs: Pairs,
    rows: Tensor,
    plan: Rehearsal,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Fits the adapter's projections. The readout is scaled to length 1 at an average answer.

    `pairs`: training data of keys, queries and values if `plan.addressing` is above 0. `rows` (vocabulary, hidden):
    output directions of the tokens.
    """
    layers, _, hidden = found.asked.shape
    stacked = _Stacked(adapter.config, layers, hidden, torch.Generator().manual_seed(seed))
    if adapter.config.erase_gate:
        stacked.erased = float(adapter.layer(0).erase_bias[0].detach().sigmoid())
    rng, torch_rng = random.Random(f"{seed} rehearsal"), torch.Generator().manual_seed(seed)
    candidates, target = found.target.unique(return_inverse=True)
    heading = directions(rows[candidates])
    answers = _answers_by_telling(found)
    if plan.addressing:
        _learn_addresses(stacked, found.asides, pairs, rows, plan, seed=seed, say=say)
    optimiser = _optimiser(stacked.weights)
    spoken = torch.ones(())
    for step in range(plan.steps):
        facts = rng.choice(plan.facts)
        conversations = [
            compose_conversation(found, facts, rng.randint(0, plan.asides), 0, rng)
            for _ in range(max(1, plan.questions // facts))
        ]
        asked = [(row, q) for row, one in enumerate(conversations) for t in one.tellings for q in answers[t]]
        never = never_told(found, conversations, plan.questions // 2, rng)
        loss, right, spoken = _step_loss(stacked, found, conversations, asked, never, heading, target, torch_rng)
        loss = loss + GATE_WEIGHT * gate_loss(stacked.writing, pairs, found.asides, rng)
        loss = loss + spoken_loss(stacked.value, stacked.say, stacked.sharpness, pairs.spoken, rows, rng)
        _descend(optimiser, loss, RATE * _learning_rate_factor(step, plan.steps))
        if step % REPORT_EVERY == 0 or step + 1 == plan.steps:
            say(f"rehearsal {step} of {plan.steps}: {facts} facts, loss {float(loss.detach()):.2f}, right {right:.2f}")
    stacked.say.data /= spoken * adapter.config.scale
    stacked.copy_to(adapter)


def _learn_addresses(
    stacked: _Stacked,
    asides: Exchanges,
    pairs: Pairs,
    rows: Tensor,
    plan: Rehearsal,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Fits the projections of values, keys and queries, and the write gates, on told values alone."""
    config, rng = stacked.config, random.Random(f"{seed} addressing")
    values, says = values_that_say(config, pairs, rows, seed)
    with torch.no_grad():
        stacked.value.copy_(values)
        stacked.say.copy_(says)
    optimiser = _optimiser(stacked.weights)
    for step in range(plan.addressing):
        facts = rng.choice(TOLD_AT_ONCE)
        drawn = [draw_asked(pairs, facts, rng) for _ in range(max(TOLD_AT_ONCE) // facts)]
        losses = [
            matching_loss(config, stacked.writing, stacked.reading, stacked.say, stacked.sharpness, pairs, asked, rows)
            for asked in drawn
        ]
        loss = torch.stack(losses).mean() + GATE_WEIGHT * gate_loss(stacked.writing, pairs, asides, rng)
        loss = loss + spoken_loss(stacked.value, stacked.say, stacked.sharpness, pairs.spoken, rows, rng)
        _descend(optimiser, loss, ADDRESSING_RATE * _learning_rate_factor(step, plan.addressing))
        if step % REPORT_EVERY == 0 or step + 1 == plan.addressing:
            say(f"addressing {step} of {plan.addressing}: {facts} facts, loss {float(loss.detach()):.2f}")


@torch.no_grad()
def values_that_say(config: AdapterConfig, pairs: Pairs, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Value projections (layers, width, hidden), and readouts (layers, hidden, width) that map values back to tokens.

    They come from ridge regression of the tokens' directions in `rows` (vocabulary, hidden) on the inputs at told
    tokens. Each layer keeps different dimensions of these directions, as long as there are enough.
    """
    layers, _, hidden = pairs.told.shape
    target = pairs.target if pairs.spoken is None else torch.cat([pairs.target, pairs.spoken.target])
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q
    wanted = directions(rows.float())[target]
    values, says = [], []
    for layer in range(layers):
        x = pairs.told[layer].float()
        if pairs.spoken is not None:
            x = torch.cat([x, pairs.spoken.told[layer].float()])
        products = x.T @ x
        products.diagonal().add_(RIDGE * products.diagonal().mean())
        own = axes[:, torch.arange(layer * config.width, (layer + 1) * config.width) % hidden]
        values.append(own.T @ torch.linalg.solve(products, x.T @ wanted).T)
        says.append(own)
    return torch.stack(values), torch.stack(says)


def _optimiser(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.98), weight_decay=0.02)


def _learning_rate_factor(step: int, steps: int) -> float:
    return min(1, (step + 1) / WARMUP) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    weights = optimiser.param_groups[0]["params"]
    optimiser.param_groups[0]["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()


def _answers_by_telling(found: Activations) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in found.subjects]
    for place, telling in enumerate(found.telling.tolist()):
        answers[telling].append(place)
    return answers


def _step_loss(
    stacked: _Stacked,
    found: Activations,
    conversations: Sequence[Conversation],
    asked: Sequence[tuple[int, int]],
    never: Sequence[tuple[int, int]],
    heading: Tensor,
    target: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, float, Tensor]:
    """The loss, the share of right answers, and the average length of the correction at an answer.

    `asked`: (conversation, answer position) pairs. `never`: (conversation, telling) pairs where the conversation lacks
    the telling.
    """
    written = write_composed(stacked.config, stacked.writing, found, conversations)
    state = written.state
    row, place = (torch.tensor(column) for column in zip(*asked, strict=True))
    added, opens = added_output(stacked.config, stacked.reading, stacked.say, state[:, row], found.asked[:, place])
    logits = F.normalize(added, dim=-1) @ heading.T * stacked.sharpness.exp()
    loss = F.cross_entropy(logits, target[place])

    def some(count: int, inputs_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        picked = torch.randint(count, (ELSEWHERE,), generator=generator)
        of = torch.randint(len(conversations), (ELSEWHERE,), generator=generator)
        return added_output(stacked.config, stacked.reading, stacked.say, state[:, of], inputs_at(picked))

    beside, opens_too = some(found.replies.shape[1], lambda places: found.replies[:, places])
    power = added.detach().square().sum(-1).mean()
    loss = loss + QUIET_WEIGHT * beside.square().sum(-1).mean() / power
    (_, shuts), (_, shuts_too) = (some(len(source), source.at) for source in (found.asides, found.tellings))
    if opens is not None and opens_too is not None and shuts is not None and shuts_too is not None:
        opening, shutting = torch.cat([opens, opens_too], 1), torch.cat([shuts, shuts_too], 1)
        loss = loss + GATE_WEIGHT * (F.softplus(-opening).mean() + F.softplus(shutting).mean())
    told = [(row, telling) for row, one in enumerate(conversations) for telling in one.tellings]
    loss = loss + GATE_WEIGHT * opening_loss(stacked.config, stacked.reading, state, found, told, never)
    right = float((logits.argmax(-1) == target[place]).float().mean())
    return loss, right, power.sqrt()
