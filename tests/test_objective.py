"""Laws of the training loss: it equals what the engine computes, and its gradient reaches only the adapter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from statistics import mean

import pytest
import torch
from torch import Tensor

from deltamem_agents.chat.speaking import lead_length, replies
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.training.batches import (
    END_WEIGHT,
    FIRST_WEIGHT,
    PREFIX_WEIGHT,
    Exchange,
    QuestionBatch,
    history_batch,
    neutral_batch,
    question_batch,
)
from deltamem_agents.lab.training.objective import (
    answer_questions,
    disturbance,
    judge,
    logits_at,
    openness,
    output_directions,
    output_layer,
    run_after_lead,
    write_history,
)
from deltamem_agents.memory.attach import CALL_KEYWORD, attach
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message
from tiny_models import FAMILIES, random_adapter, random_ids, random_state, tiny_model
from tiny_training import (
    CHATML,
    CONFIGS,
    GATED,
    TEMPLATES,
    asides_of,
    each_template,
    episodes_of,
    histories_of,
    renderer,
    word_engine,
)

# An adapter's computation does not depend on the template, so each config is tested with one of them.
each_pair = pytest.mark.parametrize(
    ("config", "template"),
    [*zip(CONFIGS.values(), cycle(TEMPLATES.values()), strict=False)],
    ids=CONFIGS,
)
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def states_of(engine: DeltaMemEngine, episodes: Sequence[Episode], template: str = CHATML) -> MemoryState:
    return write_history(engine.model, engine.adapter, history_batch(renderer(template), histories_of(episodes)))


@pytest.mark.slow
@each_pair
def test_a_written_history_equals_an_absorbed_conversation(config: AdapterConfig, template: str) -> None:
    engine, episodes = word_engine(config, template), episodes_of(4)
    state = states_of(engine, episodes, template)
    for row, episode in enumerate(episodes):
        absorbed = engine.absorb(engine.new_state(), episode.messages)
        assert absorbed.norm() > 0.1
        assert_close(state[row].matrices, absorbed.matrices)


@each_template
def test_asides_are_absorbed_after_the_history(template: str) -> None:
    engine, episodes, asides = word_engine(template=template), episodes_of(3), asides_of(3)
    state = write_history(
        engine.model, engine.adapter, history_batch(renderer(template), histories_of(episodes), asides)
    )
    for row, (episode, aside) in enumerate(zip(episodes, asides, strict=True)):
        assert_close(state[row].matrices, engine.absorb(engine.new_state(), (*episode.messages, *aside)).matrices)


@pytest.mark.parametrize(("gate", "open_by"), [(0.1, 0.0), (0.2, 0.075), (0.6, 0.475)])
def test_a_gate_counts_as_open_above_half_its_floor(gate: float, open_by: float) -> None:
    """So that gates just below the floor are pushed down as well."""
    logits = torch.full((2, 5, 3), gate).logit().requires_grad_(True)
    found = openness(logits, floor=0.25)
    assert float(found.detach()) == pytest.approx(open_by, abs=1e-6)
    found.backward()
    assert logits.grad is not None and bool((logits.grad > 0).all()) == (open_by > 0)


@pytest.mark.slow
@each_pair
def test_answer_log_probabilities_equal_the_engines_scores(config: AdapterConfig, template: str) -> None:
    engine, episodes = word_engine(config, template), episodes_of(3)
    state, questions = states_of(engine, episodes, template), question_batch(renderer(template), episodes)
    logits = answer_questions(engine.model, state, questions, writes=False)
    outcome = judge(logits, questions)
    logprobs = logits.log_softmax(-1).gather(1, questions.targets[:, None])[:, 0]
    asked = [(row, question) for row, episode in enumerate(episodes) for question in episode.questions]
    for index, (row, question) in enumerate(asked):
        own = questions.is_answer & (questions.places[:, 0] == index)
        messages = [Message("user", question.question), Message("assistant", question.prefix)]
        score = engine.score(state[row], messages, question.answer)
        assert score.tokens == int(own.sum())
        assert score.logprob == pytest.approx(float(logprobs[own].sum().detach()), abs=1e-3)
        assert score.greedy == bool(outcome.all_right[index])


@each_pair
def test_a_written_question_is_written_as_in_a_turn(config: AdapterConfig, template: str) -> None:
    """Contents are written as they are read; the template's tokens are not."""
    engine, episodes = word_engine(config, template), episodes_of(2)
    state, questions = states_of(engine, episodes, template), question_batch(renderer(template), episodes)
    logits = answer_questions(engine.model, state, questions, writes=True)
    asked = [(row, question) for row, episode in enumerate(episodes) for question in episode.questions]
    for index, (row, question) in enumerate(asked):
        exchange = [Message("user", question.question), Message("assistant", question.reply)]
        rendered = renderer(template).render(exchange, generation_prompt=False)
        last = max(place for place, owner in enumerate(rendered.owner) if owner == 1)
        reads = tuple(place >= lead_length(rendered.owner, exchange) for place in range(last + 1))
        writes = tuple(owner >= 0 for owner in rendered.owner[: last + 1])
        speaks = replies(rendered.owner, exchange, prompted=False)
        prompt = Prompt(rendered.ids[: last + 1], reads, writes, rendered.owner[: last + 1], speaks[: last + 1])
        own = questions.places[:, 0] == index
        assert_close(logits[own][-1], Pass(engine.model, state[row]).feed(prompt))
    assert not torch.equal(logits, answer_questions(engine.model, state, questions, writes=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_after_a_shared_lead_equal_the_models(family: str) -> None:
    model = tiny_model(family, "eager")
    adapter = random_adapter(model)
    attach(model, adapter)
    ids, state = random_ids(3, 9), random_state(adapter, 3)
    ids[:, :4] = ids[0, :4]
    lead, tokens = ids[0, :4], ids[:, 4:]
    valid = torch.ones_like(tokens, dtype=torch.bool)
    places = torch.tensor([(row, place) for row in range(3) for place in range(5)])
    found = logits_at(model, run_after_lead(model, lead, tokens, valid, MemoryCall(state, valid)), places)
    reads = torch.cat([torch.zeros(3, 4, dtype=torch.bool), valid], dim=1)
    expected = model(input_ids=ids, **{CALL_KEYWORD: MemoryCall(state, reads)}).logits
    assert_close(found, expected[:, 4:].flatten(0, 1))
    frozen = logits_at(model, run_after_lead(model, lead, tokens, valid, None), places)
    assert_close(frozen, model(input_ids=ids).logits[:, 4:].flatten(0, 1))


@pytest.mark.slow
@each_config
def test_a_batch_equals_its_rows_one_by_one(config: AdapterConfig) -> None:
    engine, episodes = word_engine(config), episodes_of(3)
    model, adapter = engine.model, engine.adapter
    state, questions = states_of(engine, episodes), question_batch(renderer(), episodes)
    assert len(history_batch(renderer(), histories_of(episodes)).of_like_length()) > 1
    logits = answer_questions(model, state, questions, writes=True)
    alone = []
    for row, episode in enumerate(episodes):
        own = write_history(model, adapter, history_batch(renderer(), [episode.messages]))
        assert_close(state[row].matrices, own.matrices, 1e-5)
        alone += [
            answer_questions(model, own, question_batch(renderer(), [replace(episode, questions=(q,))]), writes=True)
            for q in episode.questions
        ]
    assert_close(logits, torch.cat(alone), 1e-4)


def test_padding_has_no_effect() -> None:
    engine, episodes = word_engine(), episodes_of(3)
    histories = history_batch(renderer(), histories_of(episodes), asides_of(3))
    questions = question_batch(renderer(), episodes)
    for valid, writable in ((histories.valid, histories.writable), (questions.valid, questions.writable)):
        assert not valid.all()
        assert not (writable & ~valid).any()
    state = write_history(engine.model, engine.adapter, histories)
    noisy_histories = replace(histories, tokens=torch.where(histories.valid, histories.tokens, 7))
    assert torch.equal(state.matrices, write_history(engine.model, engine.adapter, noisy_histories).matrices)
    logits = answer_questions(engine.model, state, questions, writes=True)
    noisy = replace(questions, tokens=torch.where(questions.valid, questions.tokens, 7))
    assert torch.equal(logits, answer_questions(engine.model, state, noisy, writes=True))


def test_the_loss_weights_answers_and_the_rest_of_the_reply() -> None:
    """Two questions with three and four targets, whose log-likelihoods are given."""
    nats = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0, 0.125, 0.0625])
    targets = torch.tensor([1, 2, 3, 1, 2, 3, 4])
    rest = torch.log((1 - torch.exp(-nats)) / 4)
    logits = rest[:, None].repeat(1, 5).scatter(1, targets[:, None], -nats[:, None])
    is_answer = torch.tensor([False, True, True, False, True, False, False])
    questions = QuestionBatch(
        lead=torch.tensor([0]),
        tokens=torch.zeros(2, 4, dtype=torch.long),
        valid=torch.ones(2, 4, dtype=torch.bool),
        replies=torch.ones(2, 4, dtype=torch.bool),
        writable=torch.ones(2, 4, dtype=torch.bool),
        row=torch.tensor([0, 1]),
        places=torch.tensor([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]),
        targets=targets,
        is_answer=is_answer,
        is_first=torch.tensor([False, True, False, False, True, False, False]),
    )
    outcome = judge(logits, questions)
    weights = torch.tensor([FIRST_WEIGHT, 1.0, 1.0, FIRST_WEIGHT, 1.0, END_WEIGHT, PREFIX_WEIGHT])
    assert float(outcome.loss) == pytest.approx(float((weights * nats).sum() / weights.sum()), rel=1e-5)
    assert outcome.answer_nats == pytest.approx(2.0, rel=1e-5)
    assert float(outcome.begun) == pytest.approx(float(nats[[0, 3]].mean()), rel=1e-5)
    # exp(−1) = 0.37 beats (1 − 0.37) / 4, exp(−2) = 0.14 does not, nor does exp(−3).
    assert outcome.first_right.tolist() == [True, False]
    assert outcome.all_right.tolist() == [False, False]
    sure = logits + 20 * torch.nn.functional.one_hot(targets, 5)
    assert judge(sure, questions).all_right.tolist() == [True, True]
    # The rest of the reply does not decide whether the answer is right.
    only_answers = torch.where(is_answer[:, None], sure, -sure)
    assert judge(only_answers, questions).all_right.tolist() == [True, True]


