"""Laws of the training loss: it computes what the engine computes, and its gradient moves the adapter alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import pytest
import torch
from torch import Tensor

from deltamem_agents.chat.speaking import lead_length, replies
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference.decode import Pass, Prompt
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
from deltamem_agents.lab.training.chatter import chatter
from deltamem_agents.lab.training.episodes import Episode, Question
from deltamem_agents.lab.training.objective import (
    answer_questions,
    disturbance,
    judge,
    logits_at,
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
    UNGATED,
    asides_of,
    each_template,
    episodes_of,
    histories_of,
    renderer,
    word_engine,
)

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
CHARMS = ("otter", "heron")


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def states_of(engine: DeltaMemEngine, episodes: Sequence[Episode], template: str = CHATML) -> MemoryState:
    return write_history(engine.model, engine.adapter, history_batch(renderer(template), histories_of(episodes)))[0]


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
def test_asides_are_absorbed_after_what_is_told(template: str) -> None:
    engine, episodes, asides = word_engine(template=template), episodes_of(3), asides_of(3)
    state, _ = write_history(
        engine.model, engine.adapter, history_batch(renderer(template), histories_of(episodes), asides)
    )
    for row, (episode, aside) in enumerate(zip(episodes, asides, strict=True)):
        assert_close(state[row].matrices, engine.absorb(engine.new_state(), (*episode.messages, *aside)).matrices)


@each_config
def test_noise_without_a_floor_is_the_mean_gate_of_the_asides(config: AdapterConfig) -> None:
    engine = word_engine(replace(config, gate_floor=0.0))
    history = history_batch(renderer(), histories_of(episodes_of(1)), asides_of(1))
    _, noise = write_history(engine.model, engine.adapter, history)
    zero = engine.adapter.zero_state()
    call = MemoryCall(zero, history.valid, history.writable, replies=history.replies, collect=True)
    with torch.no_grad():
        run_after_lead(engine.model, history.lead, history.tokens, history.valid, call)
    gates = torch.stack([beta[history.aside[history.writable]] for beta in call.betas])
    assert float(noise.detach()) == pytest.approx(float(gates.mean()), abs=1e-5)


@pytest.mark.parametrize(("gate", "noise"), [(0.1, 0.0), (0.2, 0.075), (0.6, 0.475)])
def test_noise_counts_gates_from_half_their_floor_on(gate: float, noise: float) -> None:
    """So that those that stand just below the floor are pressed down as well."""
    engine = word_engine(GATED)
    with torch.no_grad():
        for slot in range(len(engine.adapter.indices)):
            engine.adapter.layer(slot).beta_proj.zero_()
            engine.adapter.layer(slot).beta_bias.fill_(torch.tensor(gate).logit())
    histories = histories_of(episodes_of(3))
    _, found = write_history(engine.model, engine.adapter, history_batch(renderer(), histories, asides_of(3)))
    assert float(found.detach()) == pytest.approx(noise, abs=1e-6)
    found.backward()
    slope = engine.adapter.layer(0).beta_bias.grad
    assert slope is not None and bool((slope > 0).all()) == (noise > 0)


def test_without_asides_there_is_no_noise() -> None:
    engine = word_engine(GATED)
    _, noise = write_history(engine.model, engine.adapter, history_batch(renderer(), histories_of(episodes_of(2))))
    assert float(noise) == 0


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
        assert score.logprob == pytest.approx(float(logprobs[own].sum().detach()), abs=1e-3)
        assert score.greedy == bool(outcome.all_right[index])


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
        reads = tuple(place >= lead_length(rendered.owner, exchange) for place in range(last + 1))
        writes = tuple(owner >= 0 for owner in rendered.owner[: last + 1])
        speaks = replies(rendered.owner, exchange, prompted=False)
        prompt = Prompt(rendered.ids[: last + 1], reads, writes, rendered.owner[: last + 1], speaks[: last + 1])
        own = questions.places[:, 0] == index
        assert_close(logits[own][-1], Pass(engine.model, state[row]).feed(prompt))
    assert not torch.equal(logits, answer_questions(engine.model, state, questions, writes=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_after_a_shared_lead_are_the_models_own(family: str) -> None:
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


@each_config
def test_a_batch_is_its_rows_one_by_one(config: AdapterConfig) -> None:
    engine, episodes = word_engine(config), episodes_of(5)
    model, adapter = engine.model, engine.adapter
    state, questions = states_of(engine, episodes), question_batch(renderer(), episodes)
    assert len(history_batch(renderer(), histories_of(episodes)).of_like_length()) > 1
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
    histories = history_batch(renderer(), histories_of(episodes), asides_of(3))
    questions = question_batch(renderer(), episodes)
    for valid, writable in ((histories.valid, histories.writable), (questions.valid, questions.writable)):
        assert not valid.all()
        assert not (writable & ~valid).any()
    state, noise = write_history(engine.model, engine.adapter, histories)
    noisy_histories = replace(histories, tokens=torch.where(histories.valid, histories.tokens, 7))
    noisy_state, noisy_noise = write_history(engine.model, engine.adapter, noisy_histories)
    assert torch.equal(state.matrices, noisy_state.matrices)
    assert torch.equal(noise, noisy_noise) and float(noise.detach()) > 0
    logits = answer_questions(engine.model, state, questions, writes=True)
    noisy = replace(questions, tokens=torch.where(questions.valid, questions.tokens, 7))
    assert torch.equal(logits, answer_questions(engine.model, state, noisy, writes=True))


def test_the_loss_weighs_answers_against_the_rest_of_the_reply() -> None:
    """Two questions of three and four targets; the likeliest token is named, all others share the rest."""
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
    outcome = judge(logits, questions, torch.tensor(0.25))
    weights = torch.tensor([FIRST_WEIGHT, 1.0, 1.0, FIRST_WEIGHT, 1.0, END_WEIGHT, PREFIX_WEIGHT])
    assert float(outcome.loss) == pytest.approx(float((weights * nats).sum() / weights.sum()), rel=1e-5)
    assert outcome.answer_nats == pytest.approx(2.0, rel=1e-5)
    assert float(outcome.begun) == pytest.approx(float(nats[[0, 3]].mean()), rel=1e-5)
    # exp(−1) = 0.37 beats (1 − 0.37) / 4, exp(−2) = 0.14 does not, nor does exp(−3).
    assert outcome.first_right.tolist() == [True, False]
    assert outcome.all_right.tolist() == [False, False]
    assert float(outcome.noise) == 0.25
    sure = logits + 20 * torch.nn.functional.one_hot(targets, 5)
    assert judge(sure, questions, torch.tensor(0.0)).all_right.tolist() == [True, True]
    # The rest of the reply does not decide whether the answer is right.
    only_answers = torch.where(is_answer[:, None], sure, -sure)
    assert judge(only_answers, questions, torch.tensor(0.0)).all_right.tolist() == [True, True]


def neutral_exchanges(count: int) -> list[Exchange]:
    """Small talk, every second reply only begun."""
    rng = random.Random(0)
    pairs = [chatter(rng) for _ in range(count)]
    return [
        Exchange((Message("user", user), Message("assistant", reply)), cut=index % 2 == 1)
        for index, (user, reply) in enumerate(pairs)
    ]


def test_a_zero_state_disturbs_nothing_while_write_gates_are_shut_and_any_other_does() -> None:
    engine = word_engine(GATED)
    neutral, zero = neutral_batch(renderer(), neutral_exchanges(4), range(4)), engine.adapter.zero_state(4)
    # What is written while the exchange is read is read as well.
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


@each_template
def test_disturbance_is_the_divergence_from_the_frozen_model_wherever_it_speaks(template: str) -> None:
    engine, exchanges, histories = word_engine(template=template), neutral_exchanges(3), [1, 0, 1]
    state = states_of(engine, episodes_of(2), template)
    begins, others = list[float](), list[float]()
    for row, exchange in zip(histories, exchanges, strict=True):
        rendered = renderer(template).render(exchange.messages, generation_prompt=False, continue_final=exchange.cut)
        lead = lead_length(rendered.owner, exchange.messages)
        reply = [i for i, owner in enumerate(rendered.owner) if owner == 1]
        # Before each of the reply's tokens, and before what comes after the last one.
        for end in (*reply, reply[-1] + 1):
            reads = tuple(place >= lead for place in range(end))
            written = tuple(owner >= 0 for owner in rendered.owner[:end])
            speaks = replies(rendered.owner, exchange.messages, prompted=True)
            prompt = Prompt(rendered.ids[:end], reads, written, rendered.owner[:end], speaks[:end])
            frozen, steered = (Pass(engine.model, memory).feed(prompt).softmax(-1) for memory in (None, state[row]))
            (begins if end == reply[0] else others).append(float((frozen * (frozen / steered).log()).sum()))
    found = disturbance(engine.model, state, neutral_batch(renderer(template), exchanges, histories))
    assert float(found.detach()) == pytest.approx((mean(begins) + mean(others)) / 2, rel=1e-3)


def test_corrections_of_zero_disturb_nothing() -> None:
    engine = word_engine()
    neutral, state = neutral_batch(renderer(), neutral_exchanges(4), range(4)), states_of(engine, episodes_of(4))
    with torch.no_grad():
        for name, parameter in engine.adapter.named_parameters():
            if ".delta_" in name:
                parameter.zero_()
    assert float(disturbance(engine.model, state, neutral).detach()) == pytest.approx(0.0, abs=1e-6)


# LayerNorm families, and a decoder inside a decoder, are given their plain output rows.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gpt2", "gpt_neox", "gemma3")])
def test_an_output_direction_is_the_way_in_which_its_token_becomes_likelier(family: str) -> None:
    model = tiny_model(family, "eager")
    directions = output_directions(model)
    generator = torch.Generator().manual_seed(0)
    for token in (1, 7):
        hidden = torch.randn(32, generator=generator).requires_grad_()
        output_layer(model)(model.base_model.norm(hidden[None]))[0, token].backward()
        assert hidden.grad is not None
        # A norm takes away whatever points along the hidden state itself.
        along = hidden.detach() / hidden.detach().norm()
        expected = directions[token] - (directions[token] @ along) * along
        assert float(torch.cosine_similarity(hidden.grad, expected, dim=0)) == pytest.approx(1.0, abs=1e-4)


def whole_loss(engine: DeltaMemEngine, episodes: Sequence[Episode], *, writes: bool = True) -> Tensor:
    count = len(episodes)
    histories = history_batch(renderer(), histories_of(episodes), asides_of(count))
    questions = question_batch(renderer(), episodes)
    state, noise = write_history(engine.model, engine.adapter, histories)
    outcome = judge(answer_questions(engine.model, state, questions, writes=writes), questions, noise)
    neutral = neutral_batch(renderer(), neutral_exchanges(count), range(count))
    return outcome.loss + 0.2 * outcome.noise + disturbance(engine.model, state, neutral)


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
    engine, episodes = word_engine(replace(UNGATED, target_layers=(1,))), episodes_of(2)
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


def test_what_is_learned_is_what_the_engine_says() -> None:
    """Two conversations with different answers to one question, told apart by their states alone."""
    engine = word_engine(GATED)
    told = {word: (Message("user", f"My lucky charm is {word}."), Message("assistant", "Noted.")) for word in CHARMS}
    question = Question("What is my lucky charm?", "", "Your lucky charm is")
    episodes = [Episode(messages, (replace(question, answer=word),)) for word, messages in told.items()]
    histories, questions = history_batch(renderer(), histories_of(episodes)), question_batch(renderer(), episodes)
    optimiser = torch.optim.AdamW(engine.adapter.parameters(), lr=2e-2)
    losses, right = [], False
    while not right and len(losses) < 200:
        state, noise = write_history(engine.model, engine.adapter, histories)
        outcome = judge(answer_questions(engine.model, state, questions, writes=False), questions, noise)
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        losses.append(float(outcome.loss.detach()))
        right = outcome.answer_nats < 0.3
    assert right and losses[-1] < losses[0] - 2
    states = [engine.absorb(engine.new_state(), messages) for messages in told.values()]
    asked = [Message("user", question.question), Message("assistant", question.prefix)]
    for state, word in zip(states, told, strict=True):
        score = engine.score(state, asked, word)
        assert score.greedy and score.logprob > -0.7
    assert engine.greedy_replies(states, [asked, asked], max_tokens=1) == [f" {word}" for word in told]
