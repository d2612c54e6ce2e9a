"""The words of a text as numbers, for matching. Words with the same beginning have the same number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from zlib import crc32

STEM_LETTERS = 5
"""Number of leading letters that identify a word, so that most languages' endings do not matter."""

LEAST_PLURAL = 4
"""Least number of letters of a word whose final s is ignored: "lives" is "live", "his" stays."""

_OWNING = re.compile(r"\b([A-Z]\w+)['’]s\b")
_NO_OWNERS = frozenset(
    ("it", "that", "this", "he", "she", "who", "what", "there", "here", "where", "when", "how", "let", "today")
)
"""Words before 's that name nobody."""

_SUBJECT = re.compile(r"(?:^|(?<=[.!?:])\s+|\n)[\"'(]*([A-Z]\w+)\s+[a-z]")
_WITHIN = re.compile(r"(?<=[a-z,] )(?<! in )(?<! at )(?<! on )(?<! to )(?<! from )([A-Z][a-z]\w*)")
"""Capitalised words within a sentence. Behind these prepositions most are places and days, and not people."""


def terms_of(text: str) -> list[int]:
    """A number for each word, in order. Case, accents and endings are ignored."""
    return [term_of(word) for word in re.findall(r"\w+", _plain(text))]


def term_of(word: str) -> int:
    """The number of a lower-case word without accents."""
    return crc32(_without_s(word)[:STEM_LETTERS].encode())


def owners_of(
    text: str, relations: Collection[int], openers: Collection[int], *, question: bool = False
) -> frozenset[int]:
    """The terms of the people that a text names as owners: "sister" and "Tom" in "My sister met Tom's boss."

    These are words in `relations`, and capitalised words that are not in `openers` and stand before 's or begin a
    sentence; in a question, nearly anywhere. A statement's other names may be what it tells. Both hold numbers of
    `word_number`.
    """
    found = {word for word in set(re.findall(r"\w+", _plain(text))) if word_number(word) in relations}
    names = (*_OWNING.findall(text), *_SUBJECT.findall(text), *(_WITHIN.findall(text) if question else ()))
    named = set(map(_plain, names)) - _NO_OWNERS
    return frozenset(map(term_of, found | {word for word in named if word_number(word) not in openers}))


def word_number(word: str) -> int:
    """A number for a whole lower-case word without accents, the same in singular and plural."""
    return crc32(_without_s(word).encode())


def opening_words(text: str) -> list[str]:
    """The first words of the text's sentences, in lower case, unless they are followed by 's."""
    return re.findall(r"(?:^|(?<=[.!?:])\s+|\n)[\"'(]*(\w+)\b(?!['’]s\b)", _plain(text))


def _without_s(word: str) -> str:
    return word[:-1] if len(word) >= LEAST_PLURAL and word.endswith("s") and not word.endswith("ss") else word


def _plain(text: str) -> str:
    plain = text.casefold()
    if plain.isascii():
        return plain
    folded = unicodedata.normalize("NFKD", plain)
    return "".join(letter for letter in folded if not unicodedata.combining(letter))
