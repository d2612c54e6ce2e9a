"""Guards training against unintended changes: equal seeds draw the same data as in version 0.1.

The digests were computed with version 0.1. They cover the corpus, the recipes and the order of draws. That equal draws
give equal steps is covered by the tests of each loss.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.corpus.values import word_values
from deltamem_agents.lab.evaluation.bench_tasks import conflict_rows, label_rows
from deltamem_agents.lab.evaluation.draws import FULL, QUICK, Size, drawn_cases
from deltamem_agents.lab.evaluation.harmless import neutral_replies, unrelated_prompts
from deltamem_agents.lab.evaluation.natural import KINDS
from deltamem_agents.lab.evaluation.suites import _SIDES, _held_out, _updates
from deltamem_agents.lab.training.material import Material
from deltamem_agents.lab.training.preserved import neutral_prompts
from deltamem_agents.lab.training.recipe import Recipe
from deltamem_agents.lab.training.trainer import drawn_conversations
from tiny_training import silent

STEPS = 20

FIRST_STEPS = {
    "wide": "db45275e4cea2b08",
    "small": "47a35756c44547bd",
    "lasting": "08779001d58d83b4",
}
"""Digests of the training data before and in the first steps, by recipe."""

CASES = "c5c353783799b0ce"
"""Digest of the evaluation suites' cases."""

TEXTS = "3e6a7d5ae2499b0f"
"""Digest of prompts and small talk."""


class Vocabulary:
    """The part of a tokenizer that words are taken from: some words, and endings for made-up words."""

    def __init__(self) -> None:
        kinds = ("animal", "colour", "food", "place")
        self.words = [word for kind in kinds for word in word_values()[kind] if word.isalpha()]
        self._texts = [*(f" {word}" for word in self.words), "lor", "min", "tis", "van"]

    def __len__(self) -> int:
        return len(self._texts)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._texts[number] for number in ids)

    def encode(self, text: str, **_: object) -> list[int]:
        return [0, 0]


def digest(drawn: object) -> str:
    return hashlib.sha256(json.dumps(drawn, sort_keys=True, default=sorted).encode()).hexdigest()[:16]


def texts_of(episode: Episode) -> list[object]:
    messages = [(message.role, message.content) for message in episode.messages]
    return [messages, [(one.question, one.prefix, one.answer, one.outdated) for one in episode.questions]]


def told_by(episodes: Sequence[Episode], asides: int) -> Any:
    """The part of the episodes' activations that composing conversations needs."""
    questions = [question for episode in episodes for question in episode.questions]
    return SimpleNamespace(
        subjects=tuple(frozenset({question.subject}) for question in questions),
        attributes=tuple(question.attribute for question in questions),
        earlier=tuple(question.outdated for question in questions),
        asides=SimpleNamespace(contents=range(asides)),
        questions=SimpleNamespace(contents=questions),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_STEPS)
def test_a_recipes_first_steps_draw_the_data_of_version_0_1(name: str) -> None:
    recipe = Recipe.load(name)
    loaded = cast(Any, SimpleNamespace(model=None, tokenizer=Vocabulary()))
    material = Material(loaded, cast(Any, None), recipe, cast(Any, None), cast(Any, None), silent)
    told = [material._draw_part(part) for part in (-1, 0)]
    found = told_by(told[1], asides=300)
    steps = []
    for number in range(STEPS):
        step = recipe.drawn_step(number)
        conversations = drawn_conversations(found, step.stage, step.facts, step.rng)
        episode = material.generator(step.shape, step.facts).draw(step.rng)
        steps.append([step.facts, [one.order for one in conversations], texts_of(episode)])
    drawn = [[texts_of(episode) for part in told for episode in part], material._told(), steps]
    assert digest(drawn) == FIRST_STEPS[name]


@pytest.mark.slow
def test_suites_draw_the_cases_of_version_0_1() -> None:
    shapes = [shape for count in (1, 4) for named in (_held_out, _updates) for shape in named(count).values()]
    words = Vocabulary().words
    cases = [drawn_cases(words, shape, QUICK, confusions=True) for shape in (*shapes, *_SIDES.values())]
    cases += [drawn_cases(words, shape, Size(30, FULL.seeds)) for shape in KINDS.values()]
    rows = [*conflict_rows(8, QUICK), *label_rows(4, QUICK)]
    assert digest([[[asdict(case) for case in some] for some in cases], [asdict(row) for row in rows]]) == CASES


def test_neutral_texts_are_those_of_version_0_1() -> None:
    rng = random.Random(0)
    talk = [small_talk(rng, held_out=held_out) for held_out in (False, True) for _ in range(500)]
    assert digest([talk, neutral_prompts(), unrelated_prompts(), neutral_replies()]) == TEXTS
