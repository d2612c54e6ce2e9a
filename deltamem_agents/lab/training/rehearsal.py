"""Remembering rehearsed on cached activations, without running the model: seconds where training takes hours.

Told exchanges are strung together as if they were conversations, written into states by the real update rule,
and read at the places where their values are asked for. What all layers together add is compared with the
output rows of the words that could have been told: the direct path from the memory to the vocabulary, as if
the layers between did nothing. The memory thereby learns what to store, under which key, when to write and
when to read, for as many facts at a time as wanted. How loud to speak through the layers between is left to
the end-to-end training that follows. Values and keys may be learned beforehand, see `training/addressing.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.activations import Activations, Exchanges
from deltamem_agents.lab.training.addressing import draw_asked, matching_loss, values_that_say
from deltamem_agents.lab.training.direct_path import ReadWeights, directions, opening_loss, said, speaking_weight
from deltamem_agents.lab.training.gates import gate_loss
from deltamem_agents.lab.training.pairs import Pairs
from deltamem_agents.lab.training.recipe import Rehearsal
from deltamem_agents.lab.training.spoken_values import spoken_loss
from deltamem_agents.lab.training.strung import (
    ERASED,
    Conversation,
    WriteWeights,
    never_told,
    string_together,
    write_strung,
)
from deltamem_agents.memory.attach import Adapter

GATE_WEIGHT = 1.0
"""Weight of telling the gates apart, against 1 for the answers' cross-entropy."""

QUIET_WEIGHT = 0.1
"""Weight of what is said at the other places of a reply, as a share of what is said at answers."""

RATE = 2e-3
ADDRESSING_RATE = 1e-3
WARMUP = 20
TOLD_AT_ONCE = (16, 32, 64)
"""How many facts compete for a question's match."""

ELSEWHERE = 48
"""Places beside the answers at which a step looks at the read gate."""

REPORT_EVERY = 100


class _Stacked:
    """One tensor for each of the adapter's projections, over all layers (layers, …)."""

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
    """Fit the adapter's projections; what it says is left at length 1 for an average answer.

    `pairs`: what addresses are learned from, where the plan says so. `rows` (vocabulary, hidden): the directions in
    which the model says each token.
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
            string_together(found, facts, rng.randint(0, plan.asides), 0, rng)
            for _ in range(max(1, plan.questions // facts))
        ]
        asked = [(row, q) for row, one in enumerate(conversations) for t in one.tellings for q in answers[t]]
        never = never_told(found, conversations, plan.questions // 2, rng)
        loss, right, spoken = _step_loss(stacked, found, conversations, asked, never, heading, target, torch_rng)
        loss = loss + GATE_WEIGHT * gate_loss(stacked.writing, pairs, found.asides, rng)
        loss = loss + spoken_loss(stacked.value, stacked.say, stacked.sharpness, pairs.spoken, rows, rng)
        _descend(optimiser, loss, RATE * _falling(step, plan.steps))
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
    """Set the projections of values, keys and queries from told values alone, and the write gates."""
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
        _descend(optimiser, loss, ADDRESSING_RATE * _falling(step, plan.addressing))
        if step % REPORT_EVERY == 0 or step + 1 == plan.addressing:
            say(f"addressing {step} of {plan.addressing}: {facts} facts, loss {float(loss.detach()):.2f}")


def _optimiser(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.98), weight_decay=0.02)


def _falling(step: int, steps: int) -> float:
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
    """The loss, the share of answers that come out right, and how long an answer's correction is on average.

    `asked`: pairs of a conversation and an answer's place, `never` of a conversation and a telling it does not have.
    """
    written = write_strung(stacked.config, stacked.writing, found, conversations)
    state = written.state
    row, place = (torch.tensor(column) for column in zip(*asked, strict=True))
    added, opens = said(stacked.config, stacked.reading, stacked.say, state[:, row], found.asked[:, place])
    logits = F.normalize(added, dim=-1) @ heading.T * stacked.sharpness.exp()
    loss = F.cross_entropy(logits, target[place])

    def some(count: int, inputs_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        picked = torch.randint(count, (ELSEWHERE,), generator=generator)
        of = torch.randint(len(conversations), (ELSEWHERE,), generator=generator)
        return said(stacked.config, stacked.reading, stacked.say, state[:, of], inputs_at(picked))

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
