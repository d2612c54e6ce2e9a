"""Laws of spoken values: activations of words after the beginning of a statement."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from deltamem_agents.lab.corpus.episodes import Episode, EpisodeShape
from deltamem_agents.lab.training import told_tokens
from deltamem_agents.lab.training.activations import Exchanges
from deltamem_agents.lab.training.direct_path import spoken_loss
from deltamem_agents.lab.training.objective import output_directions
from deltamem_agents.lab.training.told_tokens import SpokenValues, collect_behind, collect_spoken
from tiny_training import CONFIGS, activations_of, episodes_of, renderer, word_engine

TOLD_BY_USER = [
    episode
    for episode in episodes_of(20, EpisodeShape(distractors=(0, 0)))
    if episode.questions[0].told is not None and episode.questions[0].told.start > 1
]


def collected(episodes: list[Episode], words: list[str]) -> SpokenValues:
    engine = word_engine(CONFIGS["shipped recipe"])
    return collect_spoken(engine.model, engine.adapter, renderer(), episodes, words)


def test_a_spoken_value_has_the_activations_of_the_whole_telling() -> None:
    episode = TOLD_BY_USER[0]
    spoken = collected([episode], [episode.questions[0].answer])
    engine = word_engine(CONFIGS["shipped recipe"])
    whole = activations_of(engine, [episode])
    told: Exchanges = whole.tellings
    assert torch.equal(spoken.target, whole.target)
    torch.testing.assert_close(spoken.told.float(), told.at(whole.told_at).float(), rtol=2e-2, atol=2e-2)


def test_every_word_is_spoken_and_statements_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told_tokens, "WORDS_A_STATEMENT", 1)
    word = TOLD_BY_USER[0].questions[0].answer
    spoken = collected(TOLD_BY_USER[:2], [word] * 4)
    each = spoken.told.unflatten(1, (4, -1))
    assert torch.equal(each[:, 0], each[:, 2]) and torch.equal(each[:, 1], each[:, 3])
    assert not torch.equal(each[:, 0], each[:, 1])


def test_words_are_spoken_after_their_own_statement() -> None:
    engine = word_engine(CONFIGS["shipped recipe"])

    def behind(*statements: tuple[str, list[str]]) -> SpokenValues:
        return collect_behind(engine.model, engine.adapter, renderer(), statements)

    both = behind(("My name is", ["Ada", "Tom"]), ("I'm a", ["nurse"]))
    first, second = behind(("My name is", ["Ada", "Tom"])), behind(("I'm a", ["nurse"]))
    assert torch.equal(both.told, torch.cat([first.told, second.told], dim=1))
    assert torch.equal(both.target, torch.cat([first.target, second.target]))
    assert not torch.equal(behind(("I'm a", ["Ada"])).told, behind(("My name is", ["Ada"])).told)


def test_without_statements_or_words_nothing_is_spoken_and_the_loss_is_zero() -> None:
    for episodes, words in ((TOLD_BY_USER, []), ([], ["Lisbon"])):
        spoken = collected(episodes, words)
        assert spoken.told.shape[1] == len(spoken.target) == 0
        assert float(loss_of(spoken, right=True)) == 0
    assert float(loss_of(None, right=True)) == 0


def loss_of(spoken: SpokenValues | None, *, right: bool) -> torch.Tensor:
    """The loss with identity projections, where the stored token is the right one or another."""
    engine = word_engine(CONFIGS["shipped recipe"])
    rows = output_directions(engine.model)
    hidden = rows.shape[1]
    value = torch.eye(hidden)[None]
    say = torch.eye(hidden)[None]
    if spoken is not None and len(spoken.target):
        target = spoken.target if right else spoken.target.roll(1)
        spoken = replace(spoken, told=rows[target][None])
    return spoken_loss(value, say, torch.tensor(3.0), spoken, rows, random.Random(0))


def test_the_spoken_loss_is_lower_for_the_stored_token() -> None:
    rows = len(output_directions(word_engine(CONFIGS["shipped recipe"]).model))
    spoken = SpokenValues(torch.zeros(1, 40, 1), torch.randperm(rows)[:40])
    assert float(loss_of(spoken, right=True)) < 0.7 * float(loss_of(spoken, right=False))
