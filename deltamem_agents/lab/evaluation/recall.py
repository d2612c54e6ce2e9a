"""Recall from the memory alone: a conversation is absorbed, then asked about in a fresh prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.episodes import Episode, Question
from deltamem_agents.lab.evaluation.controls import Arm, Held, arm_memories, strangers
from deltamem_agents.lab.evaluation.estimates import Drawn, Estimate
from deltamem_agents.lab.evaluation.matching import contains, match, words
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.types import Message, Recalled

ABSORBED_AT_ONCE = 32
ASKED_AT_ONCE = 64
FREE_REPLY_TOKENS = 24
SPARE_TOKENS = 2
"""Tokens beyond the answer's own, which show whether its last word ends where the answer does."""

FIRST, WHOLE = "first", "whole"
"""Measures: the share of questions whose answer's first word, and whose whole answer, was right."""

FOUND = "right statement first"
"""Measure: the share of questions for which the statement that fits best has the answer."""

Watch: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows one piece of work by its name; what it gives takes (done, total)."""


@contextmanager
def unwatched(_: str) -> Iterator[Callable[[int, int], None]]:
    """Shows nothing."""
    yield lambda done, total: None


@dataclass(frozen=True)
class Asked:
    """A question in a fresh prompt. `prefix`: the beginning of the reply, "" to let the model begin it.

    `answer`: what is right, "" where nothing told could be. `wrong`: values that should not be said.
    """

    text: str
    answer: str = ""
    prefix: str = ""
    wrong: tuple[str, ...] = ()

    @classmethod
    def of(cls, question: Question) -> Asked:
        return cls(question.question, question.answer, question.prefix, question.outdated)

    def beside(self, values: Sequence[str]) -> Asked:
        """The question with the wrong ones among `values` marked as such."""
        return replace(self, wrong=tuple(value for value in values if value != self.answer))

    @property
    def conversation(self) -> list[Message]:
        asked = [Message("user", self.text)]
        return [*asked, Message("assistant", self.prefix)] if self.prefix else asked

    def says(self, reply: str, value: str) -> bool:
        """Whether the reply gives `value` as the answer."""
        if not words(value):
            return False
        return match(value, reply, begun=True).whole if self.prefix else contains(reply, value)


@dataclass(frozen=True)
class Case:
    """A conversation and what is asked about it. `seed`: of the evaluation that drew it."""

    messages: tuple[Message, ...]
    questions: tuple[Asked, ...]
    seed: int = 0

    @classmethod
    def of(cls, episode: Episode, seed: int = 0) -> Case:
        return cls(episode.messages, tuple(Asked.of(question) for question in episode.questions), seed)

    def freely(self) -> Case:
        """The same with no reply begun."""
        return replace(self, questions=tuple(replace(asked, prefix="") for asked in self.questions))

    @property
    def answers(self) -> frozenset[str]:
        """What would count for some question, whole or by its first word."""
        values = (value for asked in self.questions for value in (asked.answer, *asked.wrong))
        spelled = [parts for value in values if (parts := words(value.casefold()))]
        return frozenset({parts[0] for parts in spelled} | {" ".join(parts) for parts in spelled})


@dataclass(frozen=True)
class Title:
    """What a figure is called, as in Figure. `wrong`: the measure of questions answered by a wrong value."""

    suite: str
    name: str
    place: float | None = None
    wrong: str = "wrong"


def evaluate_recall(
    engine: DeltaMemEngine,
    title: Title,
    cases: Sequence[Case],
    *,
    arms: Sequence[Arm] = tuple(Arm),
    watch: Watch = unwatched,
) -> Figure:
    """Absorb every conversation, then ask every question with each arm's memory and greedy decoding.

    Raises ConfigError when there is nothing to ask, an answer has no words, or the wrong conversation is
    among the arms and there is only one.
    """
    check_cases(cases, arms)
    with watch(f"{title.suite}: {title.name}") as advance:
        steps = Steps(advance, len(cases) + len(arms) * asked_count(cases))
        memories = absorbed(engine, [case.messages for case in cases], steps.done)
        first: list[bool] = []
        read = readings(cases, memories, arms)
        replies = replies_by_arm(engine, cases, read, steps.done, found_first=first)
    return with_found(figure_of(title, cases, replies, mean_tokens(engine, cases)), cases, first)


def with_found(figure: Figure, cases: Sequence[Case], found_first: Sequence[bool]) -> Figure:
    """The figure with how often the statement that fits best has the answer, where that is known."""
    if not found_first:
        return figure
    share = drawn_from(cases).estimate([float(found) for found in found_first])
    memory = {**figure.arms[Arm.MEMORY.value], FOUND: share}
    return replace(figure, arms={**figure.arms, Arm.MEMORY.value: memory})


class Steps:
    """Counts what is done of a piece of work and shows it."""

    def __init__(self, advance: Callable[[int, int], None], total: int) -> None:
        self._advance, self._total, self._count = advance, total, 0

    def done(self, count: int) -> None:
        self._count += count
        self._advance(self._count, self._total)


def check_cases(cases: Sequence[Case], arms: Sequence[Arm]) -> None:
    """Refuses before any work is done what `evaluate_recall` says it refuses."""
    questions = [asked for case in cases for asked in case.questions]
    if not questions:
        raise ConfigError("the episodes hold no questions; give at least one")
    for asked in questions:
        if not words(asked.answer) and not asked.wrong:
            raise ConfigError(
                f"the answer to {asked.text!r} is {asked.answer!r}, expected at least one word; "
                "nothing a model says could match it"
            )
    if Arm.WRONG in arms:
        strangers([case.answers for case in cases])


def asked_count(cases: Sequence[Case]) -> int:
    return sum(len(case.questions) for case in cases)


def absorbed(
    engine: DeltaMemEngine,
    conversations: Sequence[Sequence[Message]],
    tick: Callable[[int], None],
    memories: Sequence[Held] | None = None,
) -> list[Held]:
    """The memory after each conversation, from empty ones or from `memories`.

    `tick` is told of finished conversations.
    """
    after: list[Held] = []
    for start in range(0, len(conversations), ABSORBED_AT_ONCE):
        part = slice(start, start + ABSORBED_AT_ONCE)
        before = None if memories is None else memories[part]
        if engine.selects:
            after += engine.remember_batch(conversations[part], cast("Sequence[AgentMemory] | None", before))
        else:
            states = [engine.new_state()] * len(conversations[part]) if before is None else before
            after += engine.absorb_batch(cast("Sequence[MemoryState]", states), conversations[part])
        tick(len(conversations[part]))
    return after


def readings(cases: Sequence[Case], memories: Sequence[Held], arms: Sequence[Arm]) -> dict[Arm, list[Held] | None]:
    """By arm the memory that each question of each case is asked with, in order. `memories` holds one a case."""
    others = strangers([case.answers for case in cases]) if Arm.WRONG in arms else []
    generator = torch.Generator().manual_seed(cases[0].seed)
    owners = [index for index, case in enumerate(cases) for _ in case.questions]
    found = {}
    for arm in arms:
        given = arm_memories(arm, memories, others, generator)
        found[arm] = None if given is None else [given[owner] for owner in owners]
    return found


def replies_by_arm(
    engine: DeltaMemEngine,
    cases: Sequence[Case],
    read: Mapping[Arm, Sequence[Held] | None],
    tick: Callable[[int], None],
    *,
    tokens: int | None = None,
    found_first: list[bool] | None = None,
) -> dict[Arm, list[str]]:
    """Greedy replies to every question of every case in order, by arm.

    `tokens`: of a reply at most, None for as many as the values that are looked for need. `found_first`: is told of
    each question whether the statement that fits best has the answer, where the memory is one of statements.
    """
    questions = [asked for case in cases for asked in case.questions]
    conversations = [asked.conversation for asked in questions]
    room = tokens or _room(engine, questions)
    found: dict[Arm, list[str]] = {}
    for arm, memories in read.items():
        rested: list[Sequence[Recalled]] = []
        found[arm] = replies_of(engine, arm, memories, conversations, room, tick, rested=rested)
        if found_first is not None and arm is Arm.MEMORY:
            found_first += [_has_answer(asked, one[:1]) for asked, one in zip(questions, rested, strict=False)]
    return found


def replies_of(
    engine: DeltaMemEngine,
    arm: Arm,
    memories: Sequence[Held] | None,
    conversations: Sequence[Sequence[Message]],
    tokens: int,
    tick: Callable[[int], None],
    *,
    rested: list[Sequence[Recalled]] | None = None,
) -> list[str]:
    """Greedy replies with one arm's memories, None for the frozen model. `rested`: is told what each rests on."""
    found: list[str] = []
    for start in range(0, len(conversations), ASKED_AT_ONCE):
        part = slice(start, start + ASKED_AT_ONCE)
        asked = conversations[part]
        if memories is None or not engine.selects:
            states = None if memories is None else cast("Sequence[MemoryState]", memories[part])
            found += engine.greedy_replies(states, asked, max_tokens=tokens)
        else:
            given = cast("Sequence[AgentMemory]", memories[part])
            rests_on = engine.recall_batch(given, asked, whatever=arm is Arm.RANDOM)
            found += engine.recalled_replies(rests_on, asked, max_tokens=tokens)
            if rested is not None:
                rested += [one.recalled for one in rests_on]
        tick(len(asked))
    return found


