"""Generated episodes: conversations that state facts, and questions to ask when the conversation is not shown."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.attributes import Attribute
from deltamem_agents.lab.corpus.phrasings import fill, replies
from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.corpus.splits import Split, held_out, split_values
from deltamem_agents.lab.corpus.subjects import About, Subjects
from deltamem_agents.lab.corpus.tellings import Exchange, Teller, Telling, Told, Voice
from deltamem_agents.lab.corpus.values import ValueKind, values_of, word_values
from deltamem_agents.types import Message

__all__ = [
    "About",
    "Episode",
    "EpisodeGenerator",
    "EpisodeShape",
    "Question",
    "Split",
    "Teller",
    "Told",
    "Untold",
    "ValueKind",
    "held_out",
    "split_values",
]

FACTS_AROUND = 10
"""Maximum number of facts that are changed without being asked for."""

OWN_REPLY_SHARE = 0.5
"""Probability that a reply begins in its attribute's own way, if it has one: "Tom lives in"."""

TRIES = 50
"""Maximum number of draws to avoid a value that the episode already has. Short lists may have no other."""


@dataclass(frozen=True)
class Question:
    """A question about one fact. The complete reply is `prefix` + " " + `answer` + ".".

    `told`: where the fact's value was told; None if unknown.
    """

    question: str
    answer: str
    prefix: str
    told: Told | None = None
    outdated: tuple[str, ...] = ()
    """Earlier values of the fact, oldest first."""
    subject: str = ""
    """The attribute asked for, with its owner: "city", "Tom's city"."""
    attribute: str = ""
    """The attribute without its owner: "city"."""
    told_before: Told | None = None
    """The place where the newest outdated value was told."""

    @property
    def reply(self) -> str:
        return f"{self.prefix} {self.answer}."


@dataclass(frozen=True)
class Untold:
    """A question about a fact that an episode never tells. `near`: it tells this attribute of somebody else."""

    question: str
    prefix: str
    subject: str
    near: bool


@dataclass(frozen=True)
class Episode:
    """A conversation and questions about it. `subjects`: the attributes of all facts it tells."""

    messages: tuple[Message, ...]
    questions: tuple[Question, ...]
    subjects: tuple[Attribute, ...] = ()

    def exchange(self, told: Told) -> tuple[Message, ...]:
        """The messages of the exchange that tells a fact, from the user's message to the last reply."""
        places = self.exchange_places(told)
        return self.messages[places.start : places.stop]

    def exchange_places(self, told: Told) -> range:
        """The indices of `exchange`."""
        users = [place for place, message in enumerate(self.messages) if message.role == "user"]
        begin = max(place for place in users if place <= told.message)
        end = min((place for place in users if place > told.message), default=len(self.messages))
        return range(begin, end)


@dataclass(frozen=True)
class EpisodeShape:
    """Settings of generated episodes. No two facts of an episode have the same subject.

    - `facts`: number of facts. `distractors`: minimum and maximum number of small-talk exchanges.
    - `split`: split of the values. `held_out_attributes`, `held_out_phrasings`: use those reserved for evaluation.
    - `word_share`: probability that a value is any word, although its attribute has a list of values.
    - `changed`: probability that a fact was told before with another value.
    - `asked_before`: probability that a fact is also asked and answered within the conversation.
    - `values`, `tellers`, `about`: kinds of value, who states the fact, and whose it is; each fact draws one of each.
    - `same_attribute`: probability that a fact has an earlier fact's attribute, for another person.
    - `changes_around`: number of changes, after all facts were told, to facts that are not asked for.
    - `paired`: probability that a fact told by the user shares a message with the next one.
    - `other_prefixes`: probability that a reply begins without repeating what was asked.
    - `everyday`: probability that a fact about the user is one of those that people state most often.
    """

    facts: int = 1
    distractors: tuple[int, int] = (0, 3)
    split: Split = "train"
    held_out_attributes: bool = False
    held_out_phrasings: bool = False
    word_share: float = 0.3
    changed: float = 0.0
    asked_before: float = 0.0
    values: tuple[ValueKind, ...] = ("word",)
    tellers: tuple[Teller, ...] = ("user",)
    about: tuple[About, ...] = ("user",)
    same_attribute: float = 0.0
    changes_around: int = 0
    paired: float = 0.0
    other_prefixes: float = 0.0
    everyday: float = 0.0

    @property
    def all_of_user(self) -> bool:
        return set(self.about) == {"user"}


