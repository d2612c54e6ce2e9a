"""Laws of replay: a conversation composed of cached activations answers like the real one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deltamem_agents.lab.corpus.episodes import Episode, EpisodeShape, Question, Told
from deltamem_agents.lab.training.batches import history_batch, question_batch
from deltamem_agents.lab.training.composing import Conversation, WriteWeights, compose_conversation, write_composed
from deltamem_agents.lab.training.objective import answer_questions, judge, run_after_lead, write_history
from deltamem_agents.lab.training.replay import replay
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.types import Message
from test_rehearsal import in_float32
from tiny_training import CONFIGS, REPLIES, activations_of, each_template, episodes_of, renderer, word_engine

ALONE = EpisodeShape(distractors=(0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("erase_gate", [False, True], ids=["plain", "erase gate"])
@pytest.mark.parametrize("writes", [False, True], ids=["asked", "asked and written"])
@each_template
def test_a_replayed_exchange_is_answered_as_one_that_ran_through_the_model(
    template: str, writes: bool, erase_gate: bool
) -> None:
    engine, episodes = word_engine(replace(REPLIES, erase_gate=erase_gate), template), episodes_of(9, ALONE)
    model, adapter = engine.model, engine.adapter
    found = in_float32(activations_of(engine, episodes, template=template))
    questions = question_batch(renderer(template), episodes)
    # In use, replies in the history read the memory too, which a replay ignores. Here they do not read.
    history = history_batch(renderer(template), [episode.messages for episode in episodes])
    state = write_history(model, adapter, replace(history, replies=torch.zeros_like(history.replies)))
    expected = judge(answer_questions(model, state, questions, writes=writes), questions)
    conversations = [Conversation((index,), (("tellings", index),)) for index in range(9)]
    replayed, outcome = replay(model, adapter, found, questions.lead, conversations, writes=writes)
    # Activations are kept in half precision.
    assert float(((replayed.matrices - state.matrices).norm() / state.matrices.norm()).detach()) < 0.02
    torch.testing.assert_close(outcome.loss, expected.loss, rtol=1e-2, atol=1e-3)
    assert outcome.answer_nats == pytest.approx(expected.answer_nats, rel=1e-2)
    assert torch.equal(outcome.all_right, expected.all_right)
    # Replies to told facts count as filler.
    assert float(outcome.noise.detach()) > 0


@each_template
def test_a_cached_question_is_written_as_one_that_is_read(template: str) -> None:
    """Including its first token, whose key also sees the token before it."""
    engine, episodes = word_engine(REPLIES, template), episodes_of(9, ALONE)
    found = in_float32(activations_of(engine, episodes, template=template))
    questions = question_batch(renderer(template), episodes)
    before = engine.adapter.zero_state(9)
    call = MemoryCall(before, questions.valid, questions.writable & ~questions.replies, replies=questions.replies)
    run_after_lead(engine.model, questions.lead, questions.tokens, questions.valid, call)
    alone = [Conversation((), (("questions", index),)) for index in range(9)]
    kept = write_composed(REPLIES, WriteWeights.of(engine.adapter), found, alone).state.transpose(0, 1)
    read = call.new_state().matrices
    assert float(((kept - read).norm() / read.norm()).detach()) < 0.01


@each_template
def test_questions_are_answered_from_their_own_conversations_state(template: str) -> None:
    """For any other conversations in the batch, of any length."""
    engine = word_engine(REPLIES, template)
    found = activations_of(engine, episodes_of(20, ALONE), template=template)
    lead = question_batch(renderer(template), episodes_of(1)).lead
    rng = random.Random(0)
    conversations = [compose_conversation(found, facts, 1, 1, rng) for facts in (3, 1, 4)]
    state, together = replay(engine.model, engine.adapter, found, lead, conversations)
    assert state.batch == 3 and len(together.first_right) == sum(len(one.tellings) for one in conversations)
    alone = [replay(engine.model, engine.adapter, found, lead, [one]) for one in conversations]
    torch.testing.assert_close(state.matrices, torch.cat([own.matrices for own, _ in alone]))
    tokens = [sum(int(found.prompts[t].is_answer.sum()) for t in one.tellings) for one in conversations]
    mean = sum(n * own.answer_nats for n, (_, own) in zip(tokens, alone, strict=True)) / sum(tokens)
    assert together.answer_nats == pytest.approx(mean, rel=1e-3)


@each_template
def test_untold_loss_covers_the_reply_up_to_where_an_answer_would_begin(template: str) -> None:
    engine = word_engine(REPLIES, template)
    model, adapter = engine.model, engine.adapter
    episodes = episodes_of(20, ALONE)
    found = in_float32(activations_of(engine, episodes, template=template))
    questions = question_batch(renderer(template), episodes[7:8])
    conversation = Conversation((3,), (("tellings", 3),))
    _, outcome = replay(model, adapter, found, questions.lead, [conversation], untold=[(0, 7)])
    state, _ = replay(model, adapter, found, questions.lead, [conversation])
    frozen, steered = (answer_questions(model, one, questions, writes=False) for one in (adapter.zero_state(), state))
    first = int(questions.is_first.nonzero())
    nats = [
        float((one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum().detach())
        for one, other in zip(frozen[: first + 1], steered[: first + 1], strict=True)
    ]
    assert len(nats) > 1 and nats[0] > 0
    expected = (nats[0] + sum(nats[1:]) / len(nats[1:])) / 2
    assert float(outcome.untold.detach()) == pytest.approx(expected, rel=0.05)


def test_untold_loss_is_zero_for_a_memory_without_output() -> None:
    engine = word_engine(replace(REPLIES, alpha=0.0))
    found = activations_of(engine, episodes_of(20, ALONE))
    lead = question_batch(renderer(), episodes_of(1)).lead
    told = [Conversation((3,), (("tellings", 3),))]
    _, outcome = replay(engine.model, engine.adapter, found, lead, told, writes=True, untold=[(0, 7)])
    assert float(outcome.untold.detach()) == pytest.approx(0, abs=1e-6)


def test_a_conversation_without_filler_has_no_noise() -> None:
    engine = word_engine(REPLIES)
    found = activations_of(engine, episodes_of(9, ALONE))
    lead = question_batch(renderer(), episodes_of(1)).lead
    for kind, quiet in (("statements", True), ("tellings", False)):
        told = [Conversation((3,), ((kind, 3),))]  # type: ignore[arg-type]
        _, outcome = replay(engine.model, engine.adapter, found, lead, told)
        assert (float(outcome.noise.detach()) == 0) == quiet


LEARNED = ("replies alone read", "readout", "gates that see more", "layers that vote on gates")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "writes"), list(zip(LEARNED, (False, True, False, True), strict=True)))
def test_the_gradient_reaches_all_adapter_weights_and_no_model_weight(name: str, writes: bool) -> None:
    engine = word_engine(replace(CONFIGS[name], gate_floor=0.0))
    found = activations_of(engine, episodes_of(20, ALONE), 6)
    lead = question_batch(renderer(), episodes_of(1)).lead
    told = [Conversation((3, 5), (("tellings", 3), ("asides", 0), ("statements", 5)))]
    _, outcome = replay(engine.model, engine.adapter, found, lead, told, writes=writes, untold=[(0, 7)])
    (outcome.loss + outcome.noise + outcome.gates + outcome.untold).backward()
    assert float(outcome.noise.detach()) > 0
    for weight, parameter in engine.adapter.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), weight
        assert float(parameter.grad.abs().max()) > 0, weight
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_the_gradient_through_the_writes_equals_the_difference_quotient() -> None:
    """Checked without a gate floor, where the gates are not differentiable."""
    config = replace(REPLIES, gate_floor=0.0)
    engine = word_engine(config)
    found = in_float32(activations_of(engine, episodes_of(4, ALONE)))
    told = [Conversation((1, 2), (("tellings", 1), ("statements", 2)))]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(2, 1, 1, config.rank, config.rank, generator=generator)

    def loss() -> Tensor:
        state = write_composed(config, WriteWeights.of(engine.adapter), found, told).state
        return (state * direction).sum()

    for name in ("memory_k_proj", "memory_k_shift_proj", "memory_v_proj", "beta_proj", "beta_bias"):
        parameter = engine.adapter.layer(0).get_parameter(name)
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


@pytest.mark.slow
def test_the_engine_says_what_replay_has_trained() -> None:
    """Two conversations with different answers to one question, distinguished by their states alone."""
    engine = word_engine(REPLIES)
    told = {word: Message("user", f"My lucky charm is {word}.") for word in ("otter", "heron")}
    question = Question("What is my lucky charm?", "", "Your lucky charm is", Told(0, len("My lucky charm is ")))
    episodes = [
        Episode((message, Message("assistant", "Noted.")), (replace(question, answer=word),))
        for word, message in told.items()
    ]
    found = in_float32(activations_of(engine, episodes))
    lead = question_batch(renderer(), episodes).lead
    conversations = [Conversation((place,), (("statements", place),)) for place in range(2)]
    optimiser = torch.optim.AdamW(engine.adapter.parameters(), lr=0.1)
    losses, right = [], False
    while not right and len(losses) < 200:
        _, outcome = replay(engine.model, engine.adapter, found, lead, conversations)
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        losses.append(float(outcome.loss.detach()))
        right = outcome.answer_nats < 0.3
    assert right and losses[-1] < losses[0] - 2
    states = [engine.absorb(engine.new_state(), [message]) for message in told.values()]
    asked = [Message("user", question.question), Message("assistant", question.prefix)]
    for state, word in zip(states, told, strict=True):
        score = engine.score(state, asked, word)
        assert score.greedy and score.logprob > -0.7
    assert engine.greedy_replies(states, [asked, asked], max_tokens=1) == [f" {word}" for word in told]
