"""Fits what chooses statements and what points at their tokens, on activations collected once.

The model and its adapter stay as they are. A few hundred numbers are fitted: how much each sign counts. What they are
fitted on, and how to run it, stands in `recall_material.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from deltamem_agents.memory.pointer import Pointer
from deltamem_agents.memory.recall import LEAST_STRENGTH, Matcher, StatementIndex, around
from deltamem_agents.memory.writes import Writes
from deltamem_agents.types import Role

LEAST_COMMON = 3
"""Questions a word has to stand in before it counts as common."""

COMMON_WEIGHT = 30.0
"""A word that stands in all questions counts 1 / (1 + COMMON_WEIGHT)."""

TOLD_LOST = 0.06
"""The share of told questions that the floor may cost."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Told:
    """A statement: what it wrote, numbers of its words, who said it."""

    writes: Writes
    terms: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Question:
    """`last`, `mean`: (layers, heads, r), of its queries. `right`: the statements that answer it, none for never told.

    `asks`: whether it asks for something that could have been told.
    """

    last: Tensor
    mean: Tensor
    terms: tuple[int, ...]
    right: tuple[int, ...] = ()
    asks: bool = True


@dataclass(frozen=True)
class Memory:
    """The statements of an agent, oldest first, and questions to it."""

    statements: tuple[Told, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Reply:
    """A reply of R tokens as it should be, with N candidates, M of them different tokens.

    `features`: (R, N, F). `owners`: (N,), which of the different tokens each is. `log_probabilities`: (R, M), theirs
    without a pointer. `targets`: (R,), which of them is said, −1 for another token. `target`: (R,), the log-probability
    of what is said. `weights`: (R,), how much each step counts.
    """

    features: Tensor
    owners: Tensor
    log_probabilities: Tensor
    targets: Tensor
    target: Tensor
    weights: Tensor


def fit_matcher(memories: Sequence[Memory], say: Say, *, steps: int = 150) -> Matcher:
    """The matcher under which the right statements are the likeliest ones."""
    layers, heads, _ = memories[0].questions[0].last.shape
    base = replace(Matcher.uniform(layers, heads), commonness=commonness(memories))
    signs = [_signs(base, memory, question) for memory in memories for question in memory.questions if question.right]
    layer_logits = torch.zeros(layers, heads, requires_grad=True)
    log_scale = torch.tensor(2.3, requires_grad=True)
    shares = torch.tensor([base.words, base.near, base.assistant, base.newest], requires_grad=True)
    optimiser = torch.optim.Adam([layer_logits, log_scale, shares], lr=0.05)
    for step in range(steps):
        optimiser.zero_grad()
        weights = log_scale.exp() * layer_logits.flatten().softmax(0).unflatten(0, (layers, heads))
        losses = [_missed(weights, shares, sign) for sign in signs]
        loss = torch.stack(losses).mean() + 0.01 * layer_logits.square().sum()
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            say(f"matcher, step {step + 1}: loss {loss.item():.3f}")
    words, near, assistant, newest = shares.detach().tolist()
    asking, bias = fit_asking([question for memory in memories for question in memory.questions])
    fitted = replace(
        base,
        weights=weights.detach(),
        words=words,
        near=near,
        assistant=assistant,
        newest=newest,
        asking=asking,
        asking_bias=bias,
    )
    bests = [float(_scores(fitted, memory, q).max()) for memory in memories for q in memory.questions if q.right]
    return replace(fitted, floor=float(torch.tensor(bests).quantile(TOLD_LOST)))


def commonness(memories: Sequence[Memory]) -> dict[int, float]:
    """What each word that stands in many questions counts: the less, the more of them it stands in."""
    asked = [question for memory in memories for question in memory.questions if question.asks]
    counts = Counter(term for question in asked for term in set(question.terms))
    return {
        term: 1 / (1 + COMMON_WEIGHT * count / len(asked)) for term, count in counts.items() if count >= LEAST_COMMON
    }


def fit_asking(questions: Sequence[Question], *, steps: int = 200, decay: float = 0.01) -> tuple[Tensor, float]:
    """Weights (layers, heads, r) and bias of a logistic regression on the mean queries: does this ask for something?"""
    means = torch.stack([question.mean.flatten() for question in questions])
    asks = torch.tensor([float(question.asks) for question in questions])
    balance = torch.where(asks > 0, 0.5 / asks.mean(), 0.5 / (1 - asks).mean().clamp_min(1e-6))
    centre, spread = means.mean(0), means.std()
    weights, bias = torch.zeros(means.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        found = ((means - centre) / spread) @ weights + bias
        loss = (F.binary_cross_entropy_with_logits(found, asks, reduction="none") * balance).mean()
        (loss + decay * weights.square().sum()).backward()
        optimiser.step()
    flat = weights.detach() / spread
    return flat.view_as(questions[0].mean), float(bias.detach()) - float(flat @ centre)


def fit_pointer(
    replies: Sequence[Reply],
    say: Say,
    common: frozenset[int] = frozenset(),
    *,
    units: int = 12,
    epochs: int = 25,
    decay: float = 2e-3,
) -> Pointer:
    """The pointer under which the replies are the likeliest. `common`: tokens that say nothing in a question."""
    every = torch.cat([reply.features.flatten(0, 1) for reply in replies])
    centre, spread = every.mean(0), every.std(0) + 1e-3
    generator = torch.Generator().manual_seed(0)
    hidden = (0.1 * torch.randn(units, every.shape[1], generator=generator)).requires_grad_()
    hidden_bias, out = torch.zeros(units, requires_grad=True), torch.zeros(units, requires_grad=True)
    out_bias = torch.tensor(-3.0, requires_grad=True)
    optimiser = torch.optim.Adam([hidden, hidden_bias, out, out_bias], lr=0.02)
    order, random = list(replies), Random(0)
    for epoch in range(epochs):
        random.shuffle(order)
        total = 0.0
        for part in _parts(order, 32):
            optimiser.zero_grad()
            losses = []
            for reply in part:
                units_on = torch.tanh((reply.features - centre) / spread @ hidden.T + hidden_bias)
                losses.append(reply.weights * reply_losses(reply, F.softplus(units_on @ out + out_bias)))
            loss = torch.cat(losses).sum() / sum(reply.weights.sum() for reply in part)
            (loss + decay * (hidden.square().sum() + out.square().sum())).backward()
            optimiser.step()
            total += loss.item() * len(part)
        if epoch % 10 == 9:
            say(f"pointer, epoch {epoch + 1}: {total / len(order):.3f} nats a token")
    weights = (hidden / spread).detach()
    return Pointer(weights, hidden_bias.detach() - weights @ centre, out.detach(), float(out_bias.detach()), common)


def reply_losses(reply: Reply, bonus: Tensor) -> Tensor:
    """(R,) nats of each of the reply's tokens where candidates have this bonus (R, N)."""
    count = reply.log_probabilities.shape[1]
    owners = reply.owners.expand(len(bonus), -1)
    each = torch.zeros(len(bonus), count).scatter_reduce(1, owners, bonus, "amax")
    added = torch.log1p((reply.log_probabilities.exp() * torch.expm1(each)).sum(1))
    pointed = each.gather(1, reply.targets.clamp_min(0)[:, None])[:, 0] * (reply.targets >= 0)
    return added - reply.target - pointed


@dataclass(frozen=True)
class _Signs:
    """What speaks for each of S statements: `others` (S, 4), and per strong token q·k in each layer and head."""

    matches: Tensor
    owners: Tensor
    others: Tensor
    right: Tensor


def _signs(matcher: Matcher, memory: Memory, question: Question) -> _Signs:
    index, count = index_of(matcher, memory), len(memory.statements)
    words = index.word_scores(question.terms)
    others = (
        torch.from_numpy(words),
        torch.from_numpy(around(words)),
        torch.tensor([float(told.role == "assistant") for told in memory.statements]),
        torch.arange(count) / max(1, count - 1),
    )
    strong = [told.writes.strengths >= LEAST_STRENGTH for told in memory.statements]
    keys = torch.cat([told.writes.keys[mask].float() for told, mask in zip(memory.statements, strong, strict=True)])
    owners = torch.repeat_interleave(torch.arange(count), torch.tensor([int(mask.sum()) for mask in strong]))
    matches = torch.einsum("nlhr,lhr->nlh", keys, question.last.float())
    return _Signs(matches, owners, torch.stack(others, 1), torch.tensor(question.right))


def _missed(weights: Tensor, shares: Tensor, signs: _Signs) -> Tensor:
    """Nats of the right statements among all."""
    found = (signs.matches * weights).sum(dim=(1, 2))
    start = -weights.sum().expand(len(signs.others))
    scores = start.scatter_reduce(0, signs.owners, found, "amax") + signs.others @ shares
    return scores.logsumexp(0) - scores[signs.right].logsumexp(0)


def _scores(matcher: Matcher, memory: Memory, question: Question) -> Tensor:
    return index_of(matcher, memory).scores(question.last[None], question.terms)


def index_of(matcher: Matcher, memory: Memory) -> StatementIndex:
    """The memory's statements, ready to be matched."""
    index = StatementIndex(matcher)
    for told in memory.statements:
        index.add(told.writes, told.terms, told.role)
    return index


def _parts(replies: Sequence[Reply], size: int) -> Iterator[Sequence[Reply]]:
    for start in range(0, len(replies), size):
        yield replies[start : start + size]
