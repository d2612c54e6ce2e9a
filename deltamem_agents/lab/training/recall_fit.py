"""Fits the matcher, which chooses statements, and the pointer, which points at their tokens, on cached activations.

Model and adapter stay unchanged. Only a few hundred weights are fitted. For the data, and how to run it, see
`recall_material.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deltamem_agents.memory.matcher import LEAST_STRENGTH, Matcher, Replacing
from deltamem_agents.memory.pointer import Pointer
from deltamem_agents.memory.recall import AROUND, NEAR, StatementIndex
from deltamem_agents.memory.writes import Writes
from deltamem_agents.types import Role

LEAST_COMMON = 3
"""Number of questions that a word must occur in to get a weight of its own."""

COMMON_WEIGHT = 30.0
"""A word that occurs in all questions gets the weight 1 / (1 + COMMON_WEIGHT)."""

LAYERS_KEPT, WORDS_KEPT = 0.01, 0.003
"""Regularisation strengths: towards equal layer weights, and towards word weights given by frequency alone."""

REPLACING = Replacing(alike=0.2, alike_long=0.7, alike_owner=0.45, long=7, missing=0.4, behind=4.0)
"""Chosen on validation among some 100 settings."""

SHOW_TOKENS = 400
"""Token budget of a prompt for chosen statements that return to the window. Chosen on validation."""

FLOOR_RISE, COVERAGE, SURE = 1.2, 5.0, 6.0
"""Chosen on one to 100 generated facts and on ten conversations of a person."""

OWNED_FROM = 7
"""From how many strongly written tokens on a statement may be about several people. Chosen on validation."""

MARGIN, MOST, MARGIN_FROM = 1.5, 2, 8
"""When a second statement is read. Chosen on validation."""

OVERVIEW_MARGIN, ADVICE_MARGIN = 1.35, 1.0
"""Margins in logits before a question counts as asking for everything, or for what the assistant said."""

ADVISED = 3.0
"""Added to the assistant's statements where a question asks for them. Chosen on validation."""

JUDGE_DECAY = 0.003
"""Regularisation of the classifiers of what asks for something told, or for everything. Chosen on validation."""

