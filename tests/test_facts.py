"""Laws of what can be told: nothing kept for evaluation is in training's lists, and no two attributes are mistaken."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.lab.training import phrasings, sources
from deltamem_agents.lab.training.attributes import Attribute, Person
from deltamem_agents.lab.training.facts import ATTRIBUTES, HELD_OUT_ATTRIBUTES, SAME_SUBJECT, same_subject
from deltamem_agents.lab.training.people import (
    HELD_OUT_RELATIONS,
    HELD_OUT_TRAITS,
    PEOPLE_QUESTIONS,
    PEOPLE_STATEMENTS,
    RELATIONS,
    TRAITS,
)
from deltamem_agents.lab.training.phrasings import fill
from deltamem_agents.lab.training.splits import held_out, split_of, split_values
from deltamem_agents.lab.training.values import COMPOSED_VALUES, WORD_VALUES, composed_values, kind_of, values_of

SPLITS = ("train", "validation", "evaluation")
USERS = (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES)
ALL = (*USERS, *TRAITS, *HELD_OUT_TRAITS)
STATEMENTS = (
    *phrasings.STATEMENTS,
    *phrasings.LOOSE_STATEMENTS,
    *phrasings.HELD_OUT_STATEMENTS,
    *phrasings.CHANGES,
    *phrasings.HELD_OUT_CHANGES,
    *PEOPLE_STATEMENTS,
    *(answer for _, answer in sources.ASSISTANT_TELLINGS),
    *(answer for _, answer in sources.HELD_OUT_ASSISTANT_TELLINGS),
    *(answer for _, answer in sources.ASSISTANT_CHANGES),
    *(answer for _, answer in sources.HELD_OUT_ASSISTANT_CHANGES),
    *sources.TOOL_RESULTS,
    *sources.HELD_OUT_TOOL_RESULTS,
    *(phrase for a in ALL for phrase in (*a.told, *a.changed, *(answer for _, answer in a.arranged))),
)
PAIRED = (*phrasings.PAIRED_STATEMENTS, *phrasings.HELD_OUT_PAIRED_STATEMENTS)
IN_QUOTES = (*sources.JSON_RESULTS, *sources.HELD_OUT_JSON_RESULTS)
HELD_OUT_LISTS = {
    "statements": (phrasings.STATEMENTS, phrasings.HELD_OUT_STATEMENTS),
    "questions": (phrasings.QUESTIONS, phrasings.HELD_OUT_QUESTIONS),
    "changes": (phrasings.CHANGES, phrasings.HELD_OUT_CHANGES),
    "pairs": (phrasings.PAIRED_STATEMENTS, phrasings.HELD_OUT_PAIRED_STATEMENTS),
    "told by the assistant": (sources.ASSISTANT_TELLINGS, sources.HELD_OUT_ASSISTANT_TELLINGS),
    "changed by the assistant": (sources.ASSISTANT_CHANGES, sources.HELD_OUT_ASSISTANT_CHANGES),
    "asked of a tool": (sources.TOOL_REQUESTS, sources.HELD_OUT_TOOL_REQUESTS),
    "told by a tool": (sources.TOOL_RESULTS, sources.HELD_OUT_TOOL_RESULTS),
    "told in JSON": (sources.JSON_RESULTS, sources.HELD_OUT_JSON_RESULTS),
    "relations": (RELATIONS, HELD_OUT_RELATIONS),
}


# Values.


@given(st.text(max_size=12))
def test_a_value_is_kept_in_whichever_case_it_is_written(value: str) -> None:
    lower = value.lower()
    assert split_of(value) == split_of(lower)
    if value.upper().lower() == lower:
        assert split_of(value.upper()) == split_of(lower)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_word_of_a_trained_value_is_kept(words: list[str]) -> None:
    whole = split_of(" ".join(words))
    parts = {split_of(word) for word in words}
    if whole == "train":
        assert parts == {"train"}
    if "evaluation" in parts:
        assert whole == "evaluation"


@pytest.mark.parametrize("name", [*WORD_VALUES, *COMPOSED_VALUES])
def test_the_splits_of_a_list_share_nothing_and_lose_nothing(name: str) -> None:
    values = WORD_VALUES[name] if name in WORD_VALUES else composed_values(name)
    assert len(set(values)) == len(values)
    parts = [values_of(name, split) for split in SPLITS]  # type: ignore[arg-type]
    assert sorted(itertools.chain(*parts)) == sorted(values)
    assert parts[2] == tuple(value for value in values if held_out(value))
    assert min(map(len, parts)) >= (5 if name in ("month", "day") else 8)


def test_composed_values_are_thousands_of_their_kind() -> None:
    sizes = {kind: 0 for kind in COMPOSED_VALUES.values()}
    for name, kind in COMPOSED_VALUES.items():
        sizes[kind] += len(composed_values(name))
    assert sizes["number"] > 5000 and sizes["phrase"] > 5000 and sizes["time"] > 1000
    assert sizes["date"] == 365
    forms = {"number": r"\d{2,4}", "date": r"\d{1,2} [A-Z][a-z]+", "time": r"\d{1,2}:\d\d", "phrase": r"\S+( \S+)+"}
    for name, kind in COMPOSED_VALUES.items():
        assert all(re.fullmatch(forms[kind], value) for value in composed_values(name)), name


def test_a_split_of_words_is_of_those_words_alone() -> None:
    words = ["zorgon", "Anna", "7:31", "red mountain bike"]
    assert sorted(itertools.chain(*(split_values(words, split) for split in SPLITS))) == sorted(words)  # type: ignore[arg-type]


# Phrasings.


def test_every_value_stands_behind_a_space_and_ends_where_a_word_does() -> None:
    slots = [(phrase, "{v}") for phrase in (*STATEMENTS, *PAIRED)] + [(phrase, "{v2}") for phrase in PAIRED]
    for phrase, slot in slots:
        before, value, after = phrase.partition(slot)
        assert value and phrase.count(slot) == 1, phrase
        assert before.endswith(" "), phrase
        assert re.match(r"\W|\Z", after), phrase


def test_a_value_in_json_stands_in_quotes() -> None:
    for phrase in IN_QUOTES:
        assert phrase.count('"{v}"') == 1


def test_general_phrasings_name_whose_it_is() -> None:
    loose = (*phrasings.LOOSE_STATEMENTS, *phrasings.LOOSE_QUESTIONS)
    own = (*phrasings.STATEMENTS, *phrasings.CHANGES, *phrasings.QUESTIONS, *PEOPLE_STATEMENTS, *PEOPLE_QUESTIONS)
    kept = (*phrasings.HELD_OUT_STATEMENTS, *phrasings.HELD_OUT_CHANGES, *phrasings.HELD_OUT_QUESTIONS)
    for phrase in (*loose, *own, *kept):
        assert ("{mine}" in phrase.lower()) == (phrase not in loose), phrase


@pytest.mark.parametrize("name", HELD_OUT_LISTS)
def test_what_is_held_out_is_nothing_that_is_trained(name: str) -> None:
    trained, kept = HELD_OUT_LISTS[name]
    assert not set(trained) & set(kept)
    assert len(set(trained)) == len(trained) and len(set(kept)) == len(kept)
    assert len(kept) >= (8 if name in ("statements", "questions", "changes", "told by the assistant") else 2)


def skeleton(phrase: str) -> str:
    """A phrasing without slots, case and punctuation."""
    return " ".join(re.findall(r"\w+", re.sub(r"\{\w+\}", "#", phrase).lower()))


@pytest.mark.parametrize("name", ["statements", "questions"])
def test_no_held_out_phrasing_contains_a_trained_one(name: str) -> None:
    trained, kept = HELD_OUT_LISTS[name]
    cores = {skeleton(phrase) for phrase in trained if len(skeleton(phrase).split()) >= 2}
    for phrase in kept:
        assert not any(f" {core} " in f" {skeleton(phrase)} " for core in cores), phrase


def test_training_has_twice_the_phrasings_it_had() -> None:
    assert len(phrasings.STATEMENTS) >= 48 and len(phrasings.QUESTIONS) >= 44
    assert len(HELD_OUT_ATTRIBUTES) >= 30
    assert sum(kind_of(a.values) == "word" for a in HELD_OUT_ATTRIBUTES) >= 30


@pytest.mark.parametrize("value, said", [("actor", "an actor"), ("baker", "a baker"), ("Oslo", "an Oslo")])
def test_an_article_fits_the_value_behind_it(value: str, said: str) -> None:
    filled = fill("I am a {v}, as {mine} says.", {"v": value, "mine": "my badge"})
    assert filled.text == f"I am {said}, as my badge says."
    assert filled.text[filled.starts["v"] :].startswith(value)
    assert filled.text[filled.starts["mine"] :].startswith("my badge")


def test_filling_leaves_braces_of_json_alone() -> None:
    assert fill('{"{a}": "{v}"}', {"a": "city", "v": "Oslo"}).text == '{"city": "Oslo"}'
    with pytest.raises(KeyError):
        fill("{nobody}", {})


def test_every_phrasing_can_be_filled_for_every_attribute() -> None:
    person = Person("sister", "Anna")
    for attribute in ALL:
        about = attribute.of(person) if attribute in (*TRAITS, *HELD_OUT_TRAITS) else attribute
        slots = about.slots | {"v": "value"}
        own = (*about.told, *about.asked, *about.changed, *about.replies, *itertools.chain(*about.arranged))
        for phrase in (*own, *STATEMENTS[:60], *phrasings.OTHER_PREFIXES):
            assert "{" not in fill(phrase, slots).text


# Attributes.


def test_no_attribute_is_kept_and_trained() -> None:
    trained = {attribute.name for attribute in (*ATTRIBUTES, *TRAITS)}
    kept = {attribute.name for attribute in (*HELD_OUT_ATTRIBUTES, *HELD_OUT_TRAITS)}
    assert not trained & kept
    for attributes in (ATTRIBUTES, HELD_OUT_ATTRIBUTES, TRAITS, HELD_OUT_TRAITS):
        assert len({attribute.name for attribute in attributes}) == len(attributes)


def test_every_kind_of_value_has_attributes_in_and_out_of_training() -> None:
    for attributes in (ATTRIBUTES, HELD_OUT_ATTRIBUTES, TRAITS, HELD_OUT_TRAITS):
        kinds = [kind_of(attribute.values) for attribute in attributes]
        assert {"word", "number", "date", "time", "phrase"} == set(kinds)
    lists = {"word", *WORD_VALUES, *COMPOSED_VALUES}
    assert {attribute.values for attribute in ALL} <= lists


@cache
def asked(attribute: Attribute) -> frozenset[str]:
    """Every question about it, spelled one way."""
    general = (*phrasings.QUESTIONS, *phrasings.HELD_OUT_QUESTIONS)
    texts = (fill(phrase, attribute.slots).text for phrase in (*general, *attribute.asked))
    return frozenset(text.replace("colour", "color").replace("favourite", "favorite") for text in texts)


@pytest.mark.parametrize("attributes", [ATTRIBUTES, HELD_OUT_ATTRIBUTES])
def test_attributes_that_share_a_question_or_a_statement_are_about_the_same_subject(
    attributes: tuple[Attribute, ...],
) -> None:
    for one, other in itertools.combinations(attributes, 2):
        if asked(one) & asked(other) or {*one.told, *one.changed} & {*other.told, *other.changed}:
            assert same_subject(one, other), (one.name, other.name)


def test_the_same_subject_is_asked_for_by_several_names() -> None:
    names = {attribute.name: attribute for attribute in USERS}
    assert all(group <= set(names) for group in SAME_SUBJECT)
    for one, other in (
        ("favourite colour", "favorite color"),
        ("city", "hometown"),
        ("city", "birthplace"),
        ("name", "nickname"),
        ("sister's name", "sister's job"),
        ("birthday", "birthday month"),
    ):
        assert same_subject(names[one], names[other]) and same_subject(names[other], names[one])
    assert not same_subject(names["city"], names["favourite colour"])


def test_people_are_told_apart_unless_they_share_a_name_or_a_relation() -> None:
    city, job = (next(trait for trait in TRAITS if trait.name == name) for name in ("city", "job"))
    tom, anna, sister = Person(name="Tom"), Person("sister", "Anna"), Person("sister")
    assert not same_subject(city.of(tom), city.of(anna))
    assert not same_subject(city.of(tom), job.of(tom))
    assert same_subject(city.of(tom), city.of(tom))
    assert same_subject(city.of(sister), job.of(anna))
    assert same_subject(city.of(Person(name="Anna")), job.of(anna))


def test_a_user_has_one_sister_whether_named_or_told_of() -> None:
    names = next(attribute for attribute in ATTRIBUTES if attribute.name == "sister's name")
    city = next(trait for trait in TRAITS if trait.name == "city")
    assert same_subject(names, city.of(Person("sister", "Anna")))
    assert same_subject(city.of(Person("sister")), names)
    assert not same_subject(city.of(Person("brother")), names)
    assert not same_subject(city.of(Person("sister")), next(a for a in ATTRIBUTES if a.name == "city"))