class EpisodeGenerator:
    """Draws episodes of one shape. `words`: values for attributes that take any word.

    Raises ConfigError when `words` has too few for the shape's split, when the shape's `values`, `tellers` or `about`
    is empty, or when there are fewer attributes than facts.
    """

    def __init__(self, words: Sequence[str], shape: EpisodeShape) -> None:
        self.shape = shape
        self._words = split_values(words, shape.split)
        if len(set(self._words)) < 2:
            raise ConfigError(
                f"{len(words)} words leave {len(self._words)} for the {shape.split} split, expected at least "
                "2; use a tokenizer with whole words in its vocabulary, or pass your own words"
            )
        for name in ("values", "tellers", "about"):
            if not getattr(shape, name):
                raise ConfigError(f"an episode shape has no {name}, expected at least one to draw from")
        self._subjects = Subjects(
            shape.values, shape.about, shape.split, held_out=shape.held_out_attributes, everyday_share=shape.everyday
        )
        most = self._subjects.most
        if shape.facts < 1 or (most is not None and shape.facts > most):
            bounds = "at least 1" if most is None else f"1 to {most}"
            raise ConfigError(f"an episode of {shape.facts} facts was asked for, expected {bounds}")

    def draw(self, rng: random.Random) -> Episode:
        """The next episode. Depends only on the shape, the words and the state of `rng`.

        Raises ConfigError when there are fewer subjects than facts.
        """
        return self._draw(rng).episode()

    def untold(self, rng: random.Random, episode: Episode) -> str:
        """The text of a question as `never_told` draws it."""
        return self.never_told(rng, episode).question

    def never_told(self, rng: random.Random, episode: Episode, *, near: bool = False) -> Untold:
        """A question about a subject that `episode`, drawn here, does not mention, and that cannot be confused with
        one.

        `near`: the episode tells the attribute, but of another person. Raises ConfigError when nothing is left to ask.
        """
        return self._draw(rng).never_told(episode, near)

    def _draw(self, rng: random.Random) -> _Draw:
        return _Draw(rng, self.shape, self._words, self._subjects)