TOLD_LOST = 0.06
"""Share of questions about told facts that the floor may reject."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Emphasis:
    """Loss weights of a reply's steps.

    `answer`: of steps that say the answer. `at_once`: of a reply that begins with the answer. Others weigh 1.
    """

    answer: float
    at_once: float

    def weights(self, reply: Reply) -> Tensor:
        """The weight (R,) of each step."""
        if reply.at_once:
            return torch.full((len(reply.answering),), self.at_once)
        return torch.where(reply.answering, self.answer, 1.0)


SENTENCES, ANSWERS = Emphasis(4.0, 4.0), Emphasis(10.0, 40.0)
"""For the normal pointer, and for the eager one, which favours beginning with the answer."""


@dataclass(frozen=True)
class Told:
    """A statement: its writes, the term numbers of its words, and who said it."""

    writes: Writes
    terms: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Question:
    """A question. `last`, `mean` (layers, heads, r): its last query, and the mean of its queries.

    `terms`: term numbers of its words. `right`: indices of the statements that answer it; empty if never told. `asks`:
    whether it asks for something that could have been told. `overview`: whether it asks for everything at once.
    `advice`: whether it asks for what the assistant said.
    """

    last: Tensor
    mean: Tensor
    terms: tuple[int, ...]
    right: tuple[int, ...] = ()
    asks: bool = True
    overview: bool = False
    advice: bool = False


@dataclass(frozen=True)
class Memory:
    """An agent's statements, oldest first, and questions to it."""

    statements: tuple[Told, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Reply:
    """A reference reply of R tokens, with N candidate tokens of which M are distinct.

    - `features` (R, N, F): the pointer's features.
    - `owners` (N,): each candidate's index among the distinct tokens.
    - `log_probabilities` (R, M): of the distinct tokens, without a pointer.
    - `targets` (R,): the index of the token said among the distinct tokens, −1 if it is none of them.
    - `target` (R,): log-probability of the token said.
    - `answering` (R,) bool: the steps that say the answer.
    - `at_once`: the reply has one step, which says the answer.
    """

    features: Tensor
    owners: Tensor
    log_probabilities: Tensor
    targets: Tensor
    target: Tensor
    answering: Tensor
    at_once: bool = False


def fit_matcher(memories: Sequence[Memory], say: Say, *, steps: int = 60) -> Matcher:
    """Fits the matcher so that the right statements become the likeliest."""
    questions = [question for memory in memories for question in memory.questions]
    fitted = _with_judges(_fit_scores(memories, say, steps), questions)
    chosen = replace(
        fitted,
        advised=ADVISED,
        replacing=REPLACING,
        show_tokens=SHOW_TOKENS,
        margin=MARGIN,
        margin_from=MARGIN_FROM,
        owned_from=OWNED_FROM,
        most=MOST,
        floor_rise=FLOOR_RISE,
        coverage=COVERAGE,
        sure=SURE,
    )
    return replace(chosen, floor=_floor(chosen, memories))


def _fit_scores(memories: Sequence[Memory], say: Say, steps: int) -> Matcher:
    """A matcher with the weights of layers and words fitted, and no floor."""
    layers, heads, _ = memories[0].questions[0].last.shape
    prior = commonness(memories)
    base = Matcher.uniform(layers, heads)
    evidence = [
        _evidence(base, list(prior), memory, each) for memory in memories for each in memory.questions if each.right
    ]
    layer_logits = torch.zeros(layers, heads, requires_grad=True)
    log_scale = torch.tensor(2.3, requires_grad=True)
    shares = torch.tensor([base.words, base.near, base.assistant, base.newest], requires_grad=True)
    common = torch.tensor(list(prior.values())).log()
    rather = torch.zeros(len(prior), requires_grad=True)
    optimiser = torch.optim.Adam([layer_logits, log_scale, shares, rather], lr=0.05)
    for step in range(steps):
        optimiser.zero_grad()
        weights = log_scale.exp() * layer_logits.flatten().softmax(0).unflatten(0, (layers, heads))
        losses = [_statement_loss(weights, shares, (common + rather).exp(), each) for each in evidence]
        kept = LAYERS_KEPT * layer_logits.square().sum() + WORDS_KEPT * rather.square().sum()
        loss = torch.stack(losses).mean() + kept
        loss.backward()
        optimiser.step()
        if step % 20 == 19:
            say(f"matcher, step {step + 1}: loss {loss.item():.3f}")
    words, near, assistant, newest = shares.detach().tolist()
    fitted = dict(zip(prior, (common + rather).exp().tolist(), strict=True))
    sides = {"words": words, "near": near, "assistant": assistant, "newest": newest}
    return replace(base, weights=weights.detach(), commonness=fitted, **sides)


def _with_judges(matcher: Matcher, questions: Sequence[Question]) -> Matcher:
    """The matcher with the classifiers of what a question asks for fitted."""
    asking, bias = fit_judge(questions, [each.asks for each in questions], decay=JUDGE_DECAY)
    overview, overview_bias = fit_judge(questions, [each.overview for each in questions], decay=JUDGE_DECAY)
    advice, advice_bias = fit_judge(questions, [each.advice for each in questions])
    return replace(
        matcher,
        asking=asking,
        asking_bias=bias,
        overview=overview,
        overview_bias=overview_bias - OVERVIEW_MARGIN,
        advice=advice,
        advice_bias=advice_bias - ADVICE_MARGIN,
    )


def _floor(matcher: Matcher, memories: Sequence[Memory]) -> float:
    """The floor that `TOLD_LOST` of the questions about told facts do not reach."""
    heights = []
    for memory in memories:
        index = index_of(matcher, memory)
        heights += [float(index.heights(each.last[None], each.terms).max()) for each in memory.questions if each.right]
    return float(torch.tensor(heights).quantile(TOLD_LOST))


def commonness(memories: Sequence[Memory]) -> dict[int, float]:
    """The weight of each word that occurs in several questions: the more questions, the lower the weight."""
    asked = [each for memory in memories for each in memory.questions if each.asks and not each.overview]
    counts = Counter(term for question in asked for term in set(question.terms))
    return {
        term: 1 / (1 + COMMON_WEIGHT * count / len(asked)) for term, count in counts.items() if count >= LEAST_COMMON
    }


def fit_judge(
    questions: Sequence[Question], yes: Sequence[bool], *, steps: int = 200, decay: float = 0.01
) -> tuple[Tensor, float]:
    """Logistic regression on the questions' mean queries: weights (layers, heads, r) and bias. `yes`: the labels."""
    means = torch.stack([question.mean.flatten() for question in questions])
    wanted = torch.tensor([float(each) for each in yes])
    balance = torch.where(wanted > 0, 0.5 / wanted.mean().clamp_min(1e-6), 0.5 / (1 - wanted).mean().clamp_min(1e-6))
    centre, spread = means.mean(0), means.std()
    weights, bias = torch.zeros(means.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        found = ((means - centre) / spread) @ weights + bias
        loss = (F.binary_cross_entropy_with_logits(found, wanted, reduction="none") * balance).mean()
        (loss + decay * weights.square().sum()).backward()
        optimiser.step()
    flat = weights.detach() / spread
    return flat.view_as(questions[0].mean), float(bias.detach()) - float(flat @ centre)


def fit_pointer(
    replies: Sequence[Reply],
    say: Say,
    common: frozenset[int] = frozenset(),
    emphasis: Emphasis = SENTENCES,
    *,
    units: int = 12,
    epochs: int = 25,
    decay: float = 2e-3,
) -> Pointer:
    """Fits the pointer so that the reference replies become the likeliest.

    `common`: tokens so frequent in questions that they carry no information.
    """
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
                weights = emphasis.weights(reply)
                losses.append(weights * reply_losses(reply, F.softplus(units_on @ out + out_bias)))
            loss = torch.cat(losses).sum() / sum(emphasis.weights(reply).sum() for reply in part)
            (loss + decay * (hidden.square().sum() + out.square().sum())).backward()
            optimiser.step()
            total += loss.item() * len(part)
        if epoch % 10 == 9:
            say(f"pointer, epoch {epoch + 1}: {total / len(order):.3f} nats a token")
    weights = (hidden / spread).detach()
    return Pointer(weights, hidden_bias.detach() - weights @ centre, out.detach(), float(out_bias.detach()), common)


def reply_losses(reply: Reply, bonus: Tensor) -> Tensor:
    """Negative log-likelihood (R,), in nats, of each of the reply's tokens, given the candidates' `bonus` (R, N)."""
    count = reply.log_probabilities.shape[1]
    owners = reply.owners.expand(len(bonus), -1)
    each = torch.zeros(len(bonus), count).scatter_reduce(1, owners, bonus, "amax")
    added = torch.log1p((reply.log_probabilities.exp() * torch.expm1(each)).sum(1))
    pointed = each.gather(1, reply.targets.clamp_min(0)[:, None])[:, 0] * (reply.targets >= 0)
    return added - reply.target - pointed


@dataclass(frozen=True)
class _Evidence:
    """The evidence for each of S statements as the answer to a question of T words.

    `matches` (tokens, layers, heads): q·k of each strongly written token. `owners` (tokens,): the statement of each.
    `words` (T, S): each word's score in each statement. `common` (T,): each word's index among the common words, −1 if
    it is none of them. `others` (S, 2): whether the assistant said it, and how new it is. `right`: indices of the right
    statements.
    """

    matches: Tensor
    owners: Tensor
    words: Tensor
    common: Tensor
    others: Tensor
    right: Tensor


def _evidence(matcher: Matcher, common: Sequence[int], memory: Memory, question: Question) -> _Evidence:
    index, count, places = index_of(matcher, memory), len(memory.statements), {t: at for at, t in enumerate(common)}
    terms = sorted(set(question.terms))
    others = (
        torch.tensor([float(told.role == "assistant") for told in memory.statements]),
        torch.arange(count) / max(1, count - 1),
    )
    strong = [told.writes.strengths >= LEAST_STRENGTH for told in memory.statements]
    keys = torch.cat([told.writes.keys[mask].float() for told, mask in zip(memory.statements, strong, strict=True)])
    owners = torch.repeat_interleave(torch.arange(count), torch.tensor([int(mask.sum()) for mask in strong]))
    return _Evidence(
        torch.einsum("nlhr,lhr->nlh", keys, question.last.float()),
        owners,
        torch.from_numpy(np.stack([index.word_scores([term]) for term in terms])) if terms else torch.zeros(0, count),
        torch.tensor([places.get(term, -1) for term in terms], dtype=torch.long),
        torch.stack(others, 1),
        torch.tensor(question.right),
    )


def _statement_loss(weights: Tensor, shares: Tensor, common: Tensor, evidence: _Evidence) -> Tensor:
    """Negative log-likelihood of the right statements, in nats. `common`: weight of each common word."""
    found = (evidence.matches * weights).sum(dim=(1, 2))
    start = -weights.sum().expand(len(evidence.others))
    counts = torch.where(evidence.common >= 0, common[evidence.common.clamp_min(0)], torch.ones(len(evidence.common)))
    words = counts @ evidence.words
    sides = F.conv1d(words[None, None], AROUND[None, None], padding=NEAR)[0, 0]
    scores = start.scatter_reduce(0, evidence.owners, found, "amax") + evidence.others @ shares[2:]
    scores = scores + shares[0] * words + shares[1] * sides
    return scores.logsumexp(0) - scores[evidence.right].logsumexp(0)


def index_of(matcher: Matcher, memory: Memory) -> StatementIndex:
    """An index of the memory's statements, to match questions against."""
    index = StatementIndex(matcher)
    for told in memory.statements:
        index.add(told.writes, told.terms, told.role)
    return index


def _parts(replies: Sequence[Reply], size: int) -> Iterator[Sequence[Reply]]:
    for start in range(0, len(replies), size):
        yield replies[start : start + size]