def neutral_exchanges(count: int) -> list[Exchange]:
    """Small talk, with every second reply unfinished."""
    rng = random.Random(0)
    pairs = [small_talk(rng) for _ in range(count)]
    return [
        Exchange((Message("user", user), Message("assistant", reply)), cut=index % 2 == 1)
        for index, (user, reply) in enumerate(pairs)
    ]


def test_a_zero_state_disturbs_nothing_if_write_gates_are_shut() -> None:
    engine = word_engine(GATED)
    neutral, zero = neutral_batch(renderer(), neutral_exchanges(4), range(4)), engine.adapter.zero_state(4)
    # What the exchange itself writes is read as well.
    assert float(disturbance(engine.model, zero, neutral).detach()) > 1e-4
    state = states_of(engine, episodes_of(4))
    shut_gates(engine, "beta")
    assert float(disturbance(engine.model, zero, neutral).detach()) == 0
    assert float(disturbance(engine.model, state, neutral).detach()) > 1e-3
    shut_gates(engine, "read")
    assert float(disturbance(engine.model, state, neutral).detach()) == 0


def shut_gates(engine: DeltaMemEngine, gate: str) -> None:
    with torch.no_grad():
        for slot in range(len(engine.adapter.indices)):
            engine.adapter.layer(slot).get_parameter(f"{gate}_proj").zero_()
            engine.adapter.layer(slot).get_parameter(f"{gate}_bias").fill_(-3.0)


