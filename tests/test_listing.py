"""Laws of the receipt of a forgotten statement: it names the other statements that say the same."""

from __future__ import annotations

import re

import pytest

from deltamem_agents.snapshots import Statement
from deltamem_agents.turns import listing


class Marked(Statement):
    """A statement of which the parts in brackets were written strongly."""

    strengths = property(lambda self: self.given)  # type: ignore[assignment]


def marked(text: str) -> Statement:
    pieces = re.split(r"([\[\]])", text)
    plain, spans, given, strong = "", [], [], False
    for piece in pieces:
        if piece in ("[", "]"):
            strong = piece == "["
        elif piece:
            spans.append((len(plain), len(plain) + len(piece)))
            given.append(0.9 if strong else 0.0)
            plain += piece
    found = Marked(text, "user", plain, "t", 0, "", tokens=(0,) * len(spans), spans=tuple(spans))
    object.__setattr__(found, "given", tuple(given))
    return found


@pytest.mark.parametrize(
    ("forgotten", "others", "alike"),
    [
        pytest.param("The code is 4[47]1.", ["4471 is 4471.", "It is 4472."], ["4471 is 4471."], id="half a number"),
        pytest.param("I live in [Os]lo.", ["OSLO!", "Os x"], ["OSLO!"], id="half a word"),
        pytest.param(
            "She [plays the cello].",
            ["Plays the cello?", "A cello.", *(f"This is the {n}th." for n in range(9))],
            ["Plays the cello?", "A cello."],
            id="a word that most statements have",
        ),
        pytest.param("It is [42].", ["42 of them"], [], id="too short to tell anything"),
        pytest.param("Just so.", ["just so. ", "Just as well."], ["just so. "], id="the same text"),
        pytest.param("It is 4471.", ["The code is [4471].", "[Noted]."], ["The code is [4471]."], id="the reply to it"),
        pytest.param("", ["", "[Noted]."], [], id="no text is kept"),
    ],
)
def test_statements_that_share_a_strongly_written_word_are_alike(
    forgotten: str, others: list[str], alike: list[str]
) -> None:
    found = listing._alike(marked(forgotten), [marked(text) for text in others])
    assert [each.text for each in found] == [text.translate({91: "", 93: ""}) for text in alike]