class _Draw:
    """Builds one episode."""

    def __init__(self, rng: random.Random, shape: EpisodeShape, words: Sequence[str], subjects: Subjects) -> None:
        self._rng, self._shape, self._words, self._subjects = rng, shape, words, subjects
        self._voice = Voice(rng, held_out=shape.held_out_phrasings, loose=shape.all_of_user)
        self._messages: list[Message] = []
        self._told: dict[str, Told] = {}
        self._told_before: dict[str, Told] = {}
        self._values: set[str] = set()
        self._asked: frozenset[str] = frozenset()
        self._names: frozenset[str] = frozenset()

    def episode(self) -> Episode:
        shape = self._shape
        subjects = self._choose_subjects()
        self._names = frozenset(one.person.name.lower() for one in subjects if one.person is not None)
        asked = [self._new(one) for one in subjects[: shape.facts]]
        self._asked = frozenset(fact.value.lower() for fact in asked)
        turns, outdated = self._turns(asked, [self._new(one) for one in subjects[shape.facts :]])
        self._speak(turns)
        questions = [self._question(fact, outdated.get(fact.attribute.subject, ())) for fact in asked]
        return Episode(tuple(self._messages), tuple(questions), tuple(subjects))

    def never_told(self, episode: Episode, near: bool) -> Untold:
        if near:
            words = {word.lower() for message in episode.messages for word in re.findall(r"\w+", message.content)}
            attribute = self._subjects.alike(self._rng, episode.subjects, avoid=words, own=True)
        else:
            attribute = self._subjects.another(self._rng, episode.subjects)
        return Untold(self._voice.ask(attribute), attribute.prefix, attribute.subject, near)

    def _choose_subjects(self) -> list[Attribute]:
        """The subjects that are asked for, followed by those that only change."""
        rng, shape = self._rng, self._shape
        chosen: list[Attribute] = []
        for number in range(shape.facts + min(shape.changes_around, FACTS_AROUND)):
            if chosen and number < shape.facts and rng.random() < shape.same_attribute:
                chosen.append(self._subjects.alike(rng, chosen, own="user" in shape.about))
            else:
                chosen.append(self._subjects.another(rng, chosen))
        return chosen

    def _turns(
        self, asked: Sequence[Telling], around: Sequence[Telling]
    ) -> tuple[list[Telling | None], dict[str, tuple[str, ...]]]:
        """The order of tellings (None: small talk), and the earlier values of facts that are asked for, by subject."""
        rng, shape = self._rng, self._shape
        turns: list[Telling | None] = [*asked, *around]
        rng.shuffle(turns)
        latest = list(around)
        for number in range(shape.changes_around):
            place = number if number < len(latest) else rng.randrange(len(latest))
            latest[place] = self._changed(latest[place])
            turns.append(latest[place])
        for _ in range(rng.randint(*shape.distractors)):
            turns.insert(rng.randint(0, len(turns)), None)
        outdated: dict[str, tuple[str, ...]] = {}
        for fact in asked:
            if rng.random() < shape.changed:
                place = turns.index(fact)
                before = self._changed(fact)
                turns[place] = Telling(fact.attribute, fact.value, fact.teller, change=True)
                turns.insert(rng.randint(0, place), Telling(fact.attribute, before.value, before.teller, current=False))
                outdated[fact.attribute.subject] = (before.value,)
        return turns, outdated

    def _speak(self, turns: Sequence[Telling | None]) -> None:
        """Appends the turns' messages."""
        rng, shape = self._rng, self._shape
        waiting = list(turns)
        while waiting:
            turn = waiting.pop(0)
            if turn is None:
                user, reply = small_talk(rng, held_out=shape.split == "evaluation")
                self._messages += [Message("user", user), Message("assistant", reply)]
                continue
            spoken = [turn]
            if waiting and _pairs(turn, waiting[0]) and rng.random() < shape.paired:
                second = waiting.pop(0)
                assert second is not None
                spoken.append(second)
            self._say(self._voice.tell(turn) if len(spoken) == 1 else self._voice.tell_both(*spoken), spoken)
            for fact in spoken:
                if rng.random() < shape.asked_before:
                    before = self._question(fact, ())
                    self._messages += [Message("user", before.question), Message("assistant", before.reply)]

    def _say(self, exchange: Exchange, spoken: Sequence[Telling]) -> None:
        for fact, told in zip(spoken, exchange.told, strict=True):
            where = self._told if fact.current else self._told_before
            where[fact.attribute.subject] = Told(len(self._messages) + told.message, told.start)
        self._messages += exchange.messages

    def _question(self, fact: Telling, outdated: tuple[str, ...]) -> Question:
        attribute = fact.attribute
        subject, question, prefix = attribute.subject, self._voice.ask(attribute), self._prefix(fact)
        told, before = self._told.get(subject), self._told_before.get(subject)
        return Question(question, fact.value, prefix, told, outdated, subject, attribute.name, before)

    def _prefix(self, fact: Telling) -> str:
        """The beginning of the reply to a question about a fact."""
        rng, attribute = self._rng, fact.attribute
        if rng.random() < self._shape.other_prefixes:
            others = replies().beginnings
            if fact.teller == "user":
                others += replies().beginnings_told_by_user
            return fill(rng.choice(others), attribute.slots).text
        if attribute.replies and rng.random() < OWN_REPLY_SHARE:
            return fill(rng.choice(attribute.replies), attribute.slots).text
        return attribute.prefix

    def _new(self, attribute: Attribute) -> Telling:
        return Telling(attribute, self._value(attribute), self._rng.choice(self._shape.tellers))

    def _changed(self, fact: Telling) -> Telling:
        """The same fact with another value."""
        value = self._value(fact.attribute, but=fact.value)
        return Telling(fact.attribute, value, self._rng.choice(self._shape.tellers), change=True)

    def _value(self, attribute: Attribute, but: str = "") -> str:
        """A value other than `but` that the episode does not have yet.

        If the list has none left, a value that is not the answer to any question.
        """
        kind = attribute.values
        if kind in word_values() and self._rng.random() < self._shape.word_share:
            kind = "word"
        values = self._words if kind == "word" else values_of(kind, self._shape.split)
        for _ in range(TRIES):
            value = self._rng.choice(values)
            if value.lower() not in self._values and self._names.isdisjoint(value.lower().split()):
                break
        else:
            others = [value for value in values if value != but]
            value = self._rng.choice([value for value in others if value.lower() not in self._asked] or others)
        self._values.add(value.lower())
        return value


def _pairs(one: Telling | None, other: Telling | None) -> bool:
    """Whether the user can state both in one message."""
    return all(fact is not None and fact.teller == "user" and not fact.change for fact in (one, other))
