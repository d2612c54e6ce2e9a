"""Questions about long histories, asked with a recent window, with snippets, with the state alone, and with controls.

One prompt budget holds for all: what differs is what the prompt shows of the history, and which state is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.context import History, Line, Shown, bm25
from deltamem_agents.lab.evaluation.controls import Arm, arm_memories
from deltamem_agents.lab.evaluation.estimates import Drawn
from deltamem_agents.lab.evaluation.recall import Steps, Watch
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message

REPLY_TOKENS = 32
ASKED_TOKENS = 8192
"""Of the prompts that are asked at once."""

READ_WITH: Mapping[Shown, tuple[Arm, ...]] = {
    Shown.WINDOW: tuple(Arm),
    Shown.NOTHING: tuple(Arm),
    Shown.SNIPPETS: (Arm.OFF,),
}
"""Which memories each kind of prompt is asked with. Snippets stand in place of memory."""


@dataclass(frozen=True)
class LongQuestion:
    """`query`: what snippets are looked for by. `golds`: accepted answers. `kind`: decides how it is scored.

    `begun`: the beginning of the reply, "" to let the model begin it.
    """

    text: str
    query: str
    golds: tuple[str, ...]
    kind: str
    begun: str = ""


@dataclass(frozen=True)
class LongTask:
    """A history and what is asked about it. `sessions`: its conversations, which are absorbed one after another.

    `lines`: its pieces as a prompt shows them, oldest first. `seed`: of the evaluation that drew it.
    """

    name: str
    sessions: tuple[tuple[Message, ...], ...]
    lines: tuple[Line, ...]
    questions: tuple[LongQuestion, ...]
    seed: int = 0


Scored: TypeAlias = Callable[[LongQuestion, str], float]
"""How right a reply is, 0 to 1."""


@dataclass(frozen=True)
class Rows:
    """What becomes of the scores: `kinds` names each row and the kinds of questions in it."""

    suite: str
    measure: str
    kinds: Mapping[str, frozenset[str]]


def sampled(tasks: Sequence[LongTask], count: int | None, seed: int = 0) -> list[LongTask]:
    """The tasks with `count` of all their questions, drawn at random; None keeps all. Their histories stay.

    Raises ConfigError when there is nothing to ask.
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
    """For each row and each kind of prompt a figure, by the memories that it was asked with.

    `prompt_tokens` bounds the contents of every prompt. Raises ConfigError when a question alone is longer,
    for a single task, which leaves no other history as a control, and where the search library is missing.
    """
    if len(tasks) < 2:
        raise ConfigError(f"the control {Arm.WRONG.value} needs another history, and there is {len(tasks)}; give two")
    bm25()
    owners = [owner for owner, task in enumerate(tasks) for _ in task.questions]
    questions = [one for task in tasks for one in task.questions]
    prompts = {shown: _prompts(engine, tasks, shown, prompt_tokens) for shown in Shown}
    with watch(f"{rows.suite}: absorbing {len(tasks):,} histories") as advance:
        states = _states(engine, tasks, Steps(advance, sum(len(task.sessions) for task in tasks)).done)
    scores: dict[Shown, dict[Arm, list[float]]] = {}
    for shown, arms in READ_WITH.items():
        with watch(f"{rows.suite}: {len(questions):,} questions, {shown.value}") as advance:
            steps = Steps(advance, len(arms) * len(questions))
            scores[shown] = {
                arm: [
                    scored(one, reply)
                    for one, reply in zip(
                        questions, _replies(engine, _read(arm, states, owners), prompts[shown], steps.done), strict=True
                    )
                ]
                for arm in arms
            }
    tokens = [sum(map(engine.count_tokens, task.sessions)) for task in tasks]
    return list(_figures(rows, tasks, questions, owners, scores, tokens))


def _states(engine: DeltaMemEngine, tasks: Sequence[LongTask], tick: Callable[[int], None]) -> list[MemoryState]:
    """The state after each history: the first sessions of all, then the second ones, and so on."""
    states = [engine.new_state() for _ in tasks]
    for number in range(max(len(task.sessions) for task in tasks)):
        due = [place for place, task in enumerate(tasks) if number < len(task.sessions)]
        heard = engine.absorb_batch([states[place] for place in due], [tasks[place].sessions[number] for place in due])
        for place, state in zip(due, heard, strict=True):
            states[place] = state
        tick(len(due))
    return states


def _prompts(engine: DeltaMemEngine, tasks: Sequence[LongTask], shown: Shown, budget: int) -> list[list[Message]]:
    found: list[list[Message]] = []
    for task in tasks:
        history = History(engine, task.lines)
        for one in task.questions:
            prompt = [Message("user", history.prompt(shown, one.text, one.query, budget))]
            found.append([*prompt, Message("assistant", one.begun)] if one.begun else prompt)
    return found


def _read(arm: Arm, states: Sequence[MemoryState], owners: Sequence[int]) -> list[MemoryState] | None:
    """The state of each question's history, or what the arm puts in its place."""
    others = [(number + 1) % len(states) for number in range(len(states))]
    given = cast("list[MemoryState] | None", arm_memories(arm, states, others, torch.Generator().manual_seed(0)))
    return None if given is None else [given[owner] for owner in owners]


def _replies(
    engine: DeltaMemEngine,
    states: Sequence[MemoryState] | None,
    prompts: Sequence[Sequence[Message]],
    tick: Callable[[int], None],
) -> list[str]:
    """In the prompts' order; those of like lengths are asked together."""
    sizes = [engine.count_tokens(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda place: -sizes[place])
    replies = [""] * len(prompts)
    while order:
        part = order[: max(1, ASKED_TOKENS // max(1, sizes[order[0]]))][:64]
        order = order[len(part) :]
        given = None if states is None else [states[place] for place in part]
        said = engine.greedy_replies(given, [prompts[place] for place in part], max_tokens=REPLY_TOKENS)
        for place, reply in zip(part, said, strict=True):
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