@pytest.mark.slow
@each_template
def test_disturbance_is_the_divergence_from_the_frozen_model_over_the_reply(template: str) -> None:
    engine, exchanges, histories = word_engine(template=template), neutral_exchanges(2), [1, 0]
    state = states_of(engine, episodes_of(2), template)
    begins, others = list[float](), list[float]()
    for row, exchange in zip(histories, exchanges, strict=True):
        rendered = renderer(template).render(exchange.messages, generation_prompt=False, continue_final=exchange.cut)
        lead = lead_length(rendered.owner, exchange.messages)
        reply = [i for i, owner in enumerate(rendered.owner) if owner == 1]
        # At the positions that predict the reply's tokens and the token after them.
        for end in (*reply, reply[-1] + 1):
            reads = tuple(place >= lead for place in range(end))
            written = tuple(owner >= 0 for owner in rendered.owner[:end])
            speaks = replies(rendered.owner, exchange.messages, prompted=True)
            prompt = Prompt(rendered.ids[:end], reads, written, rendered.owner[:end], speaks[:end])
            frozen, steered = (Pass(engine.model, memory).feed(prompt).softmax(-1) for memory in (None, state[row]))
            (begins if end == reply[0] else others).append(float((frozen * (frozen / steered).log()).sum()))
    found = disturbance(engine.model, state, neutral_batch(renderer(template), exchanges, histories))
    assert float(found.detach()) == pytest.approx((mean(begins) + mean(others)) / 2, rel=1e-3)


def test_zero_corrections_disturb_nothing() -> None:
    engine = word_engine()
    neutral, state = neutral_batch(renderer(), neutral_exchanges(4), range(4)), states_of(engine, episodes_of(4))
    with torch.no_grad():
        for name, parameter in engine.adapter.named_parameters():
            if ".delta_" in name:
                parameter.zero_()
    assert float(disturbance(engine.model, state, neutral).detach()) == pytest.approx(0.0, abs=1e-6)


# Families with LayerNorm or a nested decoder use plain output rows and are not tested here.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gpt2", "gpt_neox", "gemma3")])
def test_an_output_direction_is_the_gradient_of_its_tokens_logit(family: str) -> None:
    model = tiny_model(family, "eager")
    directions = output_directions(model)
    generator = torch.Generator().manual_seed(0)
    for token in (1, 7):
        hidden = torch.randn(32, generator=generator).requires_grad_()
        output_layer(model)(model.base_model.norm(hidden[None]))[0, token].backward()
        assert hidden.grad is not None
        # The norm's gradient has no component along the hidden state itself.
        along = hidden.detach() / hidden.detach().norm()
        expected = directions[token] - (directions[token] @ along) * along
        assert float(torch.cosine_similarity(hidden.grad, expected, dim=0)) == pytest.approx(1.0, abs=1e-4)
