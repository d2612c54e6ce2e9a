"""Generated episodes: a conversation in which facts are told, and questions asked once it is hidden."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from deltamem_agents.errors import ConfigError
from deltamem_agents.training.chatter import chatter
from deltamem_agents.training.facts import (
    ACKNOWLEDGEMENTS,
    ANSWER_PREFIX,
    ATTRIBUTES,
    ECHOES,
    HELD_OUT_ATTRIBUTES,
    HELD_OUT_QUESTIONS,
    HELD_OUT_STATEMENTS,
    QUESTIONS,
    STATEMENTS,
    VALUES,
    Attribute,
    same_subject,
)
from deltamem_agents.types import Message

Split: TypeAlias = Literal["train", "evaluation"]

HELD_OUT_SHARE = 10
"""One value in this many is never told in training."""

ECHO_SHARE = 0.2
"""Chance that the assistant's reply to a told fact repeats it."""


@dataclass(frozen=True)
class Told:
    """Where a fact was told: character `start` of the content of the conversation's message `message`."""

    message: int
    start: int


@dataclass(frozen=True)
class Question:
    """A question about one fact. The whole reply is `prefix` + " " + `answer` + "."."""

    question: str
    answer: str
    prefix: str
    told: Told | None = None

    @property
    def reply(self) -> str:
        return f"{self.prefix} {self.answer}."


