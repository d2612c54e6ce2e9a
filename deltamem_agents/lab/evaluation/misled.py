"""A question asked again after a wrong reply: does the memory take the model's own words for what it was told?

Facts are told in one conversation. In a second one, each is asked for, and the reply gives another fact's value ("Your
name is vegetarian."). In a third one, it is asked for again; this reply is free. For comparison, the same question is
also asked without the second conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.evaluation.controls import Arm, Held
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, DrawnEpisode, Size, drawn_episodes, facts_told
from deltamem_agents.lab.evaluation.matching import contains
from deltamem_agents.lab.evaluation.recall import (
    FREE_REPLY_TOKENS,
    Asked,
    Case,
    Steps,
    Title,
    Watch,
    absorbed,
    asked_count,
    check_cases,
    figure_of,
    mean_tokens,
    readings,
    replies_of,
    with_found,
)
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.types import Message, Recalled

SUITE = "misled"
REPEATED = "wrong value given"
"""Measure: the reply gives the wrong reply's value, whether or not the wrong reply was given before."""

FACTS = (4, 16)
"""Numbers of facts per conversation. There must be several: wrong replies give other facts' values."""

ONCE, AGAIN = "asked for the first time", "asked again behind a wrong reply"


def misled(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """For each number of facts: replies to questions asked for the first time, and again after a wrong reply."""
    for facts in FACTS:
        begun = [_case(drawn) for drawn in drawn_episodes(words, replace(HELD_OUT_VALUES, facts=facts), size)]
        check_cases(begun, tuple(Arm))
        wrong = [wrong_replies(case) for case in begun]
        with watch(f"{SUITE}: {facts_told(facts)}") as advance:
            steps = Steps(advance, 2 * (len(begun) + len(Arm) * asked_count(begun)))
            first = absorbed(engine, [case.messages for case in begun], steps.done)
            later = absorbed(engine, wrong, steps.done, first)
            for name, memories, said in ((ONCE, first, [()] * len(begun)), (AGAIN, later, wrong)):
                cases = [
                    replace(case.freely(), messages=(*case.messages, *between))
                    for case, between in zip(begun, said, strict=True)
                ]
                yield _figure(engine, f"{facts_told(facts)}: {name}", cases, memories, wrong, steps)


def wrong_replies(case: Case) -> tuple[Message, ...]:
    """The conversation in which every question is answered wrongly."""
    return tuple(
        message
        for asked in case.questions
        for message in (Message("user", asked.text), Message("assistant", f"{asked.prefix} {asked.wrong[0]}."))
    )


def _case(drawn: DrawnEpisode) -> Case:
    """The case, with another fact's value as the wrong answer to each question."""
    values = [question.answer for question in drawn.episode.questions]
    case = drawn.case()

    def misled_by(asked: Asked) -> Asked:
        return replace(asked, wrong=(drawn.rng.choice([value for value in values if value != asked.answer]),))

    return replace(case, questions=tuple(map(misled_by, case.questions)))


def _figure(
    engine: DeltaMemEngine,
    name: str,
    cases: Sequence[Case],
    memories: Sequence[Held],
    wrong: Sequence[Sequence[Message]],
    steps: Steps,
) -> Figure:
    questions = [asked for case in cases for asked in case.questions]
    conversations = [asked.conversation for asked in questions]
    rests: list[Sequence[Recalled]] = []
    said = {
        arm: replies_of(
            engine,
            arm,
            given,
            conversations,
            FREE_REPLY_TOKENS,
            steps.done,
            rested=rests if arm is Arm.MEMORY else None,
        )
        for arm, given in readings(cases, memories, tuple(Arm)).items()
    }
    # A wrong reply to another question may contain the answer to this one.
    pairs = zip(cases, wrong, strict=True)
    replied = [{each.content for each in of_case} for case, of_case in pairs for _ in case.questions]
    first = [
        any(contains(each.text, asked.answer) and each.text not in wrong_ones for each in found[:1])
        for asked, wrong_ones, found in zip(questions, replied, rests, strict=False)
    ]
    figure = figure_of(Title(SUITE, name, wrong=REPEATED), cases, said, mean_tokens(engine, cases))
    return with_found(figure, cases, first)
