"""Decides whether a reply is right, by exact comparison of words.

A reply whose beginning was given must continue with the answer. A free reply may contain it anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class Match(NamedTuple):
    """Whether the answer's `first` word and the `whole` answer are right."""

    first: bool
    whole: bool


def words(text: str) -> list[str]:
    """The words between spaces and punctuation, as written. A number such as 3.5 or 10:30 is one word."""
    return [word for word, _ in _places(text)]


def match(answer: str, reply: str, *, begun: bool) -> Match:
    """Whether `reply` gives `answer`.

    `begun`: the reply's beginning was given, so it should continue with the answer. The whole answer is then right if
    its words come first and no other word follows before the next punctuation. In a free reply it is right if its words
    occur anywhere in sequence.
    """
    expected, said = words(answer), _places(reply)
    spoken = [word for word, _ in said]
    if not begun:
        return Match(expected[0] in spoken, contains(reply, answer))
    first, count = spoken[:1] == expected[:1], len(expected)
    if spoken[:count] != expected:
        return Match(first, False)
    behind = unicodedata.normalize("NFC", reply)[said[count - 1][1] :].lstrip()
    return Match(first, not behind or not _in_word(behind[0]))


def contains(reply: str, value: str) -> bool:
    """Whether the words of `value` occur in sequence anywhere in `reply`. False for a value without words."""
    wanted, said = words(value), words(reply)
    return bool(wanted) and any(said[at : at + len(wanted)] == wanted for at in range(len(said)))


def _places(text: str) -> list[tuple[str, int]]:
    """Each word with its end position in the NFC-normalised text."""
    text = unicodedata.normalize("NFC", text)
    inside = {found.start() for found in re.finditer(r"(?<=\d)[.,:/](?=\d)", text)}
    kept = "".join(letter if at in inside or _in_word(letter) else " " for at, letter in enumerate(text))
    runs = re.finditer(r"[^\s]+", kept)
    return [(run[0], run.end()) for run in runs if any(letter.isalnum() for letter in run[0])]


def _in_word(letter: str) -> bool:
    # A combining mark belongs to the letter before it. It stays separate where no composed letter exists.
    return letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")
