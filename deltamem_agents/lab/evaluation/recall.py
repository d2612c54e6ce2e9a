"""Recall from memory alone: a conversation is absorbed, then questions are asked in a new prompt without it."""

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
"""Number of tokens beyond the answer's, which show whether its last word ends where it should."""

FIRST, WHOLE = "first", "whole"
"""Measures: share of questions where the answer's first word was right, and where the whole answer was."""

FOUND = "right statement first"
"""Measure: share of questions whose best-matching statement contains the answer."""

Watch: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows the progress of a named piece of work. Yields a callback that takes (done, total)."""


@contextmanager
def unwatched(_: str) -> Iterator[Callable[[int, int], None]]:
    """Shows nothing."""
    yield lambda done, total: None


@dataclass(frozen=True)
class Asked:
    """A question in a new prompt. `prefix`: the given beginning of the reply, "" for a free reply.

    `answer`: the right answer, "" if no told fact answers it. `wrong`: values that should not be given.
    """

    text: str
    answer: str = ""
    prefix: str = ""
    wrong: tuple[str, ...] = ()

    @classmethod
    def of(cls, question: Question) -> Asked:
        return cls(question.question, question.answer, question.prefix, question.outdated)

    def beside(self, values: Sequence[str]) -> Asked:
        """The question with all of `values` but the answer as wrong values."""
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
    """A conversation and the questions about it. `seed`: the evaluation seed that drew it."""

    messages: tuple[Message, ...]
    questions: tuple[Asked, ...]
    seed: int = 0

    @classmethod
    def of(cls, episode: Episode, seed: int = 0) -> Case:
        return cls(episode.messages, tuple(Asked.of(question) for question in episode.questions), seed)

    def freely(self) -> Case:
        """The same case with free replies."""
        return replace(self, questions=tuple(replace(asked, prefix="") for asked in self.questions))

    @property
    def answers(self) -> frozenset[str]:
        """All values of the questions, right and wrong, whole and by their first word, in lower case."""
        values = (value for asked in self.questions for value in (asked.answer, *asked.wrong))
        spelled = [parts for value in values if (parts := words(value.casefold()))]
        return frozenset({parts[0] for parts in spelled} | {" ".join(parts) for parts in spelled})


@dataclass(frozen=True)
class Title:
    """A figure's names, as in Figure. `wrong`: name of the measure for questions answered with a wrong value."""

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
    """Absorbs every conversation, then asks every question with each arm and greedy decoding.

    Raises ConfigError when there are no questions, when an answer has no words, or when `arms` has WRONG and there is
    only one conversation.
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
    """Adds the measure FOUND, if `found_first` is not empty."""
    if not found_first:
        return figure
    share = drawn_from(cases).estimate([float(found) for found in found_first])
    memory = {**figure.arms[Arm.MEMORY.value], FOUND: share}
    return replace(figure, arms={**figure.arms, Arm.MEMORY.value: memory})


class Steps:
    """Counts finished work and reports it to a progress callback."""

    def __init__(self, advance: Callable[[int, int], None], total: int) -> None:
        self._advance, self._total, self._count = advance, total, 0

    def done(self, count: int) -> None:
        self._count += count
        self._advance(self._count, self._total)


def check_cases(cases: Sequence[Case], arms: Sequence[Arm]) -> None:
    """Raises the errors of `evaluate_recall` before any work is done."""
    questions = [asked for case in cases for asked in case.questions]
    if not questions:
        raise ConfigError("the episodes hold no questions; give at least one")
    for asked in questions:
        if not words(asked.answer) and not asked.wrong:
            raise ConfigError(
                f"the answer to {asked.text!r} is {asked.answer!r}, expected at least one word; no reply could match it"
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
    """The memory after each conversation, beginning with empty memories or with `memories`.

    `tick` gets the number of finished conversations after each batch.
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
    """For each arm, the memory to ask each question of each case with, in order. `memories`: one per case."""
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
    """For each arm, greedy replies to every question of every case, in order.

    `tokens`: maximum length of a reply; None for as many as the values to look for need. `found_first`: if the memory
    holds statements, gets appended for each question whether the best-matching statement contains the answer.
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
    """Greedy replies with one arm's memories; None for the frozen model.

    `rested`: if given, gets appended the statements that each reply reads.
    """
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
    """Number of reply tokens that any of the values to look for fits into."""
    values = {value for asked in questions for value in (asked.answer, *asked.wrong) if value}
    longest = max(engine.count_tokens([Message("assistant", value)]) for value in values)
    if not all(asked.prefix for asked in questions):
        longest = max(longest, FREE_REPLY_TOKENS)
    return longest + SPARE_TOKENS


def mean_tokens(engine: DeltaMemEngine, cases: Sequence[Case]) -> float:
    """Mean number of content tokens per conversation."""
    return sum(engine.count_tokens(case.messages) for case in cases) / len(cases)


def figure_of(title: Title, cases: Sequence[Case], replies: Mapping[Arm, Sequence[str]], tokens: float) -> Figure:
    """The figure computed from each arm's replies."""
    drawn = drawn_from(cases)
    questions = [asked for case in cases for asked in case.questions]
    arms = {arm.value: _measured(title, drawn, questions, said) for arm, said in replies.items()}
    return Figure(title.suite, title.name, len(questions), len(cases), tokens, arms, title.place)


def joined(one: Figure, other: Figure) -> Figure:
    """Merges the measures of two figures on the same questions."""
    arms = {arm: {**measures, **other.arms.get(arm, {})} for arm, measures in one.arms.items()}
    return replace(one, arms=arms)


def drawn_from(cases: Sequence[Case]) -> Drawn:
    """The origin of each question, in order."""
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
