"""Laws of generated episodes: training has no held-out material, and facts say where their values were told."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.episodes import (
    Episode,
    EpisodeGenerator,
    EpisodeShape,
    Teller,
    ValueKind,
    held_out,
)
from deltamem_agents.lab.corpus.facts import attributes, everyday, same_subject
from deltamem_agents.lab.corpus.people import relations, traits
from deltamem_agents.lab.corpus.phrasings import phrasings, replies
from deltamem_agents.lab.corpus.splits import Split, split_of
from deltamem_agents.lab.corpus.values import kind_of, values_of, word_values
from deltamem_agents.lab.training.batches import history_batch, question_batch, told_places
from deltamem_agents.types import Message
from real_model import real_engine
from tiny_tokenizers import GEMMA, TOOLED
from tiny_training import CHATML, renderer

TRAINED, KEPT = phrasings(), phrasings(held_out=True)
ATTRIBUTES, HELD_OUT_ATTRIBUTES = attributes(), attributes(held_out=True)
TRAITS, HELD_OUT_TRAITS = traits(), traits(held_out=True)
WORDS = tuple(f"{a}{b}{c}" for a in ("zor", "vik", "mul", "tep") for b in "aeiou" for c in ("lim", "nad", "rux", "sk"))
SPLITS: tuple[Split, ...] = get_args(Split)
KINDS: tuple[ValueKind, ...] = get_args(ValueKind)
TELLERS: tuple[Teller, ...] = get_args(Teller)
FULL = EpisodeShape(facts=3, distractors=(0, 3), changed=0.5, asked_before=0.5)
WIDE = replace(
    FULL,
    values=KINDS,
    tellers=TELLERS,
    about=("user", "person"),
    same_attribute=0.5,
    changes_around=3,
    paired=0.5,
    other_prefixes=0.5,
)
BY_SPACE = replace(WIDE, tellers=("user", "assistant", "tool"))
"""Every teller but "json", whose values are in quotes instead of after a space."""

chances = st.sampled_from([0.0, 0.5, 1.0])
shapes = st.builds(
    EpisodeShape,
    facts=st.integers(1, 6),
    distractors=st.sampled_from([(0, 0), (0, 3), (2, 2)]),
    split=st.sampled_from(SPLITS),
    held_out_attributes=st.booleans(),
    held_out_phrasings=st.booleans(),
    word_share=st.sampled_from([0.0, 0.3, 1.0]),
    changed=chances,
    asked_before=chances,
    values=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3).map(tuple),
    tellers=st.lists(st.sampled_from(TELLERS), min_size=1, max_size=3).map(tuple),
    about=st.sampled_from([("user",), ("person",), ("user", "person")]),
    same_attribute=chances,
    changes_around=st.sampled_from([0, 2, 12]),
    paired=chances,
    other_prefixes=chances,
    everyday=chances,
)
each_shape = given(shapes, st.integers(0, 10_000))


def drawn(shape: EpisodeShape, count: int, seed: int = 0) -> list[Episode]:
    """`count` episodes, with fewer facts if the shape has more than there are subjects."""
    rng = random.Random(seed)
    while True:
        try:
            generator = EpisodeGenerator(WORDS, shape)
            return [generator.draw(rng) for _ in range(count)]
        except ConfigError:
            assert shape.facts > 1 or shape.changes_around
            shape = replace(shape, facts=max(1, shape.facts - 1), changes_around=shape.changes_around // 2)


def text_of(episode: Episode) -> str:
    return "\n".join([message.content for message in episode.messages] + [q.question for q in episode.questions])


def found_in(text: str, phrases: Sequence[str]) -> set[str]:
    """The phrases that occur in `text` as whole words."""
    wanted = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return set(re.findall(rf"(?<!\w)(?:{wanted})(?!\w)", text))


def fixed_words(phrase: str) -> str:
    """The longest part of a phrasing that is the same in every episode."""
    return max(re.split(r"\{\w+\}", phrase), key=len)


def fixed_texts() -> str:
    """All fixed texts of training, whatever the values."""
    lists = (TRAINED.statements, TRAINED.loose_statements, TRAINED.questions, TRAINED.loose_questions)
    frames = (TRAINED.openers, TRAINED.closers, TRAINED.question_closers, TRAINED.changes)
    noted = (replies().acknowledgements, replies().echoes, replies().chatty, replies().chatty_echoes)
    own = ((a.name, *a.told, *a.asked, *a.changed) for a in ATTRIBUTES)
    return " ".join(itertools.chain(*lists, *frames, *noted, *own))


# Splits.


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["validation", "evaluation"])
def test_no_held_out_value_occurs_in_training(kept: Split) -> None:
    singles = [value for value in (*WORDS, *itertools.chain(*word_values().values())) if split_of(value) == kept]
    kept_values = sorted(set(singles) - found_in(fixed_texts(), singles))
    assert len(kept_values) > 100
    for share in (0.0, 0.3, 1.0):
        # Without small talk, which may mention such a word but states no fact about the user.
        shape = replace(FULL, distractors=(0, 0), word_share=share)
        text = "\n".join(text_of(episode) for episode in drawn(shape, 500))
        assert not found_in(text, kept_values)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_told_value_belongs_to_the_split(split: Split) -> None:
    for episode in drawn(replace(WIDE, split=split, changed=1.0), 300):
        for question in episode.questions:
            assert {split_of(value) for value in (question.answer, *question.outdated)} == {split}
            assert held_out(question.answer) == (split == "evaluation")
        names = {subject.person.name for subject in episode.subjects if subject.person is not None} - {""}
        assert {split_of(name) for name in names} <= {split}


@pytest.mark.slow
def test_no_held_out_phrasing_occurs_in_training() -> None:
    text = "\n".join(text_of(episode) for episode in drawn(replace(FULL, paired=0.3, changed=0.8), 1500))
    kept = (KEPT.statements, KEPT.questions, KEPT.changes)
    for phrase in itertools.chain(*kept, KEPT.paired_statements):
        assert fixed_words(phrase) not in text
    for phrase in (*TRAINED.statements, *TRAINED.questions, *TRAINED.changes, *TRAINED.paired_statements):
        assert fixed_words(phrase) in text


def test_with_held_out_phrasings_only_those_occur() -> None:
    by_user = (*KEPT.statements, *KEPT.changes, *KEPT.paired_statements)
    by_assistant = (*KEPT.assistant_tellings, *KEPT.assistant_changes)
    by_tool = (*KEPT.tool_results, *KEPT.json_results)
    told_by = {"user": by_user, "assistant": [answer for _, answer in by_assistant], "tool": by_tool}
    for episode in drawn(replace(WIDE, held_out_phrasings=True), 200):
        for question in episode.questions:
            assert any(fixed_words(phrase) in question.question for phrase in KEPT.questions)
            assert question.told is not None
            message = episode.messages[question.told.message]
            assert any(fixed_words(phrase) in message.content for phrase in told_by[message.role])


@pytest.mark.slow
def test_no_held_out_attribute_occurs_in_training() -> None:
    users, others = [a.name for a in HELD_OUT_ATTRIBUTES], [a.name for a in HELD_OUT_TRAITS]
    told = {subject.name for episode in drawn(replace(WIDE, facts=6), 300) for subject in episode.subjects}
    assert not told & {*users, *others}
    kept = [s for one in drawn(replace(WIDE, held_out_attributes=True), 700) for s in one.subjects]
    assert {subject.name for subject in kept} == {*users, *others}
    assert not {subject.person.relation for subject in kept if subject.person is not None} & set(relations())


# Tellings.


@each_shape
def test_told_points_at_the_value(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        for question in episode.questions:
            assert question.told is not None
            message = episode.messages[question.told.message]
            assert message.role in {{"json": "tool"}.get(teller, teller) for teller in shape.tellers}
            assert message.content[question.told.start :].startswith(question.answer)
            assert not re.match(r"\w", message.content[question.told.start + len(question.answer) :])
            before = message.content[: question.told.start]
            assert before.endswith((" ", '"') if "json" in shape.tellers else " ")


@each_shape
def test_the_reply_is_the_prefix_and_the_answer(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        for question in episode.questions:
            assert question.answer
            assert question.prefix and question.prefix == question.prefix.strip()
            assert question.reply == f"{question.prefix} {question.answer}."


@each_shape
def test_roles_alternate_and_tool_results_match_their_calls(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        roles = [message.role for message in episode.messages]
        assert re.fullmatch("(ua(ta)?)*", "".join(role[0] for role in roles))
        for call, result in itertools.pairwise(episode.messages):
            if result.role == "tool":
                assert [(one.id, one.name) for one in call.tool_calls] == [(result.tool_call_id, result.name)]


@each_shape
def test_an_exchange_begins_with_the_user_and_contains_the_fact(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 3, seed):
        for question in episode.questions:
            assert question.told is not None
            exchange = episode.exchange(question.told)
            assert [message.role for message in exchange] in (
                ["user", "assistant"],
                ["user", "assistant", "tool", "assistant"],
            )
            assert episode.messages[question.told.message] in exchange


# Splits and templates do not interact, so not every combination is tested.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "template"),
    [*((split, CHATML) for split in SPLITS), (SPLITS[0], TOOLED), (SPLITS[-1], GEMMA)],
    ids=[*(f"{split}-chatml" for split in SPLITS), "tooled", "gemma"],
)
def test_an_answer_has_the_tokens_of_the_told_value(split: Split, template: str) -> None:
    """Whoever tells it, and whatever kind of value it is."""
    show = renderer(template)
    episodes = drawn(replace(BY_SPACE, split=split), 15)
    histories = history_batch(show, [episode.messages for episode in episodes])
    questions = question_batch(show, episodes)
    places, mask = told_places(show, episodes, histories)
    told, answered = histories.tokens[places[:, 0], places[:, 1]], questions.targets[questions.is_answer]
    assert told.tolist() == answered.tolist()
    before = [question.outdated[-1] for episode in episodes for question in episode.questions if question.told_before]
    assert before
    outdated = sum(len(show._tokenizer.encode(" " + value)) for value in before)  # type: ignore[attr-defined]
    assert int(mask.sum()) == len(places) + outdated
    spoken = show._tokenizer.decode(answered)  # type: ignore[attr-defined]
    assert spoken == "".join(f" {question.answer}" for episode in episodes for question in episode.questions)


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_on_the_embedded_model_an_answer_has_the_tokens_of_the_told_value() -> None:
    show = ChatTemplate(real_engine("float32").tokenizer)
    for held in (False, True):
        shape = replace(BY_SPACE, split="evaluation", held_out_phrasings=held, held_out_attributes=held)
        episodes = drawn(shape, 60)
        histories = history_batch(show, [episode.messages for episode in episodes])
        questions = question_batch(show, episodes)
        places, _ = told_places(show, episodes, histories)
        told, answered = histories.tokens[places[:, 0], places[:, 1]], questions.targets[questions.is_answer]
        assert told.tolist() == answered.tolist()


@each_shape
def test_every_content_token_has_an_owner(shape: EpisodeShape, seed: int) -> None:
    show = renderer()
    for episode in drawn(shape, 2, seed):
        owners = set(show.render(episode.messages, generation_prompt=False).owner)
        assert owners == {-1, *range(len(episode.messages))}


def test_every_kind_of_value_and_every_teller_occurs() -> None:
    roles, kinds, persons = set(), set(), set()
    for episode in drawn(WIDE, 200):
        for question, subject in zip(episode.questions, episode.subjects, strict=False):
            assert question.subject == subject.subject and question.told is not None
            roles.add(episode.messages[question.told.message].role)
            kinds.add(kind_of(subject.values))
            persons.add(subject.person is not None)
    assert roles == {"user", "assistant", "tool"} and kinds == set(KINDS) and persons == {True, False}


def test_values_come_from_their_attributes_list() -> None:
    for episode in drawn(replace(WIDE, word_share=0.0), 200):
        for question, subject in zip(episode.questions, episode.subjects, strict=False):
            values = WORDS if subject.values == "word" else values_of(subject.values, "train")
            assert {question.answer, *question.outdated} <= set(values)


def test_paired_facts_share_a_message() -> None:
    for episode in drawn(EpisodeShape(facts=2, distractors=(0, 0), paired=1.0), 50):
        first, second = (question.told for question in episode.questions)
        assert first is not None and second is not None
        assert first.message == second.message == 0 and first.start != second.start
        assert len(episode.messages) == 2


def test_asked_before_asks_and_answers_each_fact_after_it_is_told() -> None:
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


# Changes.


@given(st.sampled_from(TELLERS), st.booleans(), st.integers(0, 1000))
def test_a_changed_facts_old_value_is_told_before_the_new_one(teller: Teller, held: bool, seed: int) -> None:
    shape = EpisodeShape(
        facts=3, changed=1.0, word_share=1.0, tellers=(teller,), held_out_phrasings=held, distractors=(0, 1)
    )
    for episode in drawn(shape, 5, seed):
        for question in episode.questions:
            assert question.told is not None
            (old,) = question.outdated
            assert old != question.answer
            mentions = [place for place, message in enumerate(episode.messages) if found_in(message.content, [old])]
            assert mentions and max(mentions) < question.told.message
            assert not any(
                found_in(message.content, [question.answer]) for message in episode.messages[: question.told.message]
            )


def test_an_unchanged_fact_has_no_outdated_value() -> None:
    for episode in drawn(replace(WIDE, changed=0.0), 100):
        assert all(question.outdated == () for question in episode.questions)


@pytest.mark.parametrize("changes", [1, 10, 50])
@pytest.mark.parametrize("split", SPLITS)
def test_a_fact_does_not_change_while_others_do(changes: int, split: Split) -> None:
    shape = EpisodeShape(facts=1, distractors=(0, 0), changes_around=changes, word_share=1.0, split=split)
    for episode in drawn(shape, 20):
        (question,) = episode.questions
        others = min(changes, 10)
        assert len(episode.messages) == 2 * (1 + others + changes)
        assert len(episode.subjects) == 1 + others
        assert question.told is not None and question.told.message <= 2 * others
        said = [place for place, m in enumerate(episode.messages) if found_in(m.content, [question.answer])]
        assert said in ([question.told.message], [question.told.message, question.told.message + 1])


# People.


def test_same_attribute_tells_one_attribute_of_different_people() -> None:
    for split in SPLITS:
        for episode in drawn(EpisodeShape(facts=6, about=("person",), same_attribute=1.0, split=split), 50):
            assert len({subject.name for subject in episode.subjects}) == 1
            assert len({subject.person for subject in episode.subjects}) == 6
            assert len({question.answer for question in episode.questions}) == 6


def test_same_attribute_includes_the_users_own() -> None:
    shape = EpisodeShape(facts=3, about=("user", "person"), same_attribute=1.0)
    found = {frozenset(s.person is None for s in episode.subjects) for episode in drawn(shape, 100)}
    assert frozenset({True, False}) in found


@each_shape
def test_a_question_about_a_person_names_them(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(replace(shape, about=("person",), other_prefixes=0.0), 3, seed):
        for question, subject in zip(episode.questions, episode.subjects, strict=False):
            assert subject.person is not None
            assert subject.person.mine.lower() in question.question.lower()
            assert subject.person.yours.lower() in question.prefix.lower()


@pytest.mark.slow
def test_no_persons_name_is_told_as_a_value() -> None:
    for episode in drawn(replace(WIDE, facts=6), 200):
        names = {subject.person.name for subject in episode.subjects if subject.person is not None} - {""}
        assert not names & {word for question in episode.questions for word in question.answer.split()}


def test_everyday_facts_are_drawn_on_request() -> None:
    """If an episode has more facts than there are everyday ones, the rest are others."""
    shape = EpisodeShape(facts=4, everyday=1.0, split="evaluation")
    named = [subject.name for one in drawn(shape, 100) for subject in one.subjects]
    assert set(named) <= everyday() and len(set(named)) > 15
    assert drawn(replace(shape, facts=40), 1)
    seldom = [subject.name for one in drawn(replace(shape, everyday=0.0), 100) for subject in one.subjects]
    assert sum(name in everyday() for name in seldom) < 100
    of_others = drawn(replace(shape, about=("person",)), 20)
    assert all(subject.person is not None for one in of_others for subject in one.subjects)


def test_everyday_facts_have_phrasings_of_their_own() -> None:
    assert {"city", "job", "name", "allergy", "age"} <= everyday()
    assert all(attribute.told for attribute in ATTRIBUTES if attribute.name in everyday())


def test_other_prefixes_are_drawn_on_request() -> None:
    plain = drawn(EpisodeShape(facts=3), 50)
    assert all(question.prefix == f"Your {question.subject} is" for one in plain for question in one.questions)
    others = {q.prefix for one in drawn(EpisodeShape(facts=3, other_prefixes=1.0), 200) for q in one.questions}
    assert {"It's", "You told me it is", "That would be"} <= others
    assert not any(prefix.startswith("Your ") and prefix.endswith(" is") for prefix in others if "?" not in prefix)
    lies = EpisodeShape(facts=3, other_prefixes=1.0, tellers=("assistant", "tool"))
    assert not any(q.prefix.startswith("You ") for one in drawn(lies, 200) for q in one.questions)


# Subjects.


@each_shape
def test_facts_of_one_episode_are_about_different_subjects(shape: EpisodeShape, seed: int) -> None:
    for episode in drawn(shape, 5, seed):
        assert not any(same_subject(one, other) for one, other in itertools.combinations(episode.subjects, 2))
        assert len({subject.subject for subject in episode.subjects}) == len(episode.subjects)
        assert [q.subject for q in episode.questions] == [s.subject for s in episode.subjects][: len(episode.questions)]


def test_no_value_is_told_twice_in_an_episode() -> None:
    for episode in drawn(replace(WIDE, facts=6, changed=1.0, values=("word", "number", "phrase")), 100):
        values = [value for question in episode.questions for value in (question.answer, *question.outdated)]
        # Short lists of values can run out.
        assert len(set(values)) >= len(values) - 1


@each_shape
def test_untold_questions_ask_for_nothing_told(shape: EpisodeShape, seed: int) -> None:
    rng = random.Random(seed)
    for episode in drawn(replace(shape, facts=2, changes_around=0), 5, seed):
        generator = EpisodeGenerator(WORDS, replace(shape, facts=2))
        for near in (False, True):
            untold = generator.never_told(rng, episode, near=near)
            assert untold.near == near
            assert untold.subject not in {subject.subject for subject in episode.subjects}
            if near:
                assert any(f"'s {untold.subject}".endswith(f"'s {told.name}") for told in episode.subjects)


@given(st.sampled_from(KINDS), st.booleans(), st.integers(0, 1000))
def test_untold_questions_cannot_be_confused_with_told_subjects(kind: ValueKind, held: bool, seed: int) -> None:
    own = {attribute.name: attribute for attribute in (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES)}
    shape = EpisodeShape(facts=3, values=(kind,), held_out_attributes=held)
    generator, rng = EpisodeGenerator(WORDS, shape), random.Random(seed)
    for _ in range(10):
        episode = generator.draw(rng)
        untold = own[generator.never_told(rng, episode).subject]
        assert not any(same_subject(untold, told) for told in episode.subjects)


def test_a_near_untold_question_names_a_person_not_in_the_episode() -> None:
    generator, rng = EpisodeGenerator(WORDS, replace(FULL, about=("person",))), random.Random(0)
    for _ in range(200):
        episode = generator.draw(rng)
        untold = generator.never_told(rng, episode, near=True)
        whose = untold.prefix.split("'s ")[0]
        assert untold.prefix.startswith("Your ") or not found_in(text_of(episode), [whose])


def test_untold_is_the_question_of_never_told() -> None:
    generator = EpisodeGenerator(WORDS, FULL)
    episode = generator.draw(random.Random(1))
    asked = generator.never_told(random.Random(2), episode)
    assert generator.untold(random.Random(2), episode) == asked.question
    assert asked.prefix == f"Your {asked.subject} is"


def test_untold_is_refused_when_everything_is_told() -> None:
    few = EpisodeShape(facts=1, held_out_attributes=True, values=("date",))
    generator = EpisodeGenerator(WORDS, few)
    told = tuple(a for a in HELD_OUT_ATTRIBUTES if kind_of(a.values) == "date")
    with pytest.raises(ConfigError, match="no attribute is left besides 5 others"):
        generator.untold(random.Random(0), Episode((), (), told))


# Refusals, determinism.


@each_shape
def test_equal_seeds_draw_equal_episodes(shape: EpisodeShape, seed: int) -> None:
    assert drawn(shape, 4, seed) == drawn(shape, 4, seed)
    assert drawn(shape, 4, seed) != drawn(shape, 4, seed + 1)


@pytest.mark.parametrize("facts", [0, -1, len(ATTRIBUTES) + 1])
def test_more_facts_than_there_are_attributes_are_refused(facts: int) -> None:
    with pytest.raises(ConfigError, match=f"{facts} facts was asked for, expected 1 to"):
        EpisodeGenerator(WORDS, EpisodeShape(facts=facts))


def test_more_facts_than_there_are_subjects_are_refused() -> None:
    words = sum(kind_of(attribute.values) == "word" for attribute in ATTRIBUTES)
    generator = EpisodeGenerator(WORDS, EpisodeShape(facts=words))
    with pytest.raises(ConfigError, match="fewer facts"):
        generator.draw(random.Random(0))


@pytest.mark.parametrize("name", ["values", "tellers", "about"])
def test_a_shape_without_anything_to_draw_from_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no {name}"):
        EpisodeGenerator(WORDS, replace(EpisodeShape(), **{name: ()}))


@pytest.mark.parametrize("facts", [16, 32])
@pytest.mark.parametrize("held", [False, True])
def test_episodes_can_have_as_many_facts_as_evaluation_needs(facts: int, held: bool) -> None:
    shape = EpisodeShape(facts=facts, split="evaluation", held_out_attributes=held)
    for episode in [EpisodeGenerator(WORDS, shape).draw(random.Random(seed)) for seed in range(20)]:
        assert len(episode.questions) == facts


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 words leave 0 for the train split"):
        EpisodeGenerator([], EpisodeShape())
    assert not held_out("zorgon")
    with pytest.raises(ConfigError, match="1 words leave 0 for the evaluation split"):
        EpisodeGenerator(["zorgon"], EpisodeShape(split="evaluation"))


@pytest.mark.slow
def test_every_trait_is_drawn() -> None:
    told = {s.name for one in drawn(replace(WIDE, facts=6, about=("person",)), 400) for s in one.subjects}
    assert told >= {trait.name for trait in TRAITS}


@pytest.mark.parametrize("seed", [43, 77, 80, 100])
def test_when_nobody_new_is_left_more_is_told_of_those_known(seed: int) -> None:
    shape = EpisodeShape(facts=200, about=("user", "user", "user", "user", "person"), split="evaluation")
    episode = EpisodeGenerator(WORDS, shape).draw(random.Random(f"evaluation {seed}"))
    assert len(set(episode.subjects)) == 200


def test_an_episode_with_more_facts_than_people_have_attributes_is_refused() -> None:
    shape = EpisodeShape(facts=700, about=("person",), values=("date",), split="evaluation")
    generator = EpisodeGenerator(WORDS, shape)
    with pytest.raises(ConfigError, match="no attribute is left besides"):
        generator.draw(random.Random(0))
