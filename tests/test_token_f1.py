"""Laws of the token F1: a symmetric score of stemmed words as multisets."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.token_f1 import listed_f1, normalised, porter_stem, token_f1

texts = st.text("abdost ,.!AN", max_size=16)


@pytest.mark.parametrize(
    ("reply", "gold", "expected"),
    [
        ("Adoption agencies", "adoption agencies", 1.0),
        ("the dogs", "a dog", 1.0),
        ("She was running and jumping.", "run", 0.4),
        ("7 May 2023", "May 7, 2023", 1.0),
        ("mental-health", "mental health", 0.0),
        ("mentalhealth", "mental-health", 1.0),
        ("Oslo", "Rome", 0.0),
        ("", "Rome", 0.0),
        ("", "", 0.0),
        ("The and a", "the", 0.0),
        ("dog dog", "dog", 2 / 3),
        ("dog dog", "dog dog cat", 0.8),
    ],
)
def test_f1_equals_values_computed_by_hand(reply: str, gold: str, expected: float) -> None:
    assert token_f1(reply, gold) == pytest.approx(expected)


@given(texts, texts)
def test_f1_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    found = token_f1(one, other)
    assert found == token_f1(other, one)
    assert 0 <= found <= 1


@given(texts)
def test_f1_ignores_case_articles_and_punctuation(text: str) -> None:
    expected = float(bool(normalised(text)))
    assert token_f1(text, text) == expected
    assert token_f1(f"The {text.upper()}!", text) == expected


@given(texts)
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_stems_are_those_of_porters_algorithm() -> None:
    stem = porter_stem()
    assert [stem(word) for word in ("agencies", "agency", "relational", "hopping")] == [
        "agenc",
        "agenc",
        "relat",
        "hop",
    ]


def test_a_lists_f1_is_the_mean_of_the_best_over_gold_items() -> None:
    assert listed_f1("dog, cat", "cats, dogs") == 1.0
    assert listed_f1("dogs", "cat, dog") == 0.5
    assert listed_f1("dog, cat, bird, fish", "cat") == 1.0
    assert listed_f1("a big dog", "dog, big dog") == pytest.approx((2 / 3 + 1) / 2)


def test_without_the_stemmer_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    porter_stem.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk.stem", None)
    with pytest.raises(ConfigError, match=r"Porter stemmer.*deltamem-agents\[eval\]"):
        token_f1("dogs", "dog")
    monkeypatch.undo()
    assert token_f1("dogs", "dog") == 1.0
