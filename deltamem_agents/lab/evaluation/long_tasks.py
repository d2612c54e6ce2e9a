"""Questions about long histories: with a recent window, with search snippets, with the memory alone, and with controls.

All prompts have the same token budget. They differ in what they show of the history and in which memory is read. A
memory of statements is searched with the question alone. Exchanges that it returns to the window count towards the
budget.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias, cast

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.context import History, Line, Shown, bm25
from deltamem_agents.lab.evaluation.controls import Arm, Held, arm_memories
from deltamem_agents.lab.evaluation.estimates import Drawn
from deltamem_agents.lab.evaluation.recall import Steps, Watch, absorbed
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.turns.recalling import AROUND_MESSAGE, Recollection
from deltamem_agents.types import Message

REPLY_TOKENS = 32
ASKED_TOKENS = 8192
"""Total tokens of the prompts in one batch."""

READ_WITH: Mapping[Shown, tuple[Arm, ...]] = {
    Shown.WINDOW: tuple(Arm),
    Shown.NOTHING: tuple(Arm),
    Shown.SNIPPETS: (Arm.OFF,),
}
"""The arms that each kind of prompt is asked with. Snippets replace memory."""


@dataclass(frozen=True)
class LongQuestion:
    """A question. `query`: what to search snippets for. `golds`: accepted answers. `kind`: determines the scoring.

    `begun`: the given beginning of the reply, "" for a free reply.
    """

    text: str
    query: str
    golds: tuple[str, ...]
    kind: str
    begun: str = ""


@dataclass(frozen=True)
class LongTask:
    """A history and the questions about it. `sessions`: its conversations (at least one), absorbed in order.

    `lines`: its pieces as shown in a prompt, oldest first. `seed`: the evaluation seed that drew it.
    """

    name: str
    sessions: tuple[tuple[Message, ...], ...]
    lines: tuple[Line, ...]
    questions: tuple[LongQuestion, ...]
    seed: int = 0


Scored: TypeAlias = Callable[[LongQuestion, str], float]
"""Scores a reply from 0 to 1."""


@dataclass(frozen=True)
class Rows:
    """The rows of the result. `kinds`: the kinds of questions in each row, by the row's name."""

    suite: str
    measure: str
    kinds: Mapping[str, frozenset[str]]


def sampled(tasks: Sequence[LongTask], count: int | None, seed: int = 0) -> list[LongTask]:
    """The tasks with `count` random questions in all; None keeps all questions. All histories are kept.

    Raises ConfigError when there are no questions.
    """
    places = [(number, place) for number, task in enumerate(tasks) for place in range(len(task.questions))]
    if not places:
        raise ConfigError("there are no questions to ask; expected at least one")
    if count is not None and count < len(places):
        places = random.Random(f"questions {seed}").sample(places, count)
    kept = set(places)
    return [
        replace(task, questions=tuple(one for place, one in enumerate(task.questions) if (number, place) in kept))
        for number, task in enumerate(tasks)
    ]


def evaluate_tasks(
    engine: DeltaMemEngine,
    tasks: Sequence[LongTask],
    rows: Rows,
    scored: Scored,
    *,
    prompt_tokens: int,
    watch: Watch,
) -> list[Figure]:
    """One figure for each row and kind of prompt, with its arms.

    `prompt_tokens`: maximum number of content tokens of a prompt. Raises ConfigError when a question alone is longer,
    for a single task (the controls need another history), or when the search library is missing.
    """
    if len(tasks) < 2:
        raise ConfigError(f"the control {Arm.WRONG.value} needs another history, and there is {len(tasks)}; give two")
    bm25()
    owners = [owner for owner, task in enumerate(tasks) for _ in task.questions]
    questions = [one for task in tasks for one in task.questions]
    asking = _Asking(engine, tasks, prompt_tokens)
    for shown in Shown:
        # Raises before any work is done.
        asking.prompts(shown)
    with watch(f"{rows.suite}: absorbing {len(tasks):,} histories") as advance:
        memories = _absorb_all(engine, tasks, Steps(advance, sum(len(task.sessions) for task in tasks)).done)
    rests: dict[Arm, Sequence[Recollection]] = {}
    if engine.selects:
        with watch(f"{rows.suite}: choosing statements for {len(questions):,} questions") as advance:
            steps = Steps(advance, (len(Arm) - 1) * len(questions))
            for arm in Arm:
                held = _read(arm, memories, owners, each_its_own=True)
                if held is not None:
                    rests[arm] = asking.recollections(arm, cast("Sequence[AgentMemory]", held), steps.done)
    scores: dict[Shown, dict[Arm, list[float]]] = {}
    for shown, arms in READ_WITH.items():
        with watch(f"{rows.suite}: {len(questions):,} questions, {shown.value}") as advance:
            steps = Steps(advance, len(arms) * len(questions))
            scores[shown] = {}
            for arm in arms:
                if arm in rests:
                    replies = asking.recalled_replies(shown, rests[arm], steps.done)
                else:
                    states = cast("Sequence[MemoryState] | None", _read(arm, memories, owners))
                    replies = asking.replies(shown, states, steps.done)
                scores[shown][arm] = [scored(one, reply) for one, reply in zip(questions, replies, strict=True)]
    tokens = [sum(map(engine.count_tokens, task.sessions)) for task in tasks]
    return list(_figures(rows, tasks, questions, owners, scores, tokens))


def _absorb_all(engine: DeltaMemEngine, tasks: Sequence[LongTask], tick: Callable[[int], None]) -> list[Held]:
    """The memory after each history. Batches all first sessions, then all second ones, and so on."""
    memories: list[Held] = absorbed(engine, [task.sessions[0] for task in tasks], tick)
    for number in range(1, max(len(task.sessions) for task in tasks)):
        due = [place for place, task in enumerate(tasks) if number < len(task.sessions)]
        sessions = [tasks[place].sessions[number] for place in due]
        for place, memory in zip(
            due, absorbed(engine, sessions, tick, [memories[place] for place in due]), strict=True
        ):
            memories[place] = memory
    return memories


