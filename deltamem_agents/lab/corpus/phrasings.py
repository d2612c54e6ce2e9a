"""How facts are told and asked in general, whatever they are about.

Slots: {mine} is "my city" or "Tom's city" as the user says it, {yours} the same as the assistant says it,
{Mine} and {Yours} with a capital; {who}, {they} are the person alone; {a} is the bare attribute, {of} whose it is,
"user" or a person's name, {v} the value. A second fact in the same sentence has {mine2} and {v2}. A value always stands
behind a space, so that it has the tokens that it has in a reply, and never begins a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from deltamem_agents.lab.corpus.tables import corpus_table

ANSWER_PREFIX = "{Yours} is"
"""How a reply begins that names what was asked."""

Texts: TypeAlias = tuple[str, ...]
Exchanges: TypeAlias = tuple[tuple[str, str], ...]
"""What the user asks, and what is answered."""


@dataclass(frozen=True)
class Phrasings:
    """Words for facts: those that are trained on, or those kept for evaluation, which are built otherwise.

    `loose` ones leave open whose a fact is: only where nothing is told about anybody else. `people` ones have {who}.
    Around a statement or question may stand `openers`, `closers` and `question_closers`. In `json_results` values stand
    in quotes, which gives them other tokens than in a reply. Held-out phrasings have none of the former two, and stand
    alone.
    """

    statements: Texts
    paired_statements: Texts
    changes: Texts
    questions: Texts
    assistant_tellings: Exchanges
    assistant_changes: Exchanges
    tool_requests: Texts
    tool_results: Texts
    json_results: Texts
    loose_statements: Texts = ()
    loose_questions: Texts = ()
    people_statements: Texts = ()
    people_questions: Texts = ()
    openers: Texts = ()
    closers: Texts = ()
    question_closers: Texts = ()


@cache
def phrasings(*, held_out: bool = False) -> Phrasings:
    return Phrasings(**corpus_table("phrasings", held_out=held_out))


@dataclass(frozen=True)
class Replies:
    """What the assistant says to what it was told, and how its replies to questions begin.

    `echoes` repeat what was told. `chatty` replies are as long and kind as those of small models. `beginnings` do not
    name what was asked first; those `told_by_user` are true only where the user told it.
    """

    acknowledgements: Texts
    echoes: Texts
    chatty: Texts
    chatty_echoes: Texts
    after_tools: Texts
    after_tools_echoes: Texts
    beginnings: Texts
    beginnings_told_by_user: Texts


@cache
def replies() -> Replies:
    return Replies(**corpus_table("replies"))


@dataclass(frozen=True)
class Filled:
    """A phrasing with its slots filled. `starts` says at which character each slot's text begins."""

    text: str
    starts: Mapping[str, int]


def fill(phrasing: str, slots: Mapping[str, str]) -> Filled:
    """The phrasing with its slots filled; "a {v}" becomes "an orange" where it has to.

    Braces that hold no plain name stay, as JSON has them. Raises KeyError for a slot that is not given.
    """
    text, cursor = "", 0
    starts: dict[str, int] = {}
    for slot in re.finditer(r"\{(\w+)\}", phrasing):
        text += phrasing[cursor : slot.start()]
        value = slots[slot[1]]
        if slot[1] in ("v", "v2") and re.search(r"\b[aA] \Z", text) and value[:1].lower() in "aeiou":
            text = f"{text[:-1]}n "
        starts.setdefault(slot[1], len(text))
        text += value
        cursor = slot.end()
    return Filled(text + phrasing[cursor:], starts)
