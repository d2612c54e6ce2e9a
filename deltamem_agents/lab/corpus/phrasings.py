"""General phrasings for statements and questions about any attribute.

Slots:

- {mine}: "my city" or "Tom's city", as the user says it. {yours}: as the assistant says it. {Mine}, {Yours}: the same
  with a capital.
- {who}, {they}: the person alone, as the user and as the assistant says it.
- {a}: the bare attribute. {of}: its owner, "user" or a person's name. {v}: the value.
- {mine2}, {v2}: of a second fact in the same sentence.

A value always follows a space and never begins a message, so that it has the same tokens as in a reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from deltamem_agents.lab.corpus.tables import corpus_table

ANSWER_PREFIX = "{Yours} is"
"""Beginning of a reply that repeats what was asked for."""

Texts: TypeAlias = tuple[str, ...]
Exchanges: TypeAlias = tuple[tuple[str, str], ...]
"""(user, assistant) pairs."""


@dataclass(frozen=True)
class Phrasings:
    """Phrasings of facts: those for training, or the held-out ones for evaluation.

    `loose_…` do not say whose a fact is; they are used only if nothing is told about anybody else. `people_…` have
    {who}. `openers`, `closers`, `question_closers`: sentences around a statement or question. `json_results` have
    values in quotes, which gives them other tokens than in a reply. The held-out phrasings have none of the optional
    fields.
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
    """The assistant's replies to told facts, and beginnings of its replies to questions.

    `…echoes` repeat the fact. `chatty…` are as long and friendly as those of small models. `beginnings…` do not repeat
    what was asked; `…_told_by_user` are true only if the user stated the fact.
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
    """A phrasing with its slots filled. `starts`: the character at which each slot's text begins."""

    text: str
    starts: Mapping[str, int]


def fill(phrasing: str, slots: Mapping[str, str]) -> Filled:
    """The phrasing with its slots filled. "a {v}" becomes "an {v}" before a vowel.

    Braces around anything but a plain name stay, as in JSON. Raises KeyError for a slot that is not given.
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
