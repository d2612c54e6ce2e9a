"""Laws of training: it computes what the engine computes, moves the adapter alone, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltamem_agents.config import AdapterConfig
from deltamem_agents.decode import Pass, Prompt
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError, TrainingDiverged
from deltamem_agents.loading import model_fingerprint
from deltamem_agents.memory.adapter_file import load_adapter
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.training import trainer as training
from deltamem_agents.training import warmstart
from deltamem_agents.training.batches import (
    PREFIX_WEIGHT,
    QuestionBatch,
    history_batch,
    neutral_batch,
    question_batch,
)
from deltamem_agents.training.chatter import chatter
from deltamem_agents.training.episodes import Episode, EpisodeGenerator, EpisodeShape, Question, Told
from deltamem_agents.training.objective import (
    answer_questions,
    disturbance,
    judge,
    run_after_lead,
    write_history,
)
from deltamem_agents.training.objective import _logits as logits_at
from deltamem_agents.training.recipe import RECIPES, Recipe, Stage, WarmStart
from deltamem_agents.training.run_folder import (
    LOG_FILE,
    OPTIMISER_FILE,
    PROGRESS_FILE,
    RECIPE_FILE,
    Checkpoint,
    RunFolder,
)
from deltamem_agents.training.trainer import Trainer, initialise, open_words
from deltamem_agents.types import Message
from tiny_models import FAMILIES, random_ids, tiny_model
from tiny_models import random_adapter as adapter_for
from tiny_models import random_state as state_for
from tiny_tokenizers import CHATML as CHATML_WITH_SYSTEM
from tiny_training import CHATML, renderer, word_engine, word_model, word_tokenizer

FULL = AdapterConfig(rank=4, alpha=8.0, delta_heads=("q", "k", "v", "o"))
CONFIGS: Mapping[str, AdapterConfig] = {
    "shipped recipe": AdapterConfig(rank=4, key_shift=True, state_update_mode="no_lambda"),
    "published preset": AdapterConfig(rank=4),
    "every gate and head": replace(FULL, num_state_heads=2, couple_lambda=False, key_shift=True),
    "one layer": replace(FULL, target_layers=(1,), rankwise_gates=False, delta_o_rmsnorm=True),
    "trained scale": replace(FULL, trainable_delta_scale=True, delta_scale_granularity="head"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
TEMPLATES = {"plain lead": CHATML, "system lead": CHATML_WITH_SYSTEM}
each_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
SHAPE = EpisodeShape(facts=2, distractors=(0, 2), changed=0.5, asked_before=0.5)


def episodes_of(count: int, shape: EpisodeShape = SHAPE, seed: int = 0) -> list[Episode]:
    generator, rng = EpisodeGenerator(open_words(word_tokenizer()), shape), random.Random(seed)
    return [generator.draw(rng) for _ in range(count)]


def histories_of(episodes: Sequence[Episode]) -> list[tuple[Message, ...]]:
    return [episode.messages for episode in episodes]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def states_of(engine: DeltaMemEngine, episodes: Sequence[Episode], template: str = CHATML) -> MemoryState:
    return write_history(engine.model, engine.adapter, history_batch(renderer(template), histories_of(episodes)))[0]


# What training computes is what the engine computes.


@each_config
@each_template
def test_a_written_history_is_an_absorbed_conversation(config: AdapterConfig, template: str) -> None:
    engine, episodes = word_engine(config, template), episodes_of(4)
    state = states_of(engine, episodes, template)
    for row, episode in enumerate(episodes):
        absorbed = engine.absorb(engine.new_state(), episode.messages)
        assert absorbed.norm() > 0.1
        assert_close(state[row].matrices, absorbed.matrices)


@each_template
def test_the_mean_gate_is_that_of_the_written_tokens(template: str) -> None:
    engine, episodes = word_engine(CONFIGS["shipped recipe"], template), episodes_of(1)
    _, beta = write_history(
        engine.model, engine.adapter, history_batch(renderer(template), histories_of(episodes))
    )
    turn = engine.run_turn("a", [*episodes[0].messages[:-1]])
    run = engine._pass(engine.new_state(), collect=True)
    engine._absorb(run, episodes[0].messages, None)
    assert run.measures.mean_beta == pytest.approx(float(beta.detach()), abs=1e-4)
    assert turn.facts.mean_beta is not None


@each_config
@each_template
def test_an_answered_question_is_a_scored_answer(config: AdapterConfig, template: str) -> None:
    engine, episodes = word_engine(config, template), episodes_of(3)
    state, questions = states_of(engine, episodes, template), question_batch(renderer(template), episodes)
    logits = answer_questions(engine.model, state, questions, writes=False)
    outcome = judge(logits, questions, torch.tensor(0.0))
    logprobs = logits.log_softmax(-1).gather(1, questions.targets[:, None])[:, 0]
    asked = [(row, question) for row, episode in enumerate(episodes) for question in episode.questions]
    for index, (row, question) in enumerate(asked):
        own = questions.is_answer & (questions.places[:, 0] == index)
        messages = [Message("user", question.question), Message("assistant", question.prefix)]
        score = engine.score(state[row], messages, question.answer)
        assert score.tokens == int(own.sum())
        assert score.logprob == pytest.approx(float(logprobs[own].sum()), abs=1e-3)
        assert score.greedy == bool(outcome.all_right[index])


def test_an_answer_the_engine_gives_is_judged_right() -> None:
    engine = word_engine()
    told = [Message("user", "My lucky charm is otter."), Message("assistant", "Noted.")]
    question = Question("What is my lucky charm?", "", "Your lucky charm is")
    state = engine.absorb(engine.new_state(), told)
    # A token other than the likeliest may decode to what is encoded otherwise; the likeliest word cannot.
    prompts = [[Message("user", question.question), Message("assistant", question.prefix)]]
    words = open_words(engine.tokenizer)
    best = max(words, key=lambda word: engine.score(state, prompts[0], word).logprob)
    assert question_batch(renderer(), [Episode(tuple(told), (replace(question, answer=best),))]).is_answer.sum() == 1
    for word in {best, *words[:20]}:
        batch = question_batch(renderer(), [Episode(tuple(told), (replace(question, answer=word),))])
        outcome = judge(answer_questions(engine.model, state, batch, writes=False), batch, torch.tensor(0.0))
        greedy = engine.score(state, prompts[0], word).greedy
        assert outcome.all_right.tolist() == outcome.first_right.tolist() == [greedy]


@each_config
@each_template
def test_a_question_that_is_written_is_written_as_in_a_turn(config: AdapterConfig, template: str) -> None:
    """Contents are written as they are read, the marks of a turn are not."""
    engine, episodes = word_engine(config, template), episodes_of(2)
    state, questions = states_of(engine, episodes, template), question_batch(renderer(template), episodes)
    logits = answer_questions(engine.model, state, questions, writes=True)
    asked = [(row, question) for row, episode in enumerate(episodes) for question in episode.questions]
    for index, (row, question) in enumerate(asked):
        exchange = [Message("user", question.question), Message("assistant", question.reply)]
        rendered = renderer(template).render(exchange, generation_prompt=False)
        last = max(place for place, owner in enumerate(rendered.owner) if owner == 1)
        reads = tuple(place >= rendered.owner.index(0) for place in range(last + 1))
        writes = tuple(owner >= 0 for owner in rendered.owner[: last + 1])
        prompt = Prompt(rendered.ids[: last + 1], reads, writes, rendered.owner[: last + 1])
        own = questions.places[:, 0] == index
        assert_close(logits[own][-1], Pass(engine.model, state[row]).feed(prompt))
    assert not torch.equal(logits, answer_questions(engine.model, state, questions, writes=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_after_a_shared_lead_are_the_models_own(family: str) -> None:
    model = tiny_model(family, "eager")
    adapter = adapter_for(model)
    attach(model, adapter)
    ids, state = random_ids(3, 9), state_for(adapter, 3)
    ids[:, :4] = ids[0, :4]
    lead, tokens = ids[0, :4], ids[:, 4:]
    valid = torch.ones_like(tokens, dtype=torch.bool)
    places = torch.tensor([(row, place) for row in range(3) for place in range(5)])
    call = training_call(state, valid)
    found = logits_at(model, run_after_lead(model, lead, tokens, valid, call), places)
    reads = torch.cat([torch.zeros(3, 4, dtype=torch.bool), valid], dim=1)
    expected = model(input_ids=ids, deltamem=training_call(state, reads)).logits[:, 4:].flatten(0, 1)
    assert_close(found, expected)
    frozen = logits_at(model, run_after_lead(model, lead, tokens, valid, None), places)
    assert_close(frozen, model(input_ids=ids).logits[:, 4:].flatten(0, 1))


def training_call(state: MemoryState, valid: Tensor) -> Any:
    from deltamem_agents.memory.attention import MemoryCall

    return MemoryCall(state, valid)


@each_config
def test_a_batch_is_its_rows_one_by_one(config: AdapterConfig) -> None:
    engine, episodes = word_engine(config), episodes_of(5)
    model, adapter = engine.model, engine.adapter
    state, questions = states_of(engine, episodes), question_batch(renderer(), episodes)
    assert len({len(renderer().render(messages).ids) for messages in histories_of(episodes)}) > 1
    logits = answer_questions(model, state, questions, writes=True)
    alone = []
    for row, episode in enumerate(episodes):
        own, _ = write_history(model, adapter, history_batch(renderer(), [episode.messages]))
        assert_close(state[row].matrices, own.matrices, 1e-5)
        alone += [
            answer_questions(model, own, question_batch(renderer(), [replace(episode, questions=(q,))]), writes=True)
            for q in episode.questions
        ]
    assert_close(logits, torch.cat(alone), 1e-4)


def test_padding_holds_nothing() -> None:
    engine, episodes = word_engine(), episodes_of(3)
    histories, questions = history_batch(renderer(), histories_of(episodes)), question_batch(renderer(), episodes)

    def with_noise(batch: Any) -> Any:
        return replace(batch, tokens=torch.where(batch.valid, batch.tokens, 7))

    for batch in (histories, questions):
        assert not batch.valid.all()
        assert not (batch.writable & ~batch.valid).any()
    state, beta = write_history(engine.model, engine.adapter, histories)
    noisy_state, noisy_beta = write_history(engine.model, engine.adapter, with_noise(histories))
    assert torch.equal(state.matrices, noisy_state.matrices)
    assert torch.equal(beta, noisy_beta)
    logits = answer_questions(engine.model, state, questions, writes=True)
    assert torch.equal(logits, answer_questions(engine.model, state, with_noise(questions), writes=True))


def test_a_different_system_part_in_one_batch_is_refused() -> None:
    histories = [[Message("system", text), Message("user", "Hello.")] for text in ("Be kind.", "Be short.")]
    with pytest.raises(ConfigError, match="different system parts"):
        history_batch(renderer(), histories)
    assert history_batch(renderer(), [histories[0], histories[0]]).writable.any()


@each_template
def test_the_reply_is_learned_to_its_end_mark(template: str) -> None:
    questions = question_batch(renderer(template), episodes_of(2))
    tokenizer = word_tokenizer()
    for index in range(len(questions.tokens)):
        learned = questions.targets[questions.places[:, 0] == index].tolist()
        assert learned[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert tokenizer.decode(learned[:-1]).startswith("Your ")
        shown = questions.tokens[index][questions.valid[index]].tolist()
        assert shown[-len(learned) + 1 :] == learned[:-1]


# The loss, and where its gradient goes.


def test_the_loss_weighs_answers_against_the_rest_of_the_reply() -> None:
    """Two questions of three targets each; the likeliest token is named, all others share the rest."""
    nats = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0, 0.125])
    targets = torch.tensor([1, 2, 3, 1, 2, 3])
    rest = torch.log((1 - torch.exp(-nats)) / 4)
    logits = rest[:, None].repeat(1, 5).scatter(1, targets[:, None], -nats[:, None])
    is_answer = torch.tensor([False, True, True, False, True, False])
    questions = QuestionBatch(
        lead=torch.tensor([0]),
        tokens=torch.zeros(2, 4, dtype=torch.long),
        valid=torch.ones(2, 4, dtype=torch.bool),
        writable=torch.ones(2, 4, dtype=torch.bool),
        row=torch.tensor([0, 1]),
        places=torch.tensor([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        targets=targets,
        is_answer=is_answer,
        is_first=torch.tensor([False, True, False, False, True, False]),
    )
    outcome = judge(logits, questions, torch.tensor(0.25))
    weighted = PREFIX_WEIGHT * (0.5 + 0.25 + 0.125) + 1.0 + 2.0 + 3.0
    assert float(outcome.loss) == pytest.approx(weighted / (3 * PREFIX_WEIGHT + 3), rel=1e-5)
    assert outcome.answer_nats == pytest.approx(2.0, rel=1e-5)
    # exp(−1) = 0.37 beats (1 − 0.37) / 4, exp(−2) = 0.14 does not, nor does exp(−3).
    assert outcome.first_right.tolist() == [True, False]
    assert outcome.all_right.tolist() == [False, False]
    assert float(outcome.beta) == 0.25
    sure = judge(logits + 20 * torch.nn.functional.one_hot(targets, 5), questions, torch.tensor(0.0))
    assert sure.all_right.tolist() == [True, True]


def neutral_exchanges(count: int) -> list[tuple[Message, ...]]:
    rng = random.Random(0)
    exchanges = [(Message("user", user), Message("assistant", reply)) for user, reply in map(chatter, [rng] * count)]
    return [exchange[: 1 + index % 2] for index, exchange in enumerate(exchanges)]


def test_a_zero_state_disturbs_nothing_and_any_other_does() -> None:
    engine = word_engine()
    neutral, zero = neutral_batch(renderer(), neutral_exchanges(4)), engine.adapter.zero_state(4)
    assert float(disturbance(engine.model, zero, neutral).detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(disturbance(engine.model, states_of(engine, episodes_of(4)), neutral).detach()) > 1e-3


def test_corrections_of_zero_disturb_nothing() -> None:
    engine = word_engine()
    neutral, state = neutral_batch(renderer(), neutral_exchanges(4)), states_of(engine, episodes_of(4))
    with torch.no_grad():
        for name, parameter in engine.adapter.named_parameters():
            if ".delta_" in name:
                parameter.zero_()
    assert float(disturbance(engine.model, state, neutral).detach()) == pytest.approx(0.0, abs=1e-6)


def test_a_prompt_without_a_reply_is_compared_where_the_reply_begins() -> None:
    neutral = neutral_batch(renderer(), neutral_exchanges(2))
    asked, replied = (neutral.places[neutral.places[:, 0] == row, 1].tolist() for row in (0, 1))
    assert asked == [int(neutral.valid[0].sum()) - 1]
    assert len(replied) > 1 and replied == list(range(replied[0], replied[-1] + 1))


def whole_loss(engine: DeltaMemEngine, episodes: Sequence[Episode], *, writes: bool = True) -> Tensor:
    histories, questions = history_batch(renderer(), histories_of(episodes)), question_batch(renderer(), episodes)
    state, beta = write_history(engine.model, engine.adapter, histories)
    outcome = judge(answer_questions(engine.model, state, questions, writes=writes), questions, beta)
    neutral = neutral_batch(renderer(), neutral_exchanges(len(episodes)))
    return outcome.loss + 0.2 * outcome.beta + disturbance(engine.model, state, neutral)


@each_config
@pytest.mark.parametrize("writes", [True, False])
def test_the_gradient_reaches_every_weight_of_the_adapter_and_none_of_the_model(
    config: AdapterConfig, writes: bool
) -> None:
    engine = word_engine(config)
    whole_loss(engine, episodes_of(3), writes=writes).backward()
    for name, parameter in engine.adapter.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        if "delta_scale_raw" in name:
            continue
        assert float(parameter.grad.abs().max()) > 0, name
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_the_gradient_through_the_writes_is_the_difference_quotient() -> None:
    """Of the recomputed writes; that reads change later inputs during the history is left out on purpose."""
    engine, episodes = word_engine(replace(CONFIGS["shipped recipe"], target_layers=(1,))), episodes_of(2)
    memory = engine.adapter.layer(0)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        state, _ = write_history(engine.model, engine.adapter, history_batch(renderer(), histories_of(episodes)))
        return (state.matrices * direction).sum()

    direction = torch.randn(states_of(engine, episodes).matrices.shape, generator=generator)
    for name in ("memory_k_proj", "memory_k_shift_proj", "memory_v_proj", "beta_proj", "beta_bias"):
        parameter = memory.get_parameter(name)
        step = torch.randn(parameter.shape, generator=generator)
        engine.adapter.zero_grad()
        loss().backward()
        assert parameter.grad is not None
        expected = float((parameter.grad * step).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(step, alpha=sign * 1e-3)
                ends.append(float(loss()))
                parameter.sub_(step, alpha=sign * 1e-3)
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(expected, rel=0.03, abs=0.02), name


def test_steps_on_one_batch_lower_its_loss() -> None:
    engine, episodes = word_engine(), episodes_of(4)
    optimiser = torch.optim.AdamW(engine.adapter.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = whole_loss(engine, episodes)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3


# The start from activations.


@pytest.fixture(scope="module")
def found() -> tuple[DeltaMemEngine, warmstart.Activations]:
    engine = word_engine(replace(CONFIGS["shipped recipe"], delta_heads=("q", "o")))
    shape = EpisodeShape(facts=2, distractors=(0, 1), word_share=0.7)
    return engine, warmstart.collect_activations(
        engine.model, engine.adapter, renderer(), episodes_of(70, shape), torch.Generator().manual_seed(0), silent
    )


def silent(_: str) -> None:
    pass


def fresh(engine: DeltaMemEngine) -> Adapter:
    torch.manual_seed(0)
    adapter = Adapter.for_model(engine.adapter.config, engine.model)
    initialise(adapter)
    return adapter


def stacked(adapter: Adapter, name: str) -> Tensor:
    return torch.stack([adapter.layer(slot).get_parameter(name).detach() for slot in range(len(adapter.indices))])


def test_activations_stand_where_values_are_told_and_asked(
    found: tuple[DeltaMemEngine, warmstart.Activations],
) -> None:
    engine, activations = found
    count = len(activations.token)
    shape = (count, len(engine.adapter.indices), engine.model.config.hidden_size)
    assert activations.value.shape == activations.before.shape == activations.query.shape == shape
    assert len(activations.other) > count
    # The first layer's input is the token's embedding alone, normed: equal tokens, equal inputs.
    layer = engine.model.model.layers[0]
    embedded = layer.input_layernorm(engine.model.model.embed_tokens(activations.token))
    assert_close(activations.value[:, 0], embedded, 1e-5)
    labels = activations.label.tolist()
    assert len(set(labels)) > 20
    assert len({label for label in labels if labels.count(label) > 1}) > 5


def test_fitted_values_tell_told_tokens_apart(found: tuple[DeltaMemEngine, warmstart.Activations]) -> None:
    engine, activations = found
    adapter, output = fresh(engine), engine.model.get_output_embeddings().weight
    rows, target = warmstart.output_rows(activations, output)

    def loss() -> float:
        read, say_again = stacked(adapter, "memory_v_proj"), stacked(adapter, "delta_o_proj")
        sharpness = torch.tensor(3.0)
        return float(warmstart.value_loss(activations.value, rows, target, read, say_again, sharpness))

    before = loss()
    warmstart.fit_values(adapter, activations, output, 60, 2.0, torch.Generator().manual_seed(0))
    assert loss() < before - 0.5


def test_fitted_keys_agree_where_the_same_is_meant(found: tuple[DeltaMemEngine, warmstart.Activations]) -> None:
    engine, activations = found
    adapter = fresh(engine)

    def loss() -> float:
        x, before = activations.value, activations.before
        keys = torch.einsum("nld,lrd->nlr", x, stacked(adapter, "memory_k_proj"))
        keys = keys + torch.einsum("nld,lrd->nlr", before, stacked(adapter, "memory_k_shift_proj"))
        queries = torch.einsum("nld,lrd->nlr", activations.query, stacked(adapter, "memory_q_proj"))
        return float(warmstart.key_loss(keys, queries, activations.label, 1))

    before = loss()
    warmstart.fit_keys(adapter, activations, 40, torch.Generator().manual_seed(0))
    assert loss() < before - 0.1


def test_a_fitted_gate_opens_for_values(found: tuple[DeltaMemEngine, warmstart.Activations]) -> None:
    engine, activations = found
    adapter = fresh(engine)

    def loss() -> float:
        weight, bias = stacked(adapter, "beta_proj")[:, 0], stacked(adapter, "beta_bias")[:, 0]
        return float(warmstart.gate_loss(activations.value, activations.other, weight, bias))

    before = loss()
    warmstart.fit_gate(adapter, activations, 80, torch.Generator().manual_seed(0))
    assert loss() < min(before, 2 * float(torch.tensor(2.0).log())) - 0.1


def test_keys_of_one_label_alone_are_no_division_by_zero() -> None:
    keys, label = torch.randn(5, 2, 8, requires_grad=True), torch.zeros(5)
    loss = warmstart.key_loss(keys, torch.randn(5, 2, 8), label, 2)
    loss.backward()
    assert bool(torch.isfinite(loss)) and keys.grad is not None and bool(torch.isfinite(keys.grad).all())


@pytest.mark.parametrize(
    "config",
    [replace(FULL, num_state_heads=2, rankwise_gates=False), replace(FULL, delta_heads=("q",), target_layers=(0,))],
    ids=["heads", "no o"],
)
def test_a_warm_start_fits_any_adapter_and_leaves_the_model_alone(config: AdapterConfig) -> None:
    engine = word_engine(config)
    before, weights = model_fingerprint(engine.model), {n: p.clone() for n, p in engine.adapter.named_parameters()}
    episodes = iter(episodes_of(10))
    warmstart.warm_start(
        engine.model,
        engine.adapter,
        renderer(),
        lambda: next(episodes),
        episodes=10,
        steps=2,
        gain=2.0,
        generator=torch.Generator().manual_seed(0),
        say=silent,
    )
    changed = {n.rsplit(".", 1)[-1] for n, p in engine.adapter.named_parameters() if not torch.equal(p, weights[n])}
    expected = {"memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias"}
    assert changed == expected | ({"delta_o_proj"} if "o" in config.delta_heads else set())
    assert model_fingerprint(engine.model) == before
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_a_value_with_other_tokens_in_the_reply_is_refused() -> None:
    engine = word_engine()
    question = Question("Where do I live?", "otter", "Your city is", Told(0, 0))
    episode = Episode((Message("user", "otter is where I live."), Message("assistant", "Noted.")), (question,))
    with pytest.raises(ConfigError, match="encodes a told value otherwise"):
        warmstart.collect_activations(
            engine.model, engine.adapter, renderer(), [episode], torch.Generator().manual_seed(0), silent
        )


def test_words_of_a_vocabulary_are_single_tokens_behind_a_space() -> None:
    tokenizer = word_tokenizer()
    words = open_words(tokenizer)
    assert {"otter", "Biscuit", "blue"} <= set(words)
    assert words == sorted(words)
    assert all(len(tokenizer.encode(f"is {word}", add_special_tokens=False)) == 2 for word in words)


# Recipes.

RECIPE = Recipe(
    model="tiny",
    adapter=AdapterConfig(rank=4, key_shift=True, state_update_mode="no_lambda"),
    stages=(
        Stage(steps=2, facts=(1,), questions=2, distractors=(0, 0), warmup=1),
        Stage(
            steps=5,
            facts=(1, 2),
            questions=3,
            distractors=(0, 1),
            changed=0.5,
            asked_before=0.5,
            question_writes=0.5,
            neutral_every=2,
            beta_weight=0.2,
            warmup=1,
        ),
    ),
    warm_start=WarmStart(episodes=8, steps=2, gain=2.0),
    seed=3,
    evaluate_every=3,
    save_every=2,
)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_a_recipe_that_ships_loads_by_name_and_names_its_model(path: Path) -> None:
    recipe = Recipe.load(path.stem)
    assert recipe == Recipe.load(path)
    assert recipe.steps > 0
    assert recipe.adapter.base_model == recipe.model


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, warm_start=None), Recipe.load("first-facts")])
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_recipe_without_a_warm_start_key_has_the_default_one() -> None:
    data = RECIPE.to_json()
    del data["warm_start"]
    assert Recipe.from_json(data).warm_start == WarmStart()
    assert Recipe.from_json({**data, "warm_start": {}}).warm_start == WarmStart()
    assert Recipe.from_json({**data, "warm_start": None}).warm_start is None


def altered(path: Sequence[str | int], value: object) -> dict[str, Any]:
    data: Any = json.loads(json.dumps(RECIPE.to_json()))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data  # type: ignore[no-any-return]


MISSING = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["learning_rate"], 1e-3, "recipe: unknown keys learning_rate; known are model, adapter"),
        (["stages", 1, "fact"], 1, "recipe, stage 2: unknown keys fact; known are steps, facts"),
        (["warm_start", "epochs"], 1, "recipe, warm_start: unknown keys epochs"),
        (["adapter", "ranks"], 1, "unknown keys ranks"),
        (["model"], MISSING, "recipe: model is missing"),
        (["stages"], MISSING, "recipe: stages is missing"),
        (["adapter"], MISSING, "recipe: adapter is missing"),
        (["stages", 0, "steps"], MISSING, "recipe, stage 1: steps is missing"),
        (["stages", 0, "steps"], 0, "stage 1: steps is 0, expected a whole number above 0"),
        (["stages", 0, "steps"], "10", "stage 1: steps is '10'"),
        (["stages", 0, "facts"], [], r"facts is \(\), expected a list of whole numbers above 0"),
        (["stages", 0, "facts"], [1, 0], "facts is"),
        (["stages", 0, "facts"], 3, "facts is 3"),
        (["stages", 0, "distractors"], [3, 1], r"distractors is \(3, 1\), expected \[fewest, most\]"),
        (["stages", 0, "distractors"], [1], "distractors is"),
        (["stages", 0, "changed"], 1.5, "changed is 1.5, expected from 0 to 1"),
        (["stages", 0, "rate"], None, "rate is None"),
        (["stages", 0], "first", "stage 1 is 'first', expected an object"),
        (["stages"], {}, "stages is {}, expected a list"),
        (["stages"], [], "expected at least one stage"),
        (["warm_start", "gain"], 0, "gain is 0, expected above 0"),
        (["save_every"], 0, "save_every is 0"),
        (["seed"], "x", "seed is 'x'"),
        (["adapter"], "tsw", "recipe, adapter is 'tsw', expected an object"),
        (["adapter", "memory_write_granularity"], "message_mean", "key_shift"),
    ],
)
def test_what_does_not_fit_in_a_recipe_is_refused_by_name(path: list[str | int], value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(altered(path, value))


def test_an_adapter_that_writes_whole_messages_cannot_be_trained() -> None:
    with pytest.raises(ConfigError, match="only 'token' can be trained"):
        replace(RECIPE, adapter=AdapterConfig(memory_write_granularity="message_mean"))


def test_a_recipe_that_is_not_there_names_those_that_ship() -> None:
    with pytest.raises(ConfigError, match="no recipe 'frist-facts'.*first-facts"):
        Recipe.load("frist-facts")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff"])
def test_a_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not valid JSON|expected an object"):
        Recipe.load(path)


def test_each_step_belongs_to_its_stage() -> None:
    first, second = RECIPE.stages
    assert [RECIPE.stage_at(step) for step in range(RECIPE.steps)] == [
        *((first, into) for into in range(2)),
        *((second, into) for into in range(5)),
    ]
    with pytest.raises(ConfigError, match="the recipe has 7 steps"):
        RECIPE.stage_at(7)


# Runs.


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EVALUATED_QUESTIONS", 3)


def trainer(folder: Path, recipe: Recipe = RECIPE, say: Callable[[str], None] = silent) -> Trainer:
    return Trainer(word_model(), renderer(), recipe, folder, say)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(load_adapter(folder, word_model().model).named_parameters())


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without the times that steps took."""
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EVALUATED_QUESTIONS", 3)
        trainer(folder).run()
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    found, expected = weights_of(folder), weights_of(other)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert log_of(folder) == log_of(other)
    ours, theirs = load_file(folder / OPTIMISER_FILE), load_file(other / OPTIMISER_FILE)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_log_has_each_step_and_evaluation_once(whole_run: Path) -> None:
    rows = log_of(whole_run)
    assert [row["step"] for row in rows if "loss" in row] == list(range(7))
    assert [row["step"] for row in rows if "held_out_values" in row] == [0, 3, 6, 7]
    assert [row["step"] for row in rows if row.get("neutral") is not None] == [2, 4, 6]
    assert set(rows[-1]["held_out_values"]) == {f"{n} facts, {kind}" for n in (1, 2) for kind in KINDS}
    assert all(0 < row["beta"] < 1 for row in rows if "loss" in row)


