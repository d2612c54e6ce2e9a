"""The questions within a text that says other things too, and whether it offers choices for the answer."""

from __future__ import annotations

import re
from itertools import pairwise

_LABEL = re.compile(r"^(?:[\w ]{1,20}:\s+)+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:\w{1,3}\.)+$")
_ASKS = ("?", "？")
_CHOICE = re.compile(r"(?:^|\s)(\(?)([a-dA-D])([).])\s")


def questions_within(text: str) -> list[str]:
    """The sentences that end with a question mark, without a label such as "Question:" before them."""
    return [_LABEL.sub("", each) for each in _sentences(text) if each.endswith(_ASKS)]


def offers_choices(text: str) -> bool:
    """Whether the text letters choices, as in "(a) yes (b) no" or "A. yes B. no".

    Numbers do not count: numbered lines are more often instructions.
    """
    marks = [(before + behind, number.lower()) for before, number, behind in _CHOICE.findall(f"{text} ")]
    return any(style == other and first + second == "ab" for (style, first), (other, second) in pairwise(marks))


def _sentences(text: str) -> list[str]:
    found: list[str] = []
    for part in filter(None, map(str.strip, _SENTENCE_END.split(text))):
        # A period after a short word, as in "Mr. Oduya" or "3 p.m. yet", ends no sentence.
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return found
