"""Laws of collected activations: the frozen model's, at positions where values are told, asked and not told."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.episodes import Episode, EpisodeShape, Question, Told
from deltamem_agents.lab.training import activations
from deltamem_agents.lab.training.activations import Activations, Exchanges, collect_asides
from deltamem_agents.types import Message
from fast_set import one_in
from tiny_engine import CHATML
from tiny_training import (
    CONFIGS,
    FULL,
    GATED,
    TEMPLATES,
    activations_of,
    each_template,
    episodes_of,
    renderer,
    said_aside,
    word_engine,
    word_tokenizer,
)

SHAPE = EpisodeShape(
    distractors=(0, 1), word_share=0.7, tellers=("user", "assistant", "tool"), about=("user", "person")
)
EPISODES = episodes_of(40, SHAPE)
ASIDES = said_aside(9)
ASIDE_EXCHANGES = [messages[at : at + 2] for messages in ASIDES for at in range(0, len(messages), 2)]


@pytest.fixture(scope="module", params=one_in(2, TEMPLATES.values()), ids=TEMPLATES)
def found(request: pytest.FixtureRequest) -> tuple[str, DeltaMemEngine, Activations]:
    engine = word_engine(GATED, request.param)
    return request.param, engine, activations_of(engine, EPISODES, 9, request.param)


def embedded(engine: DeltaMemEngine, tokens: Tensor) -> Tensor:
    """The first layer's attention inputs, which are just normed embeddings: equal tokens have equal inputs."""
    model = engine.model.model
    return model.layers[0].input_layernorm(model.embed_tokens(tokens)).bfloat16()


def contents_of(messages: tuple[Message, ...], template: str) -> Tensor:
    rendered = renderer(template).render(messages, generation_prompt=False)
    return torch.tensor([token for token, owner in zip(rendered.ids, rendered.owner, strict=True) if owner >= 0])


@pytest.mark.slow
def test_told_tokens_are_found_where_they_were_told(found: tuple[str, DeltaMemEngine, Activations]) -> None:
    _, engine, activations = found
    tokenizer = word_tokenizer()
    values = [tokenizer.encode(" " + episode.questions[0].answer) for episode in EPISODES]
    told = torch.tensor([token for value in values for token in value])
    assert len(told) > len(EPISODES), "some values have several tokens"
    assert torch.equal(activations.target, told)
    assert activations.telling.tolist() == [index for index, value in enumerate(values) for _ in value]
    torch.testing.assert_close(activations.tellings.inputs[0, activations.tellings.told], embedded(engine, told))


@pytest.mark.slow
def test_asked_inputs_are_at_the_positions_that_predict_told_tokens(
    found: tuple[str, DeltaMemEngine, Activations],
) -> None:
    template, engine, activations = found
    before = []
    for episode in EPISODES:
        question = episode.questions[0]
        for cut in range(len(word_tokenizer().encode(" " + question.answer))):
            said = word_tokenizer().decode(word_tokenizer().encode(" " + question.answer)[:cut])
            begun = (Message("user", question.question), Message("assistant", question.prefix + said))
            before.append(renderer(template).render(begun, generation_prompt=False, continue_final=True).ids[-1])
    assert activations.asked.shape == (2, len(activations.target), 32)
    torch.testing.assert_close(activations.asked[0], embedded(engine, torch.tensor(before)))


@pytest.mark.slow
def test_begun_inputs_are_at_the_end_of_the_questions(found: tuple[str, DeltaMemEngine, Activations]) -> None:
    template, engine, activations = found
    begun = [
        renderer(template).render((Message("user", episode.questions[0].question),)).ids[-1] for episode in EPISODES
    ]
    assert activations.begun.shape == (2, len(EPISODES), 32)
    torch.testing.assert_close(activations.begun[0], embedded(engine, torch.tensor(begun)))


