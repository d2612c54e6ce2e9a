"""The questions within a text that says other things too, such as instructions for the reply."""

from __future__ import annotations

import re

_LABEL = re.compile(r"^[\w ]{1,20}:\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:\w{1,3}\.)+$")
_ASKS = ("?", "？")


def questions_within(text: str) -> str:
    """The sentences that end with a question mark, without a label such as "Question:" before them.

    Empty if there are none, or if the text consists of nothing else.
    """
    sentences = _sentences(text)
    asking = [_LABEL.sub("", each) for each in sentences if each.endswith(_ASKS)]
    found = " ".join(asking)
    return "" if found == " ".join(sentences) else found


def _sentences(text: str) -> list[str]:
    found: list[str] = []
    for part in filter(None, map(str.strip, _SENTENCE_END.split(text))):
        # A period after a short word, as in "Mr. Oduya" or "3 p.m. yet", ends no sentence.
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return found
