"""Laws of the suite misled: what is drawn, what the memory holds, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.evaluation import misled
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.matching import contains
from deltamem_agents.lab.evaluation.recall import FOUND, WHOLE, Asked, Case, unwatched
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.types import Recalled
from tiny_training import word_engine

SIZE = Size(4, (1,))
WORDS = open_words(word_engine().tokenizer)
Said = Callable[[Asked], str]


@pytest.fixture(scope="module")
def engine() -> DeltaMemEngine:
    return word_engine(SELECTIVE)


def measured(
    monkeypatch: pytest.MonkeyPatch, engine: DeltaMemEngine, said: Said, rests_on: Said
) -> tuple[list[Figure], list[tuple[Sequence[Case], Sequence[Any]]]]:
    """The figures of a model whose replies and recalled texts are given, and the cases and memories of each figure."""
    asked: list[tuple[Sequence[Case], Sequence[Any]]] = []
    real = misled.readings

    def readings(cases: Sequence[Case], memories: Sequence[Any], arms: Sequence[Arm]) -> Any:
        asked.append((cases, memories))
        return real(cases, memories, arms)

    def replies_of(engine: Any, arm: Arm, given: Any, conversations: Any, *rest: Any, rested: Any) -> list[str]:
        questions = [one for case in asked[-1][0] for one in case.questions]
        assert [one.conversation for one in questions] == list(conversations)
        assert not any(one.prefix for one in questions)
        if rested is not None:
            rested += [(Recalled("", rests_on(one), "user", "", "", 1.0, "state"),) for one in questions]
        return [said(one) if arm is Arm.MEMORY else "nothing" for one in questions]

    monkeypatch.setattr(misled, "readings", readings)
    monkeypatch.setattr(misled, "replies_of", replies_of)
    return list(misled.misled(engine, WORDS, SIZE, unwatched)), asked


@pytest.mark.slow
def test_a_wrong_reply_gives_another_facts_value_and_is_stored_as_the_assistants(
    monkeypatch: pytest.MonkeyPatch, engine: DeltaMemEngine
) -> None:
    figures, asked = measured(monkeypatch, engine, lambda one: one.answer, lambda one: f"It is {one.answer}.")
    assert [figure.name.split(": ")[1] for figure in figures] == [misled.ONCE, misled.AGAIN] * len(misled.FACTS)
    for (first, before), (again, later) in zip(asked[::2], asked[1::2], strict=True):
        assert [case.questions for case in first] == [case.questions for case in again]
        for case, other, held, held_later in zip(first, again, before, later, strict=True):
            assert isinstance(held, AgentMemory) and isinstance(held_later, AgentMemory)
            text = " ".join(message.content for message in case.messages)
            between = other.messages[len(case.messages) :]
            for one, reply in zip(case.questions, between[1::2], strict=True):
                (wrong,) = one.wrong
                assert wrong != one.answer and wrong in text and one.answer in text
                assert reply.role == "assistant" and wrong in reply.content
                assert not contains(reply.content, one.answer)
                own = [each for each in held_later.statements if each.text == reply.content]
                assert {each.role for each in own} == {"assistant"}
                assert {each.thread for each in own}.isdisjoint(each.thread for each in held.statements)
            assert len(held_later.statements) == len(held.statements) + len(between)
    for figure in figures:
        found = figure.arms["memory"]
        assert (found[WHOLE].value, found[misled.REPEATED].value, found[FOUND].value) == (1, 0, 1)
        assert set(figure.arms) == {arm.value for arm in Arm}
        assert all(figure.arms[arm][misled.REPEATED].value == 0 for arm in figure.arms)


@pytest.mark.slow
def test_a_repeated_wrong_reply_is_counted(monkeypatch: pytest.MonkeyPatch, engine: DeltaMemEngine) -> None:
    figures, _ = measured(monkeypatch, engine, lambda one: f"It is {one.wrong[0]}.", lambda one: one.wrong[0])
    for figure in figures:
        found = figure.arms["memory"]
        assert (found[WHOLE].value, found[misled.REPEATED].value, found[FOUND].value) == (0, 1, 0)
