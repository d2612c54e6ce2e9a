"""Laws of generated episodes: nothing kept for evaluation is met in training, and answers stand where they are told."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError
from deltamem_agents.training import chatter as small_talk
from deltamem_agents.training.batches import history_batch, question_batch, told_places
from deltamem_agents.training.episodes import (
    Episode,
    EpisodeGenerator,
    EpisodeShape,
    held_out,
    split_values,
)
from deltamem_agents.training.facts import (
    ACKNOWLEDGEMENTS,
    ATTRIBUTES,
    ECHOES,
    HELD_OUT_ATTRIBUTES,
    HELD_OUT_QUESTIONS,
    HELD_OUT_STATEMENTS,
    QUESTIONS,
    SAME_SUBJECT,
    STATEMENTS,
    VALUES,
    Attribute,
    same_subject,
)
from deltamem_agents.types import Message
from tiny_training import renderer

WORDS = tuple(f"{a}{b}{c}" for a in ("zor", "vik", "mul", "tep") for b in "aeiou" for c in ("lim", "nad", "rux", "sk"))
FULL = EpisodeShape(facts=3, distractors=(0, 3), changed=0.5, asked_before=0.5)
ALL_ATTRIBUTES = (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES)

shapes = st.builds(
    EpisodeShape,
    facts=st.integers(1, 6),
    distractors=st.sampled_from([(0, 0), (0, 3), (2, 2)]),
    split=st.sampled_from(["train", "evaluation"]),
    held_out_attributes=st.booleans(),
    held_out_phrasings=st.booleans(),
    word_share=st.sampled_from([0.0, 0.3, 1.0]),
    changed=st.sampled_from([0.0, 0.5, 1.0]),
    asked_before=st.sampled_from([0.0, 0.5, 1.0]),
)
each_shape = given(shapes, st.integers(0, 10_000))


def drawn(shape: EpisodeShape, count: int, seed: int = 0) -> list[Episode]:
    generator, rng = EpisodeGenerator(WORDS, shape), random.Random(seed)
    return [generator.draw(rng) for _ in range(count)]


def text_of(episode: Episode) -> str:
    return "\n".join([message.content for message in episode.messages] + [q.question for q in episode.questions])


def found_in(text: str, phrases: Sequence[str]) -> set[str]:
    """Those phrases that occur in `text` as words of their own."""
    wanted = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return set(re.findall(rf"(?<!\w)(?:{wanted})(?!\w)", text))


def fixed_words(phrase: str) -> str:
    """The longest part of a phrasing that is the same in every episode."""
    return max(re.split(r"\{\w\}", phrase), key=len)


def test_no_value_kept_for_evaluation_is_told_echoed_or_answered_in_training() -> None:
    kept = [value for value in (*WORDS, *itertools.chain(*VALUES.values())) if held_out(value)]
    fixed = " ".join([*STATEMENTS, *QUESTIONS, *ACKNOWLEDGEMENTS, *ECHOES])
    fixed += " ".join(" ".join((a.name, *a.told, *a.asked)) for a in ATTRIBUTES)
    kept = sorted(set(kept) - found_in(fixed, kept))
    assert len(kept) > 40
    for share in (0.0, 0.3, 1.0):
        # Small talk is left out: it may well mention a piano, but tells nothing about the user.
        shape = replace(FULL, distractors=(0, 0), word_share=share)
        text = "\n".join(text_of(episode) for episode in drawn(shape, 700))
        assert not found_in(text, kept)


def test_every_value_told_for_evaluation_is_one_that_was_kept() -> None:
    for episode in drawn(replace(FULL, split="evaluation"), 500):
        assert all(held_out(question.answer) for question in episode.questions)


@given(st.text(max_size=12))
def test_a_value_is_kept_in_whichever_case_it_is_written(value: str) -> None:
    lower = value.lower()
    assert held_out(value) == held_out(lower)
    if value.upper().lower() == lower:
        assert held_out(value.upper()) == held_out(lower)


@pytest.mark.parametrize("kind", VALUES)
def test_both_splits_have_values_to_choose_from(kind: str) -> None:
    train, kept = split_values(VALUES[kind], "train"), split_values(VALUES[kind], "evaluation")
    assert sorted((*train, *kept)) == sorted(VALUES[kind])
    assert len(set(VALUES[kind])) == len(VALUES[kind])
    assert min(len(train), len(kept)) >= 2


def test_no_phrasing_kept_for_evaluation_is_met_in_training() -> None:
    text = "\n".join(text_of(episode) for episode in drawn(FULL, 700))
    for phrase in (*HELD_OUT_STATEMENTS, *HELD_OUT_QUESTIONS):
        assert fixed_words(phrase) not in text
    for phrase in (*STATEMENTS, *QUESTIONS):
        assert fixed_words(phrase) in text


def test_with_phrasings_held_out_only_those_are_met() -> None:
    for episode in drawn(replace(FULL, held_out_phrasings=True), 200):
        asked = [question.question for question in episode.questions]
        told = [episode.messages[q.told.message].content for q in episode.questions if q.told]
        assert all(any(fixed_words(phrase) in text for phrase in HELD_OUT_QUESTIONS) for text in asked)
        assert all(any(fixed_words(phrase) in text for phrase in HELD_OUT_STATEMENTS) for text in told)


def test_no_attribute_kept_for_evaluation_is_met_in_training() -> None:
    names = [attribute.name for attribute in HELD_OUT_ATTRIBUTES]
    assert not set(names) & {attribute.name for attribute in ATTRIBUTES}
    text = "\n".join(text_of(episode) for episode in drawn(replace(FULL, facts=6), 400))
    assert not found_in(text, names)
    kept = drawn(replace(FULL, held_out_attributes=True), 400)
    assert {q.prefix for episode in kept for q in episode.questions} == {f"Your {name} is" for name in names}


def test_small_talk_of_evaluation_is_none_of_training() -> None:
    def spoken(evaluation: bool) -> set[str]:
        rng = random.Random(0)
        return {text for _ in range(2000) for text in small_talk.chatter(rng, evaluation=evaluation)}

    assert not spoken(True) & spoken(False)
    assert all("{" not in text for text in spoken(True) | spoken(False))


@each_shape
def test_told_points_at_the_value(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        assert len(episode.questions) == shape.facts
        for question in episode.questions:
            assert question.told is not None
            message = episode.messages[question.told.message]
            assert message.role == "user"
            assert message.content[question.told.start :].startswith(question.answer)
            assert not re.match(r"\w", message.content[question.told.start + len(question.answer) :])


@each_shape
def test_the_reply_is_the_prefix_and_the_answer(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        for question in episode.questions:
            assert question.answer
            assert question.prefix == question.prefix.strip()
            assert question.reply == f"{question.prefix} {question.answer}."


def test_no_statement_begins_with_its_value() -> None:
    for phrase in (*STATEMENTS, *HELD_OUT_STATEMENTS, *(phrase for a in ALL_ATTRIBUTES for phrase in a.told)):
        before, value, after = phrase.partition("{v}")
        assert value and before.endswith(" ")
        assert re.match(r"\W", after)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_an_answer_has_the_tokens_that_its_value_was_told_with(split: str) -> None:
    """Single words of the vocabulary as well as names of several tokens."""
    episodes = drawn(replace(FULL, split=split), 80)  # type: ignore[arg-type]
    histories = history_batch(renderer(), [episode.messages for episode in episodes])
    questions = question_batch(renderer(), episodes)
    places, mask = told_places(renderer(), episodes, histories)
    told, answered = histories.tokens[places[:, 0], places[:, 1]], questions.targets[questions.is_answer]
    assert told.tolist() == answered.tolist()
    assert int(mask.sum()) == len(places)
    lengths = [int((questions.places[questions.is_answer][:, 0] == i).sum()) for i in range(len(questions.tokens))]
    assert min(lengths) == 1 and max(lengths) > 2
    spoken = renderer()._tokenizer.decode(answered)  # type: ignore[attr-defined]
    assert spoken == "".join(f" {question.answer}" for episode in episodes for question in episode.questions)


@each_shape
def test_roles_alternate_and_begin_with_the_user(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        assert [message.role for message in episode.messages] == ["user", "assistant"] * (len(episode.messages) // 2)


def tellings(episode: Episode, name: str) -> Iterator[int]:
    """Where an attribute of WORDS alone, told in general phrasings, is told."""
    for place, message in enumerate(episode.messages):
        if message.role == "user" and re.search(rf"[Mm]y {re.escape(name)} is (\w+)", message.content):
            yield place


def test_of_a_changed_fact_the_newest_value_is_the_answer() -> None:
    shape = EpisodeShape(facts=2, changed=1.0, word_share=1.0, held_out_phrasings=True)
    for episode in drawn(shape, 200):
        for question in episode.questions:
            assert question.told is not None
            places = list(tellings(episode, question.prefix.removeprefix("Your ").removesuffix(" is")))
            assert len(places) == 2
            earlier, newest = (episode.messages[place].content for place in places)
            assert places[1] == question.told.message
            assert question.answer in newest.split(" is ")[-1]
            assert question.answer not in earlier.split(" is ")[-1]


def test_of_an_unchanged_fact_there_is_one_telling() -> None:
    shape = EpisodeShape(facts=3, word_share=1.0, held_out_phrasings=True)
    for episode in drawn(shape, 100):
        assert sum("my" in m.content and " is " in m.content for m in episode.messages[::2]) >= 3
        for question in episode.questions:
            assert question.told is not None
            name = question.prefix.removeprefix("Your ").removesuffix(" is")
            assert list(tellings(episode, name)) == [question.told.message]


def test_asked_before_means_each_fact_was_asked_and_answered_behind_its_telling() -> None:
    for episode in drawn(EpisodeShape(facts=3, asked_before=1.0), 100):
        for question in episode.questions:
            assert question.told is not None
            behind = episode.messages[question.told.message + 2 : question.told.message + 4]
            assert behind[1] == Message("assistant", question.reply)
            assert behind[0].role == "user"
    for episode in drawn(EpisodeShape(facts=3, asked_before=0.0), 100):
        assert not any(m.content == q.reply for m in episode.messages for q in episode.questions)


def test_distractors_stay_within_their_bounds() -> None:
    counts = {len(episode.messages) // 2 - 2 for episode in drawn(EpisodeShape(facts=2, distractors=(1, 4)), 200)}
    assert counts == {1, 2, 3, 4}


@each_shape
def test_equal_generators_in_equal_states_draw_equal_episodes(shape: EpisodeShape, seed: int) -> None:
    assert drawn(shape, 4, seed) == drawn(shape, 4, seed)
    assert drawn(shape, 4, seed) != drawn(shape, 4, seed + 1)


@cache
def phrasings(attribute: Attribute) -> frozenset[str]:
    """Every question about it, spelled one way."""
    texts = (*(phrase.format(a=attribute.name) for phrase in (*QUESTIONS, *HELD_OUT_QUESTIONS)), *attribute.asked)
    return frozenset(text.replace("colour", "color").replace("favourite", "favorite") for text in texts)


def test_attributes_that_share_a_question_are_about_the_same_subject() -> None:
    names = {attribute.name for attribute in ALL_ATTRIBUTES}
    assert all(group <= names for group in SAME_SUBJECT)
    for one, other in itertools.combinations(ALL_ATTRIBUTES, 2):
        if phrasings(one) & phrasings(other):
            assert same_subject(one, other), (one.name, other.name)
    by_name = {attribute.name: attribute for attribute in ALL_ATTRIBUTES}
    for one_name, other_name in (
        ("favourite colour", "favorite color"),
        ("favourite food", "favorite food"),
        ("city", "hometown"),
        ("city", "birthplace"),
        ("name", "nickname"),
        ("sister's name", "sister's job"),
    ):
        assert same_subject(by_name[one_name], by_name[other_name])
        assert same_subject(by_name[other_name], by_name[one_name])
    assert not same_subject(by_name["city"], by_name["favourite colour"])


def test_attributes_that_share_a_statement_are_about_the_same_subject() -> None:
    for one, other in itertools.combinations(ALL_ATTRIBUTES, 2):
        if set(one.told) & set(other.told):
            assert same_subject(one, other), (one.name, other.name)


def named_by(question_prefix: str) -> Attribute:
    return next(a for a in ALL_ATTRIBUTES if question_prefix == f"Your {a.name} is")


@each_shape
def test_facts_of_one_episode_are_about_different_subjects(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(replace(shape, held_out_attributes=False), 10, seed):
        told = [named_by(question.prefix) for question in episode.questions]
        assert not any(same_subject(one, other) for one, other in itertools.combinations(told, 2))


@each_shape
def test_nothing_told_is_asked_for_as_untold(shape: EpisodeShape, seed: int) -> None:
    generator, rng = EpisodeGenerator(WORDS, shape), random.Random(seed)
    for _ in range(20):
        episode = generator.draw(rng)
        told = [named_by(question.prefix) for question in episode.questions]
        off_limits = frozenset().union(*(phrasings(a) for a in ALL_ATTRIBUTES if any(same_subject(a, b) for b in told)))
        asked = generator.untold(rng, episode).replace("colour", "color").replace("favourite", "favorite")
        assert asked not in off_limits


def test_untold_refuses_when_everything_is_told() -> None:
    shape = EpisodeShape(facts=len(HELD_OUT_ATTRIBUTES), held_out_attributes=True)
    generator, rng = EpisodeGenerator(WORDS, shape), random.Random(0)
    with pytest.raises(ConfigError, match="no attribute is left beside 16 others"):
        generator.untold(rng, generator.draw(rng))


@pytest.mark.parametrize("facts", [0, -1, len(ATTRIBUTES) + 1])
def test_more_facts_than_there_are_attributes_are_refused(facts: int) -> None:
    with pytest.raises(ConfigError, match=f"{facts} facts"):
        EpisodeGenerator(WORDS, EpisodeShape(facts=facts))


def test_more_facts_than_there_are_subjects_are_refused() -> None:
    generator = EpisodeGenerator(WORDS, EpisodeShape(facts=len(ATTRIBUTES)))
    with pytest.raises(ConfigError, match="fewer facts"):
        generator.draw(random.Random(0))


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 words leave 0 for the train split"):
        EpisodeGenerator([], EpisodeShape())
    assert not held_out("zorgon")
    with pytest.raises(ConfigError, match="1 words leave 0 for the evaluation split"):
        EpisodeGenerator(["zorgon"], EpisodeShape(split="evaluation"))
