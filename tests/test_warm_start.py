"""Laws of the warm start: it fits any adapter, chooses the best output scale, and does not change the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.episodes import Episode, EpisodeShape
from deltamem_agents.lab.corpus.words import made_up_words, open_words
from deltamem_agents.lab.training import warm_start as module
from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.recipe import Rehearsal
from deltamem_agents.lab.training.told_tokens import Pairs
from deltamem_agents.lab.training.warm_start import GAINS, set_gain, warm_start
from deltamem_agents.loading import model_fingerprint
from deltamem_agents.types import Message
from fast_set import one_in
from tiny_training import (
    CONFIGS,
    FULL,
    GATED,
    LEARNED_WORDS,
    activations_of,
    episodes_of,
    renderer,
    said_aside,
    word_engine,
    word_tokenizer,
)

ONE_FACT = EpisodeShape(distractors=(0, 1), word_share=0.7)
PLAN = Rehearsal(steps=2, facts=(1, 2), questions=6, asides=2)


def started(engine: DeltaMemEngine, plan: Rehearsal = PLAN, seed: int = 0, episodes: int = 10) -> list[str]:
    """Runs a warm start and returns its progress lines."""
    said: list[str] = []
    told = episodes_of(episodes, replace(ONE_FACT, distractors=(0, 0) if episodes > 10 else (0, 1)))
    found = activations_of(engine, told, 6)
    warm_start(engine.model, engine.adapter, renderer(), told, found, Pairs.of(found), plan, seed=seed, say=said.append)
    return said


def weights_of(engine: DeltaMemEngine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.adapter.named_parameters()}


WITHOUT_O = {"without o": replace(FULL, delta_heads=("q",)), "no o, gated": replace(GATED, delta_heads=("q", "v"))}


@pytest.mark.slow
@pytest.mark.parametrize("config", one_in(4, [*CONFIGS.values(), *WITHOUT_O.values()]), ids=[*CONFIGS, *WITHOUT_O])
def test_a_warm_start_fits_any_adapter_and_does_not_change_the_model(config: AdapterConfig) -> None:
    engine = word_engine(config)
    before, weights = model_fingerprint(engine.model), weights_of(engine)
    started(engine)
    changed = {name for name, value in weights_of(engine).items() if not torch.equal(value, weights[name])}
    fitted = ("memory_", "beta_", "gate_", "read_", "found_", "readout_proj" if config.readout else "delta_o_proj")
    assert changed == {name for name in weights if name.split(".")[-1].startswith(fitted)}
    assert all(bool(value.isfinite().all()) for value in weights_of(engine).values())
    assert model_fingerprint(engine.model) == before
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in engine.adapter.parameters())


@pytest.mark.slow
def test_a_warm_start_is_determined_by_its_seed_and_reports_its_gain() -> None:
    found = []
    for seed in (0, 0, 1):
        engine = word_engine(GATED)
        *_, gain = started(engine, seed=seed)
        assert gain in {f"gain {value:.0f}" for value in GAINS}
        found.append(weights_of(engine))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


@pytest.mark.slow
def test_a_warm_start_rehearses_the_collected_activations_with_the_models_output_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, calls = word_engine(GATED), []

    def noted(adapter: object, found: Activations, pairs: Pairs, rows: Tensor, plan: Rehearsal, **_: object) -> None:
        assert adapter is engine.adapter
        assert pairs.subjects == found.subjects
        calls.append((len(found.subjects), len(found.asides.contents), rows, plan))

    monkeypatch.setattr(module, "rehearse", noted)
    started(engine)
    ((tellings, asides, rows, plan),) = calls
    exchanges = sum(message.role == "user" for messages in said_aside(6) for message in messages)
    assert (tellings, asides, plan) == (10, exchanges, PLAN)
    assert torch.equal(rows, module.output_directions(engine.model))


def nats_of(engine: DeltaMemEngine, episodes: list[Episode]) -> float:
    """Mean negative log-likelihood of the answers' tokens, asked without the conversation that tells them."""
    logprobs, tokens = 0.0, 0
    for episode in episodes:
        state = engine.absorb(engine.new_state(), episode.messages)
        for question in episode.questions:
            asked = [Message("user", question.question), Message("assistant", question.prefix)]
            score = engine.score(state, asked, question.answer)
            logprobs, tokens = logprobs + score.logprob, tokens + score.tokens
    return -logprobs / tokens


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loud"), one_in(2, [("shipped recipe", 0.01), ("every gate and head", 0.1)]))
def test_the_gain_maximises_the_answers_likelihood_and_scales_only_o(name: str, loud: float) -> None:
    engine, episodes = word_engine(CONFIGS[name]), episodes_of(5, ONE_FACT)
    scale_o(engine, weights_of(engine), loud)
    before, nats = weights_of(engine), {}
    for gain in GAINS:
        scale_o(engine, before, gain)
        nats[gain] = nats_of(engine, episodes)
    scale_o(engine, before, 1.0)
    best = set_gain(engine.model, engine.adapter, renderer(), episodes)
    assert best == min(nats, key=nats.__getitem__)
    assert best not in (GAINS[0], GAINS[-1]), "otherwise the test would be weak"
    for name, value in weights_of(engine).items():
        assert torch.equal(value, before[name] * best if "delta_o_proj" in name else before[name])


def scale_o(engine: DeltaMemEngine, weights: dict[str, Tensor], gain: float) -> None:
    with torch.no_grad():
        for name, parameter in engine.adapter.named_parameters():
            if "delta_o_proj" in name:
                parameter.copy_(weights[name] * gain)


def test_an_adapter_without_o_correction_is_not_scaled() -> None:
    engine = word_engine(replace(FULL, delta_heads=("q",)))
    before = weights_of(engine)
    assert set_gain(engine.model, engine.adapter, renderer(), episodes_of(3, ONE_FACT)) == 1.0
    assert all(torch.equal(value, before[name]) for name, value in weights_of(engine).items())


@pytest.mark.slow
def test_after_a_warm_start_told_words_are_likelier() -> None:
    """On a tiny model: answers are likelier with their own conversation's state than with another's."""
    engine = word_engine(replace(GATED, rank=8))
    started(engine, Rehearsal(steps=60, facts=(1,), questions=16, asides=1), episodes=40)
    asked = episodes_of(40, replace(ONE_FACT, distractors=(0, 0)))[:12]
    told = nats_of(engine, asked)
    # The same questions with another conversation's state: equal output scale, other content.
    swapped = [
        replace(one, messages=other.messages) for one, other in zip(asked, [asked[-1], *asked[:-1]], strict=True)
    ]
    assert told < nats_of(engine, swapped) - 0.5 and math.isfinite(told)


def test_made_up_words_have_several_tokens_and_are_deterministic() -> None:
    tokenizer = word_tokenizer()
    words = made_up_words(tokenizer, 50)
    assert len(set(words)) == 50 and words == made_up_words(tokenizer, 50)
    assert all(2 <= len(tokenizer.encode(f" {word}")) <= 3 and word.isalpha() for word in words)
    assert not set(words) & set(open_words(tokenizer)) and made_up_words(tokenizer, 0) == []


def test_vocabulary_words_are_single_tokens_after_a_space() -> None:
    tokenizer = word_tokenizer()
    words = open_words(tokenizer)
    assert {word for word in LEARNED_WORDS if len(word) > 2} <= set(words)
    assert words == sorted(words)
    assert all(len(tokenizer.encode(f"is {word}", add_special_tokens=False)) == 2 for word in words)
