"""Laws of quoted words: a reply that has said a told word whole neither continues nor repeats it at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import Message
from deltamem_agents.inference.quoted_words import QuotedWords, Spelling
from real_model import in_each_precision, real_engine
from tiny_tokenizers import byte_bpe, sentence_bpe

PIECES = ("", " Bram", "ble", " is", ".", "-", "44", "71", " cat", "Bram", "'s", " the")
SPELLING = Spelling(PIECES)
TELLING = "My cat Bramble, the one at 4471."
TOKENIZERS = {"bytes": byte_bpe(None), "sentence pieces": sentence_bpe(None)}


def spans(text: str, *parts: str) -> list[tuple[int, int]]:
    return [(text.index(part), text.index(part) + len(part)) for part in parts]


def barred(said: str, words: QuotedWords) -> set[str]:
    """`said`: pieces of a reply, separated by |. The pieces that should not follow."""
    found = words.barred([PIECES.index(piece) for piece in said.split("|")])
    return set() if found is None else {PIECES[token] for token in found.tolist()}


CONTINUING = {"ble", "44", "71", "Bram"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (" cat| Bram|ble", CONTINUING | {" Bram"}),
        ("Bram|ble", CONTINUING | {"Bram"}),
        (" is|-|44|71", CONTINUING | {"44"}),
        (" Bram", set()),
        (" Bram|ble|.", set()),
        (" Bram|ble| is", set()),
        (" Bram|ble|44", set()),
        (" cat", set()),
        ("", set()),
    ],
)
def test_only_a_whole_quoted_word_is_neither_continued_nor_repeated(said: str, expected: set[str]) -> None:
    words = QuotedWords(SPELLING, [(TELLING, spans(TELLING, "ram", "4471"))])
    assert barred(said, words) == expected


def test_a_word_that_begins_a_longer_one_of_the_texts_may_continue() -> None:
    other = "Bramblewood is a town."
    words = QuotedWords(SPELLING, [(TELLING, spans(TELLING, "Bramble")), (other, [])])
    assert barred(" Bram|ble", words) == set()


def test_a_word_that_a_text_says_twice_may_be_repeated() -> None:
    twice = "We flew to Bramble Bramble."
    words = QuotedWords(SPELLING, [(twice, spans(twice, "Bramble"))])
    assert barred(" Bram|ble", words) == CONTINUING


def test_case_does_not_matter() -> None:
    words = QuotedWords(SPELLING, [("bramble", [(0, 7)])])
    assert barred(" Bram|ble", words) == CONTINUING | {" Bram"}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text("abz AZ09.,'-\n", min_size=1, max_size=30))
def test_the_pieces_of_a_text_are_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    spelling = Spelling.of(tokenizer, len(tokenizer))
    ids = tokenizer(f"x{text}", add_special_tokens=False).input_ids
    assert "".join(spelling.pieces[token] for token in ids).lstrip(" ") == f"x{text}"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_logit_has_a_piece(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    whole = Spelling.of(tokenizer, len(tokenizer))
    assert Spelling.of(tokenizer, len(tokenizer) + 3).pieces == (*whole.pieces, "", "", "")
    assert Spelling.of(tokenizer, len(tokenizer) - 3).pieces == whole.pieces[:-3]
    assert not any(whole.pieces[token][:1].isspace() for token in whole.goes_on.tolist())


FACTS = {
    "I have a cat called Bramble.": ("What is my cat's name?", "Your cat's name is", "Bramble"),
    "I was told today that my gym is Krist.": ("I forgot my gym. What is it?", "Your gym is", "Krist"),
    "The router's name is Cic.": ("Do you remember my router's name?", "Your router's name is", "Cic"),
    "My favourite poem is Cameron.": ("What is my favourite poem?", "Your favourite poem is", "Cameron"),
}


@pytest.mark.model
@in_each_precision
def test_a_told_word_is_quoted_whole(precision: str) -> None:
    engine = real_engine(precision)
    memories = engine.remember_batch([[Message("user", told)] for told in FACTS])
    asked = [[Message("user", ask), Message("assistant", begun)] for ask, begun, _ in FACTS.values()]
    replies = engine.recalled_replies(engine.recall_batch(memories, asked), asked, max_tokens=4)
    assert [reply.strip().rstrip(".") for reply in replies] == [value for _, _, value in FACTS.values()]
