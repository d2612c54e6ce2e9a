"""Laws of values, phrasings and attributes: training has nothing held out, and attributes cannot be confused."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.lab.corpus.attributes import Attribute, Person
from deltamem_agents.lab.corpus.facts import attributes, same_subject
from deltamem_agents.lab.corpus.people import relations, traits
from deltamem_agents.lab.corpus.phrasings import fill, phrasings, replies
from deltamem_agents.lab.corpus.splits import held_out, split_of, split_values
from deltamem_agents.lab.corpus.tables import corpus_table
from deltamem_agents.lab.corpus.values import COMPOSED_VALUES, composed_values, kind_of, values_of, word_values

TRAINED, KEPT = phrasings(), phrasings(held_out=True)
ATTRIBUTES, HELD_OUT_ATTRIBUTES = attributes(), attributes(held_out=True)
TRAITS, HELD_OUT_TRAITS = traits(), traits(held_out=True)
SAME_SUBJECT = corpus_table("same_subject")
SPLITS = ("train", "validation", "evaluation")
USERS = (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES)
ALL = (*USERS, *TRAITS, *HELD_OUT_TRAITS)
STATEMENTS = (
    *TRAINED.statements,
    *TRAINED.loose_statements,
    *KEPT.statements,
    *TRAINED.changes,
    *KEPT.changes,
    *TRAINED.people_statements,
    *(answer for _, answer in TRAINED.assistant_tellings),
    *(answer for _, answer in KEPT.assistant_tellings),
    *(answer for _, answer in TRAINED.assistant_changes),
    *(answer for _, answer in KEPT.assistant_changes),
    *TRAINED.tool_results,
    *KEPT.tool_results,
    *(phrase for a in ALL for phrase in (*a.told, *a.changed, *(answer for _, answer in a.arranged))),
)
PAIRED = (*TRAINED.paired_statements, *KEPT.paired_statements)
IN_QUOTES = (*TRAINED.json_results, *KEPT.json_results)
HELD_OUT_LISTS = {
    "statements": (TRAINED.statements, KEPT.statements),
    "questions": (TRAINED.questions, KEPT.questions),
    "changes": (TRAINED.changes, KEPT.changes),
    "pairs": (TRAINED.paired_statements, KEPT.paired_statements),
    "told by the assistant": (TRAINED.assistant_tellings, KEPT.assistant_tellings),
    "changed by the assistant": (TRAINED.assistant_changes, KEPT.assistant_changes),
    "asked of a tool": (TRAINED.tool_requests, KEPT.tool_requests),
    "told by a tool": (TRAINED.tool_results, KEPT.tool_results),
    "told in JSON": (TRAINED.json_results, KEPT.json_results),
    "relations": (relations(), relations(held_out=True)),
}


# Values.


@given(st.text(max_size=12))
def test_a_values_split_ignores_case(value: str) -> None:
    lower = value.lower()
    assert split_of(value) == split_of(lower)
    if value.upper().lower() == lower:
        assert split_of(value.upper()) == split_of(lower)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_word_of_a_training_value_is_held_out(words: list[str]) -> None:
    whole = split_of(" ".join(words))
    parts = {split_of(word) for word in words}
    if whole == "train":
        assert parts == {"train"}
    if "evaluation" in parts:
        assert whole == "evaluation"


@pytest.mark.parametrize("name", [*word_values(), *COMPOSED_VALUES])
def test_the_splits_of_a_list_are_disjoint_and_complete(name: str) -> None:
    values = word_values()[name] if name in word_values() else composed_values(name)
    assert len(set(values)) == len(values)
    parts = [values_of(name, split) for split in SPLITS]  # type: ignore[arg-type]
    assert sorted(itertools.chain(*parts)) == sorted(values)
    assert parts[2] == tuple(value for value in values if held_out(value))
    assert min(map(len, parts)) >= (5 if name in ("month", "day") else 8)


def test_there_are_thousands_of_composed_values_of_each_kind() -> None:
    sizes = {kind: 0 for kind in COMPOSED_VALUES.values()}
    for name, kind in COMPOSED_VALUES.items():
        sizes[kind] += len(composed_values(name))
    assert sizes["number"] > 5000 and sizes["phrase"] > 5000 and sizes["time"] > 1000
    assert sizes["date"] == 365
    forms = {"number": r"\d{2,4}", "date": r"\d{1,2} [A-Z][a-z]+", "time": r"\d{1,2}:\d\d", "phrase": r"\S+( \S+)+"}
    for name, kind in COMPOSED_VALUES.items():
        assert all(re.fullmatch(forms[kind], value) for value in composed_values(name)), name


def test_splits_of_given_words_contain_just_these_words() -> None:
    words = ["zorgon", "Anna", "7:31", "red mountain bike"]
    assert sorted(itertools.chain(*(split_values(words, split) for split in SPLITS))) == sorted(words)  # type: ignore[arg-type]


# Phrasings.


def test_every_value_follows_a_space_and_ends_at_a_word_boundary() -> None:
    slots = [(phrase, "{v}") for phrase in (*STATEMENTS, *PAIRED)] + [(phrase, "{v2}") for phrase in PAIRED]
    for phrase, slot in slots:
        before, value, after = phrase.partition(slot)
        assert value and phrase.count(slot) == 1, phrase
        assert before.endswith(" "), phrase
        assert re.match(r"\W|\Z", after), phrase


def test_a_value_in_json_is_quoted() -> None:
    for phrase in IN_QUOTES:
        assert phrase.count('"{v}"') == 1


def test_general_phrasings_name_the_owner() -> None:
    loose = (*TRAINED.loose_statements, *TRAINED.loose_questions)
    own = (
        *TRAINED.statements,
        *TRAINED.changes,
        *TRAINED.questions,
        *TRAINED.people_statements,
        *TRAINED.people_questions,
    )
    kept = (*KEPT.statements, *KEPT.changes, *KEPT.questions)
    for phrase in (*loose, *own, *kept):
        assert ("{mine}" in phrase.lower()) == (phrase not in loose), phrase


@pytest.mark.parametrize("name", HELD_OUT_LISTS)
def test_held_out_lists_share_nothing_with_training(name: str) -> None:
    trained, kept = HELD_OUT_LISTS[name]
    assert not set(trained) & set(kept)
    assert len(set(trained)) == len(trained) and len(set(kept)) == len(kept)
    assert len(kept) >= (8 if name in ("statements", "questions", "changes", "told by the assistant") else 2)


def skeleton(phrase: str) -> str:
    """A phrasing in lower case, without slots and punctuation."""
    return " ".join(re.findall(r"\w+", re.sub(r"\{\w+\}", "#", phrase).lower()))


@pytest.mark.parametrize("name", ["statements", "questions"])
def test_no_held_out_phrasing_contains_a_trained_one(name: str) -> None:
    trained, kept = HELD_OUT_LISTS[name]
    cores = {skeleton(phrase) for phrase in trained if len(skeleton(phrase).split()) >= 2}
    for phrase in kept:
        assert not any(f" {core} " in f" {skeleton(phrase)} " for core in cores), phrase


def test_training_has_enough_phrasings() -> None:
    assert len(TRAINED.statements) >= 48 and len(TRAINED.questions) >= 44
    assert len(HELD_OUT_ATTRIBUTES) >= 30
    assert sum(kind_of(a.values) == "word" for a in HELD_OUT_ATTRIBUTES) >= 30


@pytest.mark.parametrize("value, said", [("actor", "an actor"), ("baker", "a baker"), ("Oslo", "an Oslo")])
def test_an_article_fits_the_value_after_it(value: str, said: str) -> None:
    filled = fill("I am a {v}, as {mine} says.", {"v": value, "mine": "my badge"})
    assert filled.text == f"I am {said}, as my badge says."
    assert filled.text[filled.starts["v"] :].startswith(value)
    assert filled.text[filled.starts["mine"] :].startswith("my badge")


def test_filling_keeps_the_braces_of_json() -> None:
    assert fill('{"{a}": "{v}"}', {"a": "city", "v": "Oslo"}).text == '{"city": "Oslo"}'
    with pytest.raises(KeyError):
        fill("{nobody}", {})


def test_every_phrasing_can_be_filled_for_every_attribute() -> None:
    person = Person("sister", "Anna")
    for attribute in ALL:
        about = attribute.of(person) if attribute in (*TRAITS, *HELD_OUT_TRAITS) else attribute
        slots = about.slots | {"v": "value"}
        own = (*about.told, *about.asked, *about.changed, *about.replies, *itertools.chain(*about.arranged))
        for phrase in (*own, *STATEMENTS[:60], *replies().beginnings):
            assert "{" not in fill(phrase, slots).text


# Attributes.


def test_no_attribute_is_both_trained_and_held_out() -> None:
    trained = {attribute.name for attribute in (*ATTRIBUTES, *TRAITS)}
    kept = {attribute.name for attribute in (*HELD_OUT_ATTRIBUTES, *HELD_OUT_TRAITS)}
    assert not trained & kept
    for told in (ATTRIBUTES, HELD_OUT_ATTRIBUTES, TRAITS, HELD_OUT_TRAITS):
        assert len({attribute.name for attribute in told}) == len(told)


def test_every_kind_of_value_has_trained_and_held_out_attributes() -> None:
    for told in (ATTRIBUTES, HELD_OUT_ATTRIBUTES, TRAITS, HELD_OUT_TRAITS):
        kinds = [kind_of(attribute.values) for attribute in told]
        assert {"word", "number", "date", "time", "phrase"} == set(kinds)
    lists = {"word", *word_values(), *COMPOSED_VALUES}
    assert {attribute.values for attribute in ALL} <= lists


@cache
def asked(attribute: Attribute) -> frozenset[str]:
    """Every question about the attribute, in American spelling."""
    general = (*TRAINED.questions, *KEPT.questions)
    texts = (fill(phrase, attribute.slots).text for phrase in (*general, *attribute.asked))
    return frozenset(text.replace("colour", "color").replace("favourite", "favorite") for text in texts)


@pytest.mark.parametrize("told", [ATTRIBUTES, HELD_OUT_ATTRIBUTES])
def test_attributes_that_share_a_phrasing_are_the_same_subject(
    told: tuple[Attribute, ...],
) -> None:
    for one, other in itertools.combinations(told, 2):
        if asked(one) & asked(other) or {*one.told, *one.changed} & {*other.told, *other.changed}:
            assert same_subject(one, other), (one.name, other.name)


def test_several_names_can_mean_the_same_subject() -> None:
    names = {attribute.name: attribute for attribute in USERS}
    assert all(set(group) <= set(names) for group in SAME_SUBJECT)
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


def test_people_are_distinct_unless_they_share_a_name_or_relation() -> None:
    city, job = (next(trait for trait in TRAITS if trait.name == name) for name in ("city", "job"))
    tom, anna, sister = Person(name="Tom"), Person("sister", "Anna"), Person("sister")
    assert not same_subject(city.of(tom), city.of(anna))
    assert not same_subject(city.of(tom), job.of(tom))
    assert same_subject(city.of(tom), city.of(tom))
    assert same_subject(city.of(sister), job.of(anna))
    assert same_subject(city.of(Person(name="Anna")), job.of(anna))


def test_the_users_sister_is_one_person_named_or_not() -> None:
    names = next(attribute for attribute in ATTRIBUTES if attribute.name == "sister's name")
    city = next(trait for trait in TRAITS if trait.name == "city")
    assert same_subject(names, city.of(Person("sister", "Anna")))
    assert same_subject(city.of(Person("sister")), names)
    assert not same_subject(city.of(Person("brother")), names)
    assert not same_subject(city.of(Person("sister")), next(a for a in ATTRIBUTES if a.name == "city"))
