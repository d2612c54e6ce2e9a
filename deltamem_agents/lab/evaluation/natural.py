"""Whole turns as an application runs them: facts told in one conversation, asked for in another of the same agent.

Measured through `run_turn`: the model replies to what it is told, its replies are written too, and the answer's
beginning is not given. The controls are asked in batches without writing, and so is the memory as a further arm. That
does not disadvantage the controls: writing a question while it is read cannot give them the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.evaluation.controls import Arm, Held
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, Size, drawn_cases, facts_told
from deltamem_agents.lab.evaluation.recall import (
    FREE_REPLY_TOKENS,
    Case,
    Steps,
    Title,
    Watch,
    asked_count,
    figure_of,
    readings,
    replies_by_arm,
)
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.snapshots import InMemoryStore, Snapshot
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.types import Message, Sampling

COUNTS = (1, 4)
TOLD = replace(HELD_OUT_VALUES, distractors=(0, 1))
"""At most one exchange of small talk, since every exchange is a turn."""

KINDS = {"": TOLD, ", everyday": replace(TOLD, everyday=1.0, word_share=0.0)}
"""The facts that are told, by the suffix of a figure's name: any fact, or the facts that people state most often, with
fitting values."""

READ_ONLY = "memory_read_only"
"""Arm: the memory, read without writing as the controls are."""

_SAMPLING = Sampling(max_tokens=FREE_REPLY_TOKENS)


def natural(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """How often the reply contains the value, for each of KINDS and COUNTS."""
    for (kind, shape), count in product(KINDS.items(), COUNTS):
        name = facts_told(count) + kind
        cases = [case.freely() for case in drawn_cases(words, replace(shape, facts=count), size)]
        twin = engine.with_store(InMemoryStore())
        with watch(f"natural: {name}") as advance:
            users = sum(message.role == "user" for case in cases for message in case.messages)
            steps = Steps(advance, users + (1 + len(Arm)) * asked_count(cases))
            told = [_tell(twin, str(number), case, steps.done) for number, case in enumerate(cases)]
            said = [reply for number, case in enumerate(cases) for reply in _ask(twin, str(number), case, steps.done)]
            read = readings(cases, [_held(twin, str(number), one) for number, one in enumerate(told)], tuple(Arm))
            replies = replies_by_arm(twin, cases, read, steps.done, tokens=FREE_REPLY_TOKENS)
        tokens = sum(snapshot.counters.tokens for snapshot in told) / len(told)
        title = Title("natural", name, count)
        alone, whole = figure_of(title, cases, replies, tokens), figure_of(title, cases, {Arm.MEMORY: said}, tokens)
        controls = {arm: measures for arm, measures in alone.arms.items() if arm != Arm.MEMORY}
        yield replace(alone, arms={**whole.arms, READ_ONLY: alone.arms[Arm.MEMORY], **controls})


def _tell(engine: DeltaMemEngine, agent: str, case: Case, tick: Callable[[int], None]) -> Snapshot:
    """Runs a turn for each of the user's messages, in one thread. Returns the agent's last snapshot."""
    history: list[Message] = []
    for message in case.messages:
        if message.role == "user":
            history.append(message)
            history.append(engine.run_turn(agent, history, thread="told", sampling=_SAMPLING).message)
            tick(1)
    head = engine.store.head(agent)
    assert head is not None
    return engine.store.load(agent, head).snapshot


def _held(engine: DeltaMemEngine, agent: str, snapshot: Snapshot) -> Held:
    """The memory of the agent's snapshot."""
    if not engine.selects:
        return snapshot.state
    return AgentMemory.of(engine.store, agent, snapshot, snapshot.fades)


def _ask(engine: DeltaMemEngine, agent: str, case: Case, tick: Callable[[int], None]) -> Iterator[str]:
    """Replies to the questions in order, each in its own thread."""
    for number, asked in enumerate(case.questions):
        yield engine.run_turn(agent, asked.conversation, thread=f"asked {number}", sampling=_SAMPLING).text
        tick(1)