def _read(
    arm: Arm, memories: Sequence[Held], owners: Sequence[int], *, each_its_own: bool = False
) -> list[Held] | None:
    """The memory that the arm reads for each question.

    `each_its_own`: RANDOM draws once per question, not once per history.
    """
    generator = torch.Generator().manual_seed(0)
    if arm is Arm.RANDOM and each_its_own:
        drawn = [arm_memories(arm, [memories[owner]], [0], generator) for owner in owners]
        return list(chain.from_iterable(found for found in drawn if found is not None))
    others = [(number + 1) % len(memories) for number in range(len(memories))]
    given = arm_memories(arm, memories, others, generator)
    return None if given is None else [given[owner] for owner in owners]


class _Asking:
    """Asks the questions of all tasks, in prompts of at most `budget` content tokens."""

    def __init__(self, engine: DeltaMemEngine, tasks: Sequence[LongTask], budget: int) -> None:
        self._engine, self._budget = engine, budget
        histories = [History(engine, task.lines) for task in tasks]
        self._asked = [(histories[owner], one) for owner, task in enumerate(tasks) for one in task.questions]
        self._whole: dict[Shown, list[list[Message]]] = {}

    def prompts(self, shown: Shown) -> list[list[Message]]:
        """Each question's prompt. Raises ConfigError when a question alone does not fit."""
        if shown not in self._whole:
            self._whole[shown] = [self._prompt(shown, place, self._budget) for place in range(len(self._asked))]
        return self._whole[shown]

    def replies(self, shown: Shown, states: Sequence[MemoryState] | None, tick: Callable[[int], None]) -> list[str]:
        """Replies, each reading its state; None for the frozen model."""
        prompts = self.prompts(shown)

        def said(part: Sequence[int]) -> list[str]:
            given = None if states is None else [states[place] for place in part]
            asked = [prompts[place] for place in part]
            return self._engine.greedy_replies(given, asked, max_tokens=REPLY_TOKENS)

        return _in_parts(said, [self._engine.count_tokens(prompt) for prompt in prompts], tick)

    def recollections(
        self, arm: Arm, memories: Sequence[AgentMemory], tick: Callable[[int], None]
    ) -> list[Recollection]:
        """The statements recalled for each question. Messages that would leave no room for it are not shown."""
        found = []
        for memory, asked in zip(memories, self.prompts(Shown.NOTHING), strict=True):
            (one,) = self._engine.recall_batch([memory], [asked], whatever=arm is Arm.RANDOM)
            if self._room(one) < self._engine.count_tokens(asked) + 1:
                one = replace(one, shown=(), in_window=frozenset())
            found.append(one)
            tick(1)
        return found

    def recalled_replies(self, shown: Shown, rests: Sequence[Recollection], tick: Callable[[int], None]) -> list[str]:
        """Replies that use the recalled statements. Messages returned to the window displace older history."""
        prompts = [self._prompt(shown, place, self._room(one)) for place, one in enumerate(rests)]

        def said(part: Sequence[int]) -> list[str]:
            chosen, asked = [rests[place] for place in part], [prompts[place] for place in part]
            return self._engine.recalled_replies(chosen, asked, max_tokens=REPLY_TOKENS)

        sizes = [self._engine.count_tokens([*one.shown, *prompt]) for one, prompt in zip(rests, prompts, strict=True)]
        return _in_parts(said, sizes, tick)

    def _room(self, rests_on: Recollection) -> int:
        """Number of prompt tokens left besides the messages that return to the window."""
        if not rests_on.shown:
            return self._budget
        taken = self._engine.count_tokens(rests_on.shown) + AROUND_MESSAGE * len(rests_on.shown)
        return self._budget - taken

    def _prompt(self, shown: Shown, place: int, budget: int) -> list[Message]:
        history, one = self._asked[place]
        prompt = [Message("user", history.prompt(shown, one.text, one.query, budget))]
        return [*prompt, Message("assistant", one.begun)] if one.begun else prompt


def _in_parts(
    said: Callable[[Sequence[int]], list[str]], sizes: Sequence[int], tick: Callable[[int], None]
) -> list[str]:
    """Replies in the order of the prompts. Prompts of similar `sizes` share a batch."""
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    replies = [""] * len(sizes)
    while order:
        part = order[: max(1, ASKED_TOKENS // max(1, sizes[order[0]]))][:64]
        order = order[len(part) :]
        for place, reply in zip(part, said(part), strict=True):
            replies[place] = reply
        tick(len(part))
    return replies


def _figures(
    rows: Rows,
    tasks: Sequence[LongTask],
    questions: Sequence[LongQuestion],
    owners: Sequence[int],
    scores: Mapping[Shown, Mapping[Arm, Sequence[float]]],
    tokens: Sequence[int],
) -> Iterator[Figure]:
    for name, kinds in rows.kinds.items():
        places = [place for place, one in enumerate(questions) if one.kind in kinds]
        if not places:
            continue
        drawn = Drawn([owners[place] for place in places], [tasks[owners[place]].seed for place in places])
        for shown, by_arm in scores.items():
            arms = {
                arm.value: {rows.measure: drawn.estimate([found[place] for place in places])}
                for arm, found in by_arm.items()
            }
            asked = {owners[place] for place in places}
            mean = sum(tokens[owner] for owner in asked) / len(asked)
            yield Figure(rows.suite, f"{name} · {shown.value}", len(places), len(asked), mean, arms)
