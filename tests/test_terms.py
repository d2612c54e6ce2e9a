"""Laws of terms: one number per word, whatever its case, accents and ending."""

from __future__ import annotations

from deltamem_agents.chat.terms import terms_of


def test_case_accents_and_endings_do_not_change_a_term() -> None:
    assert terms_of("Café") == terms_of("cafe") == terms_of("CAFE\u0301")
    assert terms_of("vegetarian") == terms_of("Vegetarians")
    assert terms_of("dog") != terms_of("cat")


def test_each_word_is_a_term_and_punctuation_is_none() -> None:
    assert len(terms_of("My dog's name -- it is 'Rex'!")) == 7
    assert terms_of("...") == terms_of("") == []


def test_a_term_is_the_same_in_every_process() -> None:
    assert terms_of("dog") == [2167159165]
