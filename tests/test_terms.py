"""Laws of terms: one number per word, whatever its case, accents and ending."""

from __future__ import annotations

import pytest

from deltamem_agents.chat.terms import opening_words, owners_of, term_of, terms_of, word_number


def test_case_accents_and_endings_do_not_change_a_term() -> None:
    assert terms_of("Café") == terms_of("cafe") == terms_of("CAFE\u0301")
    assert terms_of("vegetarian") == terms_of("Vegetarians")
    assert terms_of("dog") != terms_of("cat")


def test_singular_and_plural_of_a_short_word_are_one_term() -> None:
    assert terms_of("lives plays dogs") == terms_of("live play dog")
    assert terms_of("his") != terms_of("hi") and terms_of("glass") != terms_of("glas")


def test_each_word_is_a_term_and_punctuation_is_none() -> None:
    assert len(terms_of("My dog's name -- it is 'Rex'!")) == 7
    assert terms_of("...") == terms_of("") == []


def test_a_term_is_the_same_in_every_process() -> None:
    assert terms_of("dog") == [2167159165]


RELATIONS, OPENERS = ({word_number(word) for word in words} for words in (("sister", "boss"), ("my", "is", "we")))


@pytest.mark.parametrize(
    ("text", "owners"),
    [
        ("My sister lives in Oslo.", ["sister"]),
        ("My sisters met Tom's boss.", ["sister", "tom", "boss"]),
        ("Tom moved to Lyon. My car is red.", ["tom"]),
        ("We saw ZOË’s flat.", ["zoe"]),
        ("My favourite colour is teal.", []),
        ("It's late. Let's say that's it.", []),
        ("My dog's name is Rex.", []),
        ("My's is no name.", []),
        ("Is Lyon far?", []),
        ("Friendly is my password.", ["friendly"]),  # A first word that nobody else begins with may be a name.
        ("My password is Bossy.", []),
        ("", []),
    ],
)
def test_owners_are_relations_and_names_that_own_or_begin_a_sentence(text: str, owners: list[str]) -> None:
    assert owners_of(text, RELATIONS, OPENERS) == set(map(term_of, owners))
    assert owners_of(text, RELATIONS, OPENERS) <= set(terms_of(text))


def test_a_question_names_its_people_anywhere() -> None:
    assert owners_of("Where does Tom live?", RELATIONS, OPENERS, question=True) == {term_of("tom")}
    assert owners_of("Where does he live in Rome, or on Monday?", RELATIONS, OPENERS, question=True) == set()
    assert owners_of("I met Tom in Lyon.", RELATIONS, {word_number("i")}) == set()
    assert owners_of("What am I? Is My car red?", RELATIONS, {*OPENERS, word_number("what")}, question=True) == set()


def test_opening_words_begin_sentences_and_own_nothing() -> None:
    assert opening_words("Hello. \"Tom is here: My dog\nAnna's cat. Is it?") == ["hello", "tom", "my", "is"]
    assert opening_words("") == []
