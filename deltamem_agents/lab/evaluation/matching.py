"""When a reply is right: words compared as they stand, behind a given beginning or anywhere in a free reply."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class Match(NamedTuple):
    """Whether the answer's `first` word is right, and whether the `whole` answer is."""

    first: bool
    whole: bool


def words(text: str) -> list[str]:
    """What stands between spaces and punctuation, as written. A number like 3.5 or 10:30 is one word."""
    return [word for word, _ in _places(text)]


def match(answer: str, reply: str, *, begun: bool) -> Match:
    """`begun`: the reply goes on from a beginning that was given, so that the answer is all it has to say.

    The whole answer is right when its words come first and no other word follows before the next punctuation.
    In a free reply it is right wherever its words stand one after another.
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
    """Whether the words of `value` stand one after another somewhere in `reply`. False for a value without words."""
    wanted, said = words(value), words(reply)
    return bool(wanted) and any(said[at : at + len(wanted)] == wanted for at in range(len(said)))


def _places(text: str) -> list[tuple[str, int]]:
    """Each word with where it ends, in the text as normalised."""
    text = unicodedata.normalize("NFC", text)
    inside = {found.start() for found in re.finditer(r"(?<=\d)[.,:/](?=\d)", text)}
    kept = "".join(letter if at in inside or _in_word(letter) else " " for at, letter in enumerate(text))
    runs = re.finditer(r"[^\s]+", kept)
    return [(run[0], run.end()) for run in runs if any(letter.isalnum() for letter in run[0])]


def _in_word(letter: str) -> bool:
    # Marks belong to the letter before them; where no composed letter exists they stand by themselves.
    return letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")
