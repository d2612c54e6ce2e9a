"""Tellings: exchanges in which the user, the assistant or a tool states a fact."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from deltamem_agents.lab.corpus.attributes import Attribute
from deltamem_agents.lab.corpus.phrasings import Filled, Texts, fill, phrasings, replies
from deltamem_agents.types import Message, ToolCall

Teller: TypeAlias = Literal["user", "assistant", "tool", "json"]
"""Who states a fact. "json" is also a tool, but the value is in quotes, which gives it other tokens."""

_Replies: TypeAlias = tuple[Sequence[str], Sequence[str]]
"""Replies that do not repeat the fact, and replies that do."""

_Phrasing = TypeVar("_Phrasing", str, tuple[str, str])

TOOL_NAMES = ("lookup_record", "get_profile", "search_contacts", "query_database", "read_notes", "find_entry")

OWN_SHARE = 0.7
"""Probability that a fact is stated or asked in its attribute's own phrasings, if it has any."""

CHANGE_SHARE = 0.7
"""Probability that a changed fact is stated as a change, not like a new fact."""

ECHO_SHARE = 0.2
"""Probability that the assistant's reply repeats the fact."""

CHATTY_SHARE = 0.4
"""Probability that this reply is as long and friendly as small models' replies."""

FRAME_SHARE = 0.15
"""Probability of another sentence before the statement or question, and of one after it."""


@dataclass(frozen=True)
class Telling:
    """A fact as stated in a conversation. `current`: not changed later. `change`: it changes an earlier one."""

    attribute: Attribute
    value: str
    teller: Teller = "user"
    current: bool = True
    change: bool = False


@dataclass(frozen=True)
class Told:
    """The place where a fact's value was told: the index of the message, and the character in its content."""

    message: int
    start: int


@dataclass(frozen=True)
class Exchange:
    """The messages in which facts are stated, and where. Message indices count from the exchange's first."""

    messages: tuple[Message, ...]
    told: tuple[Told, ...]


class Voice:
    """Puts facts into words. `held_out`: use only the phrasings reserved for evaluation. `loose`: also use phrasings
    that do not say whose a fact is; the whole conversation must then be about the user.
    """

    def __init__(self, rng: random.Random, *, held_out: bool, loose: bool) -> None:
        self._rng, self._held_out, self._loose = rng, held_out, loose
        self._words, self._replies = phrasings(held_out=held_out), replies()

    def ask(self, attribute: Attribute) -> str:
        """A question about the attribute."""
        words = self._words
        general = self._general(attribute, words.questions, words.loose_questions, words.people_questions)
        filled = fill(self._pick(attribute.asked, general), attribute.slots)
        return self._framed(filled, words.question_closers).text

    def tell(self, telling: Telling) -> Exchange:
        """An exchange that states one fact."""
        if telling.teller == "user":
            statement = self._framed(fill(self._statement(telling), _slots(telling)), self._words.closers)
            return self._noted(statement, (telling,))
        if telling.teller == "assistant":
            return self._by_assistant(telling)
        return self._by_tool(telling)

    def tell_both(self, first: Telling, second: Telling) -> Exchange:
        """An exchange in which the user states two facts in one message."""
        slots = _slots(first) | {f"{name}2": text for name, text in _slots(second).items()}
        return self._noted(fill(self._rng.choice(self._words.paired_statements), slots), (first, second))

    def _statement(self, telling: Telling) -> str:
        attribute, words = telling.attribute, self._words
        if telling.change and self._rng.random() < CHANGE_SHARE:
            return self._pick(attribute.changed, words.changes)
        general = self._general(attribute, words.statements, words.loose_statements, words.people_statements)
        return self._pick(attribute.told, general)

    def _general(self, attribute: Attribute, always: Texts, loose: Texts, people: Texts) -> Texts:
        """The phrasings that fit the attribute's owner, the user or another person."""
        if attribute.person is not None:
            return always + people
        return always + loose if self._loose else always

    def _noted(self, statement: Filled, tellings: Sequence[Telling]) -> Exchange:
        """The user's statement and the reply to it."""
        told = [Told(0, statement.starts[slot]) for slot, _ in zip(("v", "v2"), tellings, strict=False)]
        said = self._replies
        reply = self._reply(tellings[0], (said.acknowledgements, said.echoes), (said.chatty, said.chatty_echoes))
        return Exchange((Message("user", statement.text), reply), tuple(told))

    def _by_assistant(self, telling: Telling) -> Exchange:
        if telling.change and self._rng.random() < CHANGE_SHARE:
            request, answer = self._rng.choice(self._words.assistant_changes)
        else:
            request, answer = self._pick(telling.attribute.arranged, self._words.assistant_tellings)
        slots = _slots(telling)
        said = fill(answer, slots)
        messages = (Message("user", fill(request, slots).text), Message("assistant", said.text))
        return Exchange(messages, (Told(1, said.starts["v"]),))

    def _by_tool(self, telling: Telling) -> Exchange:
        rng, slots, words = self._rng, _slots(telling), self._words
        results = words.json_results if telling.teller == "json" else words.tool_results
        after = (self._replies.after_tools, self._replies.after_tools_echoes)
        call = ToolCall(
            rng.choice(TOOL_NAMES), {"owner": slots["of"], "field": slots["a"]}, f"call_{rng.randrange(16**6):06x}"
        )
        result = fill(rng.choice(results), slots)
        messages = (
            Message("user", fill(rng.choice(words.tool_requests), slots).text),
            Message("assistant", "", (call,)),
            Message("tool", result.text, (), call.id, call.name),
            self._reply(telling, after, after),
        )
        return Exchange(messages, (Told(2, result.starts["v"]),))

    def _reply(self, telling: Telling, short: _Replies, chatty: _Replies) -> Message:
        """The assistant's reply to a telling. It sometimes repeats the fact."""
        plain, echoes = chatty if self._rng.random() < CHATTY_SHARE else short
        replies = echoes if self._rng.random() < ECHO_SHARE else plain
        return Message("assistant", fill(self._rng.choice(replies), _slots(telling)).text)

    def _pick(self, own: Sequence[_Phrasing], general: Sequence[_Phrasing]) -> _Phrasing:
        if self._held_out or not own or self._rng.random() >= OWN_SHARE:
            return self._rng.choice(general)
        return self._rng.choice(own)

    def _framed(self, filled: Filled, closers: Sequence[str]) -> Filled:
        """The same, sometimes with another sentence before or after it. Held-out phrasings get none."""
        if self._held_out:
            return filled
        before = f"{self._rng.choice(self._words.openers)} " if self._rng.random() < FRAME_SHARE else ""
        after = f" {self._rng.choice(closers)}" if self._rng.random() < FRAME_SHARE else ""
        starts = {slot: start + len(before) for slot, start in filled.starts.items()}
        return Filled(f"{before}{filled.text}{after}", starts)


def _slots(telling: Telling) -> dict[str, str]:
    return telling.attribute.slots | {"v": telling.value}
