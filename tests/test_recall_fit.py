"""Laws of fitting recall: informative evidence gets the largest weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from deltamem_agents.lab.training.recall_fit import (
    Memory,
    Question,
    Reply,
    Told,
    commonness,
    fit_judge,
    fit_matcher,
    fit_pointer,
    index_of,
    reply_losses,
)
from deltamem_agents.memory.pointer import Candidates, features
from deltamem_agents.memory.writes import Writes

LAYERS, RANK, TELLING = 2, 8, 1
"""TELLING: the layer whose keys distinguish statements."""


def unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def memory(seed: int, count: int = 6) -> Memory:
    """Statements whose questions match them in one layer alone. The first question asks for nothing."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.ones(1, LAYERS, 1, 1)
    keys = unit(generator, count, 1, LAYERS, 1, RANK)
    told = tuple(Told(Writes(each, each, gates, gates), (number,), "user") for number, each in enumerate(keys))
    asked = []
    for number in range(count):
        query = unit(generator, LAYERS, 1, RANK)
        query[TELLING] = keys[number, 0, TELLING]
        asked.append(Question(query, torch.ones_like(query), (99,), (number,)))
    return Memory(told, (Question(query, -torch.ones_like(query), (), (), asks=False), *asked))


@pytest.mark.slow
def test_the_matcher_weights_the_informative_layer_most_and_ranks_right_statements_first() -> None:
    fitted = fit_matcher([memory(seed) for seed in range(6)], lambda line: None, steps=60)
    assert fitted.weights[TELLING] > fitted.weights[1 - TELLING]
    unseen = memory(77)
    index = index_of(fitted, unseen)
    found = [index.scores(each.last[None], each.terms).argmax().item() for each in unseen.questions if each.right]
    assert found == [each.right[0] for each in unseen.questions if each.right]


def test_prompts_that_ask_for_nothing_are_distinguished_from_questions() -> None:
    questions = [each for seed in range(3) for each in memory(seed).questions]
    weights, bias = fit_judge(questions, [each.asks for each in questions])
    for each in questions:
        assert (float((weights * each.mean).sum()) + bias > 0) == each.asks


def test_common_words_get_low_weights() -> None:
    found = commonness([memory(0)])
    assert found == {99: pytest.approx(1 / 31)}


def reply(seed: int) -> Reply:
    """A reply of two tokens, both the candidate whose key matches. The model alone finds all equally likely."""
    generator = torch.Generator().manual_seed(seed)
    keys, gates = unit(generator, 5, LAYERS, 1, RANK), torch.ones(5, LAYERS, 1, 1)
    right = seed % 5
    candidates = Candidates.of([(Writes(keys, keys, gates, gates), range(5), range(5))], keys[right], frozenset())
    likely = torch.full((2, 5), 0.01).log()
    logits = torch.cat([likely[0], torch.tensor([0.95]).log()])
    steps = torch.stack([features(logits, keys[right], candidates, ()) for _ in range(2)])
    return Reply(
        steps, torch.arange(5), likely, torch.tensor([right, right]), likely[:, right], torch.tensor([False, True])
    )


@pytest.mark.slow
def test_the_pointer_points_at_the_token_asked_for() -> None:
    fitted = fit_pointer([reply(seed) for seed in range(60)], lambda line: None, epochs=40, decay=1e-4)
    for seed in range(100, 110):
        unseen = reply(seed)
        judged = torch.tanh(unseen.features @ fitted.hidden.T + fitted.hidden_bias) @ fitted.out + fitted.out_bias
        assert F.softplus(judged)[0].argmax() == unseen.targets[0]


def test_without_a_bonus_the_loss_is_the_models_own() -> None:
    unseen = reply(3)
    torch.testing.assert_close(reply_losses(unseen, torch.zeros(2, 5)), -unseen.target)


def test_a_bonus_for_one_token_lowers_the_others() -> None:
    unseen = reply(2)
    bonus = torch.zeros(2, 5)
    bonus[:, 2] = 3.0
    pointed = reply_losses(unseen, bonus)
    expected = -(math.log(0.01) + 3 - math.log(0.99 + 0.01 * math.exp(3)))
    assert pointed.tolist() == pytest.approx([expected, expected], rel=1e-4)