def _has_answer(asked: Asked, recalled: Sequence[Recalled]) -> bool:
    return any(contains(each.text, asked.answer) for each in recalled)


def _room(engine: DeltaMemEngine, questions: Sequence[Asked]) -> int:
    """Tokens of a reply in which any value that is looked for can be seen whole."""
    values = {value for asked in questions for value in (asked.answer, *asked.wrong) if value}
    longest = max(engine.count_tokens([Message("assistant", value)]) for value in values)
    if not all(asked.prefix for asked in questions):
        longest = max(longest, FREE_REPLY_TOKENS)
    return longest + SPARE_TOKENS


def mean_tokens(engine: DeltaMemEngine, cases: Sequence[Case]) -> float:
    """Of the conversations' contents."""
    return sum(engine.count_tokens(case.messages) for case in cases) / len(cases)


def figure_of(title: Title, cases: Sequence[Case], replies: Mapping[Arm, Sequence[str]], tokens: float) -> Figure:
    """What the replies of each arm come to."""
    drawn = drawn_from(cases)
    questions = [asked for case in cases for asked in case.questions]
    arms = {arm.value: _measured(title, drawn, questions, said) for arm, said in replies.items()}
    return Figure(title.suite, title.name, len(questions), len(cases), tokens, arms, title.place)


def joined(one: Figure, other: Figure) -> Figure:
    """Two figures of the same questions as one with the measures of both."""
    arms = {arm: {**measures, **other.arms.get(arm, {})} for arm, measures in one.arms.items()}
    return replace(one, arms=arms)


def drawn_from(cases: Sequence[Case]) -> Drawn:
    """Where the questions come from, in order."""
    owners = [(index, case.seed) for index, case in enumerate(cases) for _ in case.questions]
    return Drawn([index for index, _ in owners], [seed for _, seed in owners])


def _measured(title: Title, drawn: Drawn, questions: Sequence[Asked], replies: Sequence[str]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    pairs = list(zip(questions, replies, strict=True))
    if all(asked.answer for asked in questions):
        matches = [match(asked.answer, reply, begun=bool(asked.prefix)) for asked, reply in pairs]
        found[WHOLE] = drawn.estimate([float(one.whole) for one in matches])
        found[FIRST] = drawn.estimate([float(one.first) for one in matches])
    if any(asked.wrong for asked in questions):
        said = [any(asked.says(reply, value) for value in asked.wrong) for asked, reply in pairs]
        found[title.wrong] = drawn.estimate([float(hit) for hit in said])
    return found