@dataclass(frozen=True)
class Episode:
    """A conversation, and what can be asked about it."""

    messages: tuple[Message, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class EpisodeShape:
    """How many facts and distractor exchanges an episode has, and what is new to the model in it.

    `distractors`: fewest and most exchanges of small talk. `word_share`: chance that a value is any word
    although the attribute has a list of its own. `changed`: chance that a fact was told before with another
    value. `asked_before`: chance that a told fact is asked for in the conversation itself, and answered.
    Facts of one episode are never about the same subject.
    """

    facts: int = 1
    distractors: tuple[int, int] = (0, 3)
    split: Split = "train"
    held_out_attributes: bool = False
    held_out_phrasings: bool = False
    word_share: float = 0.3
    changed: float = 0.0
    asked_before: float = 0.0


def held_out(value: str) -> bool:
    """Whether a value is kept for evaluation. Depends on the value's lower-case spelling alone."""
    return zlib.crc32(value.lower().encode()) % HELD_OUT_SHARE == 0


def split_values(values: Sequence[str], split: Split) -> tuple[str, ...]:
    return tuple(value for value in values if held_out(value) == (split == "evaluation"))


@dataclass(frozen=True)
class _Telling:
    """A fact as it stands in a conversation. `current`: no later telling changes it."""

    attribute: Attribute
    value: str
    current: bool = True


class EpisodeGenerator:
    """Draws episodes of one shape. `words` are the values of attributes that take any word.

    Raises ConfigError when `words` has too few for the shape's split, or there are fewer attributes than
    facts wanted.
    """

    def __init__(self, words: Sequence[str], shape: EpisodeShape) -> None:
        self.shape = shape
        self._values = {kind: split_values(values, shape.split) for kind, values in VALUES.items()}
        self._values["word"] = split_values(words, shape.split)
        self._attributes = HELD_OUT_ATTRIBUTES if shape.held_out_attributes else ATTRIBUTES
        if len(set(self._values["word"])) < 2:
            raise ConfigError(
                f"{len(words)} words leave {len(self._values['word'])} for the {shape.split} split, expected at least "
                "2; take a tokenizer with whole words in its vocabulary, or give words of your own"
            )
        if not 1 <= shape.facts <= len(self._attributes):
            raise ConfigError(f"an episode of {shape.facts} facts was asked for, expected 1 to {len(self._attributes)}")

    def draw(self, rng: random.Random) -> Episode:
        """The next episode; equal generators in equal states draw equal ones."""
        return _Draw(rng, self.shape, self._values, self._attributes).episode()

    def untold(self, rng: random.Random, episode: Episode) -> str:
        """A question about something that `episode` tells nothing about, nor about the like of it.

        Raises ConfigError when nothing is left to ask.
        """
        prefixes = {question.prefix for question in episode.questions}
        told = [attribute for attribute in self._attributes if _prefix(attribute) in prefixes]
        draw = _Draw(rng, self.shape, self._values, self._attributes)
        return draw.question(draw.attribute_beside(told), "", None).question


class _Draw:
    """One episode in the making."""

    def __init__(
        self,
        rng: random.Random,
        shape: EpisodeShape,
        values: Mapping[str, Sequence[str]],
        attributes: Sequence[Attribute],
    ) -> None:
        self._rng, self._shape, self._values, self._attributes = rng, shape, values, attributes

    def episode(self) -> Episode:
        rng, shape = self._rng, self._shape
        facts = [_Telling(attribute, self._value(attribute)) for attribute in self._subjects()]
        turns: list[_Telling | None] = [*facts, *[None] * rng.randint(*shape.distractors)]
        rng.shuffle(turns)
        for fact in facts:
            if rng.random() < shape.changed:
                earlier = rng.randint(0, turns.index(fact))
                turns.insert(earlier, self._outdated(fact))
        messages: list[Message] = []
        told: dict[str, Told] = {}
        for turn in turns:
            messages += self._exchange(turn, len(messages), told)
            if turn is not None and rng.random() < shape.asked_before:
                asked = self.question(turn.attribute, turn.value, None)
                messages += [Message("user", asked.question), Message("assistant", asked.reply)]
        questions = tuple(self.question(fact.attribute, fact.value, told[fact.attribute.name]) for fact in facts)
        return Episode(tuple(messages), questions)

    def question(self, attribute: Attribute, value: str, told: Told | None) -> Question:
        general = HELD_OUT_QUESTIONS if self._shape.held_out_phrasings else QUESTIONS
        question = self._phrasing(attribute.asked, general).format(a=attribute.name)
        return Question(question, value, _prefix(attribute), told)

    def attribute_beside(self, others: Sequence[Attribute]) -> Attribute:
        """An attribute that is about another subject than each of `others`."""
        free = [new for new in self._attributes if not any(same_subject(new, other) for other in others)]
        if not free:
            raise ConfigError(f"no attribute is left beside {len(others)} others; ask for fewer facts in an episode")
        return self._rng.choice(free)

    def _subjects(self) -> list[Attribute]:
        """As many attributes as the episode has facts, each about a subject of its own."""
        chosen: list[Attribute] = []
        for drawn in self._rng.sample(self._attributes, self._shape.facts):
            clash = any(same_subject(drawn, other) for other in chosen)
            chosen.append(self.attribute_beside(chosen) if clash else drawn)
        return chosen

    def _exchange(self, turn: _Telling | None, position: int, told: dict[str, Told]) -> list[Message]:
        if turn is None:
            user, reply = chatter(self._rng, evaluation=self._shape.split == "evaluation")
            return [Message("user", user), Message("assistant", reply)]
        general = HELD_OUT_STATEMENTS if self._shape.held_out_phrasings else STATEMENTS
        names = {"a": turn.attribute.name, "v": turn.value}
        before = self._phrasing(turn.attribute.told, general)
        start = len(before[: before.index("{v}")].format(**names))
        if turn.current:
            told[turn.attribute.name] = Told(position, start)
        reply = self._rng.choice(ECHOES if self._rng.random() < ECHO_SHARE else ACKNOWLEDGEMENTS)
        return [Message("user", before.format(**names)), Message("assistant", reply.format(**names))]

    def _outdated(self, fact: _Telling) -> _Telling:
        """The same fact as it was before: with another value."""
        while (value := self._value(fact.attribute)) == fact.value:
            continue
        return _Telling(fact.attribute, value, current=False)

    def _value(self, attribute: Attribute) -> str:
        kind = attribute.values
        if kind != "word" and self._rng.random() < self._shape.word_share:
            kind = "word"
        return self._rng.choice(self._values[kind])

    def _phrasing(self, own: Sequence[str], general: Sequence[str]) -> str:
        if self._shape.held_out_phrasings or not own or self._rng.random() < 0.5:
            return self._rng.choice(general)
        return self._rng.choice(own)


def _prefix(attribute: Attribute) -> str:
    """How the reply to a question about `attribute` begins."""
    return ANSWER_PREFIX.format(a=attribute.name)
