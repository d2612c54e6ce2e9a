"""Questions for everything that is remembered: are several statements read, and how many told values are given?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, Size, drawn_episodes, facts_told
from deltamem_agents.lab.evaluation.estimates import Drawn
from deltamem_agents.lab.evaluation.matching import contains
from deltamem_agents.lab.evaluation.recall import Asked, Case, Steps, Watch, absorbed, mean_tokens, readings, replies_of
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.turns.memories import AgentMemory

SUITE = "overview"
SAID, SEVERAL, READ = "told values given", "several statements read", "told values read"
"""Measures: share of told values in the reply; whether more than one statement was read; share of told values in the
statements that were read. The last two exist only for a memory of statements."""

FACTS = (4, 8)
REPLY_TOKENS = 96

OVERVIEWS = (
    "What do you know about me?",
    "Tell me everything you remember about me.",
    "What have I told you so far?",
    "Can you sum up what you know about me?",
    "Remind me what we talked about.",
    "List all the things that I told you.",
)


def overview(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """For each number of facts: what is read and said when all of them are asked for at once."""
    for facts in FACTS:
        cases = _cases(words, facts, size)
        values = [case.questions[0].wrong for case in cases]
        asked = [case.questions[0].conversation for case in cases]
        with watch(f"{SUITE}: {facts_told(facts)}") as advance:
            steps = Steps(advance, (1 + len(Arm)) * len(cases))
            memories = absorbed(engine, [case.messages for case in cases], steps.done)
            said = {
                arm: replies_of(engine, arm, given, asked, REPLY_TOKENS, steps.done)
                for arm, given in readings(cases, memories, tuple(Arm)).items()
            }
        drawn = Drawn(list(range(len(cases))), [case.seed for case in cases])
        arms = {
            arm.value: {
                SAID: drawn.estimate([_share(told, reply) for told, reply in zip(values, replies, strict=True)])
            }
            for arm, replies in said.items()
        }
        if engine.selects:
            rests = engine.recall_batch(cast("Sequence[AgentMemory]", memories), asked)
            several = [float(len(one.chosen) > 1) for one in rests]
            texts = ["\n".join(each.text for each, _ in one.chosen) for one in rests]
            shares = [_share(told, text) for told, text in zip(values, texts, strict=True)]
            arms[Arm.MEMORY.value] |= {SEVERAL: drawn.estimate(several), READ: drawn.estimate(shares)}
        yield Figure(SUITE, facts_told(facts), len(cases), len(cases), mean_tokens(engine, cases), arms)


def _cases(words: Sequence[str], facts: int, size: Size) -> list[Case]:
    """One overview question per conversation, all about the user. Its `wrong` holds the told values to look for."""
    shape = replace(HELD_OUT_VALUES, facts=facts, about=("user",))
    cases = []
    # Each conversation is asked once, whatever its number of facts.
    for number, drawn in enumerate(drawn_episodes(words, shape, replace(size, questions=size.questions * facts))):
        values = tuple(question.answer for question in drawn.episode.questions)
        asked = Asked(OVERVIEWS[number % len(OVERVIEWS)], wrong=values)
        cases.append(Case(drawn.episode.messages, (asked,), drawn.seed))
    return cases


def _share(values: Sequence[str], text: str) -> float:
    return sum(contains(text, value) for value in values) / len(values)
