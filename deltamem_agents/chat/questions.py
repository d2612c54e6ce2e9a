"""The questions within a text that says other things too, and whether it offers choices for the answer."""

from __future__ import annotations

import re
from itertools import pairwise

SHORT_QUESTION = 6
"""A question with fewer words may need the sentence before it to be understood."""

_LABEL = re.compile(r"^(?:[\w ]{1,20}:\s+)+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:\w{1,3}\.)+$")
_ASKS = ("?", "？")
_CHOICE = re.compile(r"(?:^|\s)(\(?)([a-dA-D])([).])\s")


def questions_within(text: str) -> list[str]:
    """The sentences that end with a question mark, without a label such as "Question:" before them."""
    return [_LABEL.sub("", each) for each in _sentences(text) if each.endswith(_ASKS)]


def asking_part(text: str) -> str:
    """The questions of a text, and the sentence before a short one, as in "I forgot Tom's job. What is it?"

    The whole text if it has no question mark.
    """
    sentences = _sentences(text)
    asks = [each.endswith(_ASKS) for each in sentences]
    short = [ask and len(each.split()) < SHORT_QUESTION for ask, each in zip(asks, sentences, strict=True)]
    kept = [each for each, ask, leads in zip(sentences, asks, [*short[1:], False], strict=False) if ask or leads]
    return " ".join(kept) if any(asks) else text


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