def test_contents_are_the_tokens_that_a_turn_writes(
    found: tuple[str, DeltaMemEngine, Activations],
) -> None:
    template, engine, activations = found
    for source, conversations in (
        (activations.tellings, [e.messages for e in EPISODES]),
        (activations.asides, ASIDE_EXCHANGES),
    ):
        assert len(source.contents) == len(conversations)
        ends = [*(int(places[0]) for places in source.contents), source.inputs.shape[1]]
        assert ends == sorted(ends)
        for places, messages, (start, end) in zip(source.contents, conversations, pairwise(ends), strict=True):
            torch.testing.assert_close(source.inputs[0, places], embedded(engine, contents_of(messages, template)))
            assert start == places[0] and places[-1] < end


@pytest.mark.slow
@pytest.mark.parametrize("facts", [1, 3])
def test_earlier_values_are_kept_separately_and_count_as_told(facts: int) -> None:
    episodes = episodes_of(12, replace(SHAPE, facts=facts, changed=0.5))
    engine = word_engine(GATED)
    found = activations_of(engine, episodes, 9)
    questions = [(episode, question) for episode in episodes for question in episode.questions]
    changed = 0
    for (episode, question), places in zip(questions, found.earlier, strict=True):
        if question.told_before is None:
            assert not len(places) and not question.outdated
            continue
        changed += 1
        exchange = episode.exchange_places(question.told_before)
        said = episode.messages[exchange.start : question.told_before.message + 1]
        contents = embedded(engine, contents_of(said, CHATML))
        torch.testing.assert_close(found.tellings.inputs[0, places], contents)
        values = found.tellings.inputs[0, places[found.tellings.told[places]]]
        old = torch.tensor(word_tokenizer().encode(" " + question.outdated[-1]))
        torch.testing.assert_close(values, embedded(engine, old))
    assert 0 < changed < len(questions)


@pytest.mark.slow
def test_several_tellings_of_one_conversation_are_separate() -> None:
    """Each with its own exchange, run after the conversation before it."""
    episodes = episodes_of(12, replace(SHAPE, facts=3))
    engine = word_engine(GATED)
    found = activations_of(engine, episodes, 9)
    questions = [(episode, question) for episode in episodes for question in episode.questions]
    assert len(found.tellings.contents) == len(found.subjects) == len(found.prompts) == 36
    for places, prompt, (episode, question) in zip(found.tellings.contents, found.prompts, questions, strict=True):
        assert question.told is not None
        own = contents_of(episode.exchange(question.told), CHATML)
        torch.testing.assert_close(found.tellings.inputs[0, places], embedded(engine, own))
        told = places[found.tellings.told[places]]
        assert torch.isin(found.told_at, told).sum() == len(told)
        torch.testing.assert_close(
            found.tellings.inputs[0, told], embedded(engine, prompt.targets[prompt.is_answer]), msg=question.answer
        )


@pytest.mark.slow
def test_every_answer_token_refers_to_where_it_was_told() -> None:
    """Also if two facts are told in one message, in either order."""
    episodes = episodes_of(12, replace(SHAPE, facts=3, paired=1.0, tellers=("user",)))
    engine = word_engine(GATED)
    found = activations_of(engine, episodes, 9)
    torch.testing.assert_close(found.tellings.inputs[0, found.told_at], embedded(engine, found.target))
    assert len(found.told_at.unique()) == len(found.target) == int(found.tellings.told.sum())


@pytest.mark.slow
def test_joined_parts_equal_one_collection_of_all_episodes() -> None:
    engine, parts = word_engine(GATED), []
    for start in (0, 10, 20):
        some = EPISODES[start : start + 10]
        parts.append(activations_of(engine, some, 9))
    whole, expected = (
        tensors_of(activations.joined(parts)),
        activations_of(engine, EPISODES[:30], 9),
    )
    for name, value in tensors_of(expected).items():
        torch.testing.assert_close(whole[name], value, msg=name)
    assert activations.joined(parts).subjects == expected.subjects
    anywhere = torch.randperm(len(expected.tellings))[:50]
    assert torch.equal(activations.joined(parts).tellings.at(anywhere), expected.tellings.at(anywhere))
    assert activations.joined(parts).tellings.inputs is parts[0].tellings.inputs, "activations are not copied"