KINDS = ("whole answer", "first token")


def test_a_run_changes_the_adapter_and_nothing_of_the_model(tmp_path: Path) -> None:
    loaded = word_model()
    run = Trainer(loaded, renderer(), replace(RECIPE, stages=RECIPE.stages[:1], warm_start=None), tmp_path, silent)
    before = {name: value.detach().clone() for name, value in run.adapter.named_parameters()}
    run.run()
    assert run.step == 2
    assert any(not torch.equal(value, before[name]) for name, value in run.adapter.named_parameters())
    assert model_fingerprint(loaded.model) == loaded.model_fingerprint
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    attach(loaded.model, run.adapter).detach()


def interrupt_at(run: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run._train_step

    def interrupted(begun: float) -> training.Report:
        if run.step == step:
            raise KeyboardInterrupt
        return real(begun)

    monkeypatch.setattr(run, "_train_step", interrupted)


@pytest.mark.parametrize("stops", [(0,), (1,), (2, 3), (4, 5, 5)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    stops: tuple[int, ...], whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in stops:
        run = trainer(tmp_path)
        interrupt_at(run, step, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        attach(run._model, run.adapter).detach()
    resumed = trainer(tmp_path)
    # At least the steps up to the last save point, every second one, are not done again.
    assert resumed.step == stops[-1] - stops[-1] % 2
    resumed.run()
    assert_same_run(tmp_path, whole_run)


def test_a_run_interrupted_during_its_warm_start_begins_again(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(warmstart, "fit_keys", raising(KeyboardInterrupt))
        trainer(tmp_path).run()
    RunFolder(tmp_path, RECIPE).log({"step": 0, "seconds": 0.0, "held_out_values": {}})
    trainer(tmp_path).run()
    assert_same_run(tmp_path, whole_run)


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_warm_start_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    interrupt_at(run, 0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    monkeypatch.setattr(training, "warm_start", raising(AssertionError))
    trainer(tmp_path).run()


def test_a_finished_run_is_left_as_it_is(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = trainer(folder)
    assert run.step == RECIPE.steps
    run.run()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_log_line_cut_short_is_taken_back(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    with (folder / LOG_FILE).open("ab") as log:
        log.write(b'{"step": 7, "sec')
    trainer(folder).run()
    assert log_of(folder) == log_of(whole_run)


def test_another_recipe_in_the_same_folder_is_refused(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"another recipe; continue it with its own recipe\.json"):
        trainer(folder, replace(RECIPE, seed=4))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert trainer(folder, Recipe.load(folder / RECIPE_FILE)).step == RECIPE.steps


def test_a_recipe_file_written_otherwise_but_equal_is_the_same_recipe(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    data = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    del data["stages"][0]["beta_weight"]
    (folder / RECIPE_FILE).write_text(json.dumps(data), encoding="utf-8")
    assert trainer(folder).step == RECIPE.steps


def test_one_folder_is_trained_in_by_one_process_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path, RECIPE).claimed(), pytest.raises(ConfigError, match="another process is training"):
        trainer(tmp_path).run()
    with RunFolder(tmp_path, RECIPE).claimed():
        pass


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save()
    saved = (tmp_path / OPTIMISER_FILE).read_bytes()
    with torch.no_grad():
        next(run.adapter.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="step 0: the loss is nan"):
        run.run()
    assert (tmp_path / OPTIMISER_FILE).read_bytes() == saved
    assert log_of(tmp_path) == []
    attach(run._model, run.adapter).detach()


def test_a_damaged_save_point_is_refused_and_kept(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    path = folder / OPTIMISER_FILE
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"optimiser\.safetensors is damaged"):
        trainer(folder)
    assert path.read_bytes() == before


def test_a_save_point_of_the_earlier_form_goes_on(whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments alone, with the adapter and the step in files beside them."""
    run = trainer(tmp_path)
    interrupt_at(run, 4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    moments = {name: value for name, value in load_file(tmp_path / OPTIMISER_FILE).items() if "weight:" not in name}
    save_file(moments, tmp_path / OPTIMISER_FILE)
    assert json.loads((tmp_path / PROGRESS_FILE).read_text(encoding="utf-8"))["step"] == 4
    resumed = trainer(tmp_path)
    assert resumed.step == 4
    resumed.run()
    assert_same_run(tmp_path, whole_run)


# Killed while it saves.


class _Weights(nn.Module):
    """Stands for an adapter all of whose numbers say at which step it was saved."""


def saved_at(step: int, adapter: Adapter) -> Checkpoint:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(step)
    weights = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
    moments = {(kind, name): value.clone() for name, value in weights.items() for kind in ("exp_avg", "exp_avg_sq")}
    return Checkpoint(step, float(step), weights, moments)


def child(act: Callable[[], object]) -> int:
    """Exit code of a forked process that does `act`, negative for a signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    signal.alarm(60)
    try:
        torch.set_num_threads(1)
        act()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def killed_at(calls: int, act: Callable[[], object]) -> bool:
    """Does `act` in a child process that is killed at its `calls`-th system call of a save; False if it has fewer."""

    def run() -> None:
        left = calls

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in ("fsync", "replace", "rename"):
            setattr(os, name, counted(getattr(os, name)))
        act()

    code = child(run)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_at_any_moment_of_a_save_the_run_goes_on_from_one_whole_save_point(tmp_path: Path) -> None:
    loaded = word_model()
    adapter = Adapter.for_model(RECIPE.adapter, loaded.model)
    folder = RunFolder(tmp_path, RECIPE)
    folder.save(saved_at(1, adapter), adapter)
    step, moments = 1, 0
    while killed_at(moments + 1, partial(save_next, folder, step + 1, adapter)):
        moments += 1
        found = RunFolder(tmp_path, RECIPE).checkpoint()
        assert found is not None
        assert found.step in (step, step + 1)
        step = found.step
        assert all(bool((value == step).all()) for value in (*found.weights.values(), *found.moments.values()))
        usable = load_adapter(tmp_path, loaded.model)
        (filled,) = {float(value) for parameter in usable.parameters() for value in parameter.unique()}
        assert filled in (step - 1, step, step + 1)
    assert moments >= 6
    with RunFolder(tmp_path, RECIPE).claimed():
        assert not list(tmp_path.glob("*.tmp"))


def save_next(folder: RunFolder, step: int, adapter: Adapter) -> None:
    folder.save(saved_at(step, adapter), adapter)


def test_the_report_of_a_step_is_its_line_in_the_log() -> None:
    report = training.Report(1, 2.0, 3, 0.5, 0.25, 1.0, 0.5, 0.1)
    assert list(asdict(report)) == [
        "step", "seconds", "facts", "loss", "answer_nats", "first", "whole", "beta", "neutral",
    ]  # fmt: skip
