"""Laws of training data: it follows from the recipe, and has facts, questions and neutral exchanges."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.training import material as module
from deltamem_agents.lab.training import preserved
from deltamem_agents.lab.training.material import Material
from deltamem_agents.lab.training.neutral import own_replies
from deltamem_agents.lab.training.recipe import Recipe
from deltamem_agents.lab.training.run_folder import RunFolder
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.types import Message
from tiny_training import RECIPE, few_texts, renderer, silent, word_model


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    few_texts(monkeypatch)


def material(folder: Path, recipe: Recipe = RECIPE) -> Material:
    loaded = word_model()
    torch.manual_seed(0)
    adapter = Adapter.for_model(recipe.adapter, loaded.model)
    return Material(loaded, renderer(), recipe, RunFolder(folder, recipe), adapter, silent)


@contextmanager
def carried(of: Material) -> Iterator[None]:
    attachment = attach(of._model, of._adapter)
    try:
        yield
    finally:
        attachment.detach()


def test_filler_conversations_have_many_lengths() -> None:
    exchanges = [(Message("user", str(number)), Message("assistant", "yes")) for number in range(200)]
    conversations = module._conversations(exchanges, random.Random(0))
    said = [message.content for one in conversations for message in one if message.role == "user"]
    assert said != sorted(said, key=int) and sorted(said, key=int) == [str(number) for number in range(200)]
    assert {len(one) // 2 for one in conversations[:-1]} == set(module.ASIDE_LENGTHS)


def test_the_models_own_prompts_are_neutral_prompts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def thought_of(_: object, count: int, **options: Any) -> list[str]:
        asked.update(options, count=count)
        return ["Why is the kettle singing?"]

    monkeypatch.setattr(preserved, "own_prompts", thought_of)
    run = material(tmp_path, replace(RECIPE, own_prompts=1))
    prompts = [exchange.messages[0].content for exchange in run.preserved.neutral]
    assert prompts[-1] == "Why is the kettle singing?" and prompts[0] == preserved.neutral_prompts()[0]
    assert asked["count"] == 1 and asked["seed"] == RECIPE.seed


def test_exchanges_to_leave_alone_are_neutral_untold_or_new_statements(tmp_path: Path) -> None:
    run = material(tmp_path)
    generator = run.generator(RECIPE.stages[1].shapes[0], 2)
    rng = random.Random(0)
    for _ in range(20):
        episode = generator.draw(rng)
        neutral, untold, new = (run.preserved.draw(rng, generator, episode, kind) for kind in range(3))
        assert neutral in run.preserved.neutral and neutral.cut
        asked, begun = (message.content for message in untold.messages)
        assert untold.cut and asked not in {question.question for question in episode.questions}
        assert begun not in {question.prefix for question in episode.questions}
        assert new in run.preserved.statements and new.cut


def test_statements_are_told_by_the_user_and_answered_by_the_frozen_model(tmp_path: Path) -> None:
    run = material(tmp_path)
    statements = [one.messages for one in run.preserved.statements]
    prompts = [prompt.content for prompt, _ in statements]
    assert 0 < len(prompts) <= module.STATEMENTS
    assert statements == own_replies(word_model(), prompts, max_tokens=6, say=silent)
    assert [one.messages for one in material(tmp_path).preserved.statements] == statements


@pytest.mark.slow
def test_a_quarter_of_the_episodes_is_replaced_at_a_time(tmp_path: Path) -> None:
    settings = replace(RECIPE.warm_start, episodes=8, facts=(1, 2), renewed_every=3)
    run = material(tmp_path, replace(RECIPE, warm_start=settings))
    seen: list[list[Episode]] = []
    with carried(run):
        for step in (0, 2, 3, 7):
            episodes, found = run.collected(step)
            assert len(episodes) == len(found.prompts) == len(found.tellings.contents) == len(found.subjects)
            for places, prompt in zip(found.tellings.contents, found.prompts, strict=True):
                assert int(found.tellings.told[places].sum()) == int(prompt.is_answer.sum()) > 0
            seen.append([next(group) for _, group in groupby(episodes, key=id)])
    assert seen[0] == seen[1]
    assert seen[2][:6] == seen[0][2:] and seen[3][:6] == seen[2][2:]
    assert all(episode not in seen[0] for episode in seen[2][6:])
    fresh = material(tmp_path, replace(RECIPE, warm_start=settings))
    with carried(fresh):
        again, found_again = fresh.collected(7)
    assert again == episodes, "a resumed run uses the same ones"
    places = torch.arange(len(found.tellings))
    assert torch.equal(found_again.tellings.at(places), found.tellings.at(places))


@pytest.mark.slow
def test_pairs_come_from_more_episodes_than_are_replayed(tmp_path: Path) -> None:
    run, again = material(tmp_path), material(tmp_path)
    paired = []
    for one in (run, again):
        with carried(one):
            _, found = one.collected(0)
            paired.append(one.pairs(0))
        # Three additional episodes need two parts, each of two episodes with one fact.
        assert len(paired[-1].subjects) == len(found.subjects) + 4
        assert torch.equal(paired[-1].target[: len(found.target)], found.target)
        assert one.pairs(0) is paired[-1], "they are cached"
    assert torch.equal(paired[0].told, paired[1].told), "a resumed run uses the same ones"


def test_asides_are_neutral_exchanges_and_replies_to_statements(tmp_path: Path) -> None:
    run = material(tmp_path)
    with carried(run):
        asides = run._asides
    neutral, statements = run.preserved.neutral, run.preserved.statements
    assert len(asides.contents) == 2 * len(neutral) + len(statements)
    replies = sorted((one.messages for one in statements), key=lambda pair: sum(len(m.content) for m in pair))
    for places, (_, reply) in zip(asides.contents[-len(replies) :], replies, strict=True):
        owner = renderer().render((reply,), generation_prompt=False).owner
        assert len(places) == sum(index == 0 for index in owner)