@pytest.mark.slow
def test_told_tokens_are_content_and_never_in_an_aside(found: tuple[str, DeltaMemEngine, Activations]) -> None:
    _, _, activations = found
    assert not bool(activations.asides.told.any())
    written = torch.zeros_like(activations.tellings.told)
    for places in activations.tellings.contents:
        assert bool(activations.tellings.told[places].any())
        written[places] = True
    assert not bool((activations.tellings.told & ~written).any())


def test_other_positions_of_a_reply_exclude_its_answer(found: tuple[str, DeltaMemEngine, Activations]) -> None:
    _, _, activations = found
    # Each reply has a position before its first token and one before its end.
    assert activations.replies.shape[1] >= 2 * len(EPISODES)
    distances = torch.cdist(activations.replies[1].float(), activations.asked[1].float())
    assert float(distances.min()) > 0


def test_subjects_are_what_the_questions_ask_for(found: tuple[str, DeltaMemEngine, Activations]) -> None:
    _, _, activations = found
    assert activations.subjects == tuple(frozenset({episode.questions[0].subject}) for episode in EPISODES)
    assert len(set(activations.subjects)) > 10


@pytest.mark.slow
def test_activations_do_not_depend_on_the_adapter(
    found: tuple[str, DeltaMemEngine, Activations],
) -> None:
    template, _, activations = found
    for name, value in tensors_of(
        activations_of(word_engine(CONFIGS["published preset"], template), EPISODES, 9, template)
    ).items():
        assert torch.equal(value, tensors_of(activations)[name]), name


def tensors_of(found: Activations | Exchanges) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for field in fields(found):
        value = getattr(found, field.name)
        if isinstance(value, Exchanges):
            named |= {f"{field.name}.{name}": inner for name, inner in tensors_of(value).items()}
        elif isinstance(found, Exchanges) and field.name == "inputs":
            named["inputs"] = found.at(torch.arange(len(found)))
        elif isinstance(value, Tensor):
            named[field.name] = value
        elif field.name == "contents":
            named["contents"] = torch.cat(value)
    return named


@pytest.mark.slow
@each_template
def test_activations_do_not_depend_on_the_batch_size(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = word_engine(FULL, template)
    whole = tensors_of(activations_of(engine, EPISODES, 9, template))
    monkeypatch.setattr(activations, "COLLECT_BATCH", 3)
    for name, value in tensors_of(activations_of(engine, EPISODES, 9, template)).items():
        torch.testing.assert_close(value, whole[name], msg=name)


def test_a_value_with_other_tokens_in_the_reply_is_refused() -> None:
    engine = word_engine()
    question = Question("Where do I live?", "otter", "Your city is", Told(0, 0))
    episode = Episode((Message("user", "otter is where I live."), Message("assistant", "Noted.")), (question,))
    with pytest.raises(ConfigError, match=r"encodes a told value differently .* choose a model whose tokenizer"):
        activations_of(engine, [episode], 9)


@each_template
def test_only_the_reply_to_a_statement_is_an_aside(template: str) -> None:
    engine = word_engine(GATED, template)
    told = [episode.messages[:2] for episode in EPISODES if episode.messages[1].role == "assistant"][:3]
    assert len(told) == 3 and all(len(messages) == 2 for messages in told)
    asides = collect_asides(engine.model, engine.adapter, renderer(template), ASIDES, told)
    assert len(asides.contents) == len(ASIDE_EXCHANGES) + 3 and not bool(asides.told.any())
    for places, messages in zip(asides.contents, [*ASIDE_EXCHANGES, *told], strict=True):
        contents = contents_of(messages, template)
        reply = contents_of(messages[:1], template) if messages in told else []
        torch.testing.assert_close(asides.inputs[0, places], embedded(engine, contents[len(reply) :]))
