"""Laws of the recall evaluation: which memory each arm reads, what is counted, and what is refused beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation import recall
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.recall import FIRST, WHOLE, Asked, Case, Title, evaluate_recall
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message, MessageLike
from tiny_engine import tiny_engine

TITLE = Title("capacity", "some facts", 3)


def case(*answers: str, prefix: str = "It is", told: str = "My name is Ada.", seed: int = 0) -> Case:
    questions = tuple(Asked(f"Question {i} about {answer}?", answer, prefix) for i, answer in enumerate(answers))
    return Case((Message("user", told), Message("assistant", "Noted.")), questions, seed)


def rigged(monkeypatch: pytest.MonkeyPatch, reply: Callable[[MemoryState | None, str], str]) -> DeltaMemEngine:
    """An engine whose replies are `reply(state, question)`."""
    engine = tiny_engine()

    def greedy_replies(
        states: Sequence[MemoryState] | None, conversations: Sequence[Sequence[MessageLike]], *, max_tokens: int
    ) -> list[str]:
        given: Sequence[MemoryState | None] = [None] * len(conversations) if states is None else states
        asked = [messages[0].content for messages in conversations if isinstance(messages[0], Message)]
        return [reply(state, text) for state, text in zip(given, asked, strict=True)]

    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    return engine


def values(figure: Figure, measure: str = WHOLE) -> dict[str, float]:
    return {arm: measures[measure].value for arm, measures in figure.arms.items()}


# What is counted.


def test_rates_equal_shares_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four questions: two right, one right only in its first word, one wrong. Without memory one is right."""
    replies = {"Oslo": " Oslo.", "New York": " New Delhi.", "Ann": " Ann", "blue": " red"}

    def reply(state: MemoryState | None, text: str) -> str:
        answer = text.split(" about ")[1].rstrip("?")
        if state is None:
            return " blue" if answer == "blue" else " nothing"
        return replies[answer]

    engine = rigged(monkeypatch, reply)
    cases = [case("Oslo", "New York", seed=1), case("Ann", seed=1), case("blue", seed=2)]
    figure = evaluate_recall(engine, TITLE, cases, arms=[Arm.MEMORY, Arm.OFF])
    assert values(figure, WHOLE) == {"memory": 0.5, "off": 0.25}
    assert values(figure, FIRST) == {"memory": 0.75, "off": 0.25}
    assert figure.arms["memory"][WHOLE].by_seed == pytest.approx((2 / 3, 0.0))
    assert (figure.suite, figure.name, figure.place) == ("capacity", "some facts", 3)
    assert (figure.conversations, figure.questions) == (3, 4)
    assert figure.history_tokens == len("My name is Ada." + "Noted.")
    for measures in figure.arms.values():
        for found in measures.values():
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_wrong_values_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rigged(monkeypatch, lambda state, text: " Rome." if state is None else " Oslo.")
    asked = (Asked("Where?", "Oslo", "It is", ("Rome", "Bern")), Asked("Where now?", "Rome", "It is", ("Oslo",)))
    cases = [Case((Message("user", "I moved."),), asked), case("Ann")]
    figure = evaluate_recall(engine, Title("updates", "x", wrong="old value"), cases, arms=[Arm.MEMORY, Arm.OFF])
    assert values(figure, "old value") == {"memory": pytest.approx(1 / 3), "off": pytest.approx(1 / 3)}
    assert values(figure, WHOLE) == {"memory": pytest.approx(1 / 3), "off": pytest.approx(1 / 3)}


def test_without_right_answers_only_wrong_values_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rigged(monkeypatch, lambda state, text: "I think it is Rome, or so.")
    cases = [Case((Message("user", "x"),), (Asked("Where?", wrong=("Rome",)), Asked("Who?", wrong=("Ann",))))] * 2
    figure = evaluate_recall(engine, TITLE, cases)
    assert {tuple(measures) for measures in figure.arms.values()} == {("wrong",)}
    assert values(figure, "wrong")["memory"] == 0.5


def test_beside_marks_other_values_as_wrong() -> None:
    assert Asked("Who?", "Ann").beside(["Bob", "Ann", "Eve"]).wrong == ("Bob", "Eve")


def test_freely_drops_the_replys_beginning() -> None:
    (asked,) = case("Oslo").freely().questions
    assert asked.conversation == [Message("user", "Question 0 about Oslo?")]
    (begun,) = case("Oslo").questions
    assert begun.conversation == [Message("user", "Question 0 about Oslo?"), Message("assistant", "It is")]


def test_more_questions_than_a_batch_are_each_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def reply(state: MemoryState | None, text: str) -> str:
        asked.append(text)
        return " " + text.split(" about ")[1]

    count = recall.ASKED_AT_ONCE // 2 + 3
    cases = [case(f"a{i}", f"b{i}") for i in range(count)]
    figure = evaluate_recall(rigged(monkeypatch, reply), TITLE, cases, arms=[Arm.MEMORY])
    assert asked == [question.text for one in cases for question in one.questions]
    assert values(figure) == {"memory": 1.0}
    assert figure.questions == 2 * count


# Which memory is read.


def test_each_arm_reads_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[MemoryState | None] = []

    def reply(state: MemoryState | None, text: str) -> str:
        read.append(state)
        return ""

    engine = rigged(monkeypatch, reply)
    cases = [
        case("Oslo", "Ann", told="I live in Oslo."),
        case("Oslo", told="My home is Oslo."),
        case("Rome", told="I am from Rome."),
    ]
    own = [engine.absorb(engine.new_state(), one.messages).matrices for one in cases]
    evaluate_recall(engine, TITLE, cases, arms=list(Arm))
    by_arm = {arm: read[4 * place : 4 * place + 4] for place, arm in enumerate(Arm)}
    for index, row in enumerate((0, 0, 1, 2)):
        memory, zero, random = (by_arm[arm][index] for arm in (Arm.MEMORY, Arm.ZERO, Arm.RANDOM))
        assert memory is not None and zero is not None and random is not None
        torch.testing.assert_close(memory.matrices, own[row], rtol=1e-4, atol=1e-5)
        assert zero.norm() == 0
        torch.testing.assert_close(
            random.matrices.norm(dim=(-2, -1)), own[row].norm(dim=(-2, -1)), rtol=1e-4, atol=1e-5
        )
        assert not torch.allclose(random.matrices, own[row])
    assert by_arm[Arm.OFF] == [None] * 4
    # Case 1 tells Oslo too, so cases 0 and 1 both get case 2's memory.
    wrong = [state.matrices for state in by_arm[Arm.WRONG] if state is not None]
    assert [next(i for i in range(3) if torch.allclose(one, own[i], atol=1e-5)) for one in wrong] == [2, 2, 2, 0]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["New York", "New Delhi", "Oslo"], 2),
        (["Oslo", "oslo", "Rome"], 2),
        (["Oslo", "Oslo!", "Rome"], 2),
        (["New York", "New York", "New Delhi"], 2),
        (["Oslo", "Oslo", "Oslo"], 1),
    ],
)
def test_the_wrong_conversation_cannot_be_right_by_accident(answers: list[str], expected: int) -> None:
    engine = tiny_engine()
    cases = [case(answer, told=f"Fact {i} is {answer}.") for i, answer in enumerate(answers)]
    own = [engine.absorb(engine.new_state(), one.messages) for one in cases]
    read = recall.readings(cases, own, [Arm.WRONG])[Arm.WRONG]
    assert read is not None
    assert read[0] is own[expected]


def test_a_stranger_does_not_know_the_wrong_values_either() -> None:
    """Otherwise the control could give the old value, and its rate would look like the memory's own."""
    cases = [
        Case((), (Asked("Where?", "Oslo", wrong=("Rome",)),)),
        Case((), (Asked("Where?", "Rome"),)),
        Case((), (Asked("Where?", "Bern"),)),
    ]
    engine = tiny_engine()
    states = [engine.new_state() for _ in cases]
    read = recall.readings(cases, states, [Arm.WRONG])[Arm.WRONG]
    assert read is not None
    assert read[0] is states[2]


@pytest.mark.slow
def test_the_evaluation_is_deterministic() -> None:
    engine = tiny_engine()
    cases = [case(word, told=f"My code is {word}.") for word in ("amber", "basil", "cedar")]
    assert evaluate_recall(engine, TITLE, cases) == evaluate_recall(engine, TITLE, cases)
    assert engine.store.agents() == []


def test_memory_off_and_a_zero_state_give_the_same_replies() -> None:
    """Compares the replies themselves, since equal rates could hide different replies."""
    engine = tiny_engine()
    words = ("amber", "basil", "cedar")
    conversations = [[Message("user", f"What is {word}?"), Message("assistant", "It is")] for word in words]
    zeros = [engine.new_state()] * 3
    off = engine.greedy_replies(None, conversations, max_tokens=6)
    assert engine.greedy_replies(zeros, conversations, max_tokens=6) == off
    told = [engine.absorb(engine.new_state(), [Message("user", f"My code is {word}.")]) for word in words]
    assert engine.greedy_replies(told, conversations, max_tokens=6) != off


def test_a_reply_has_room_for_the_longest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one token per byte, a longer word that begins with the answer must be distinguished from it."""
    engine, asked = tiny_engine(), []
    real = engine.greedy_replies

    def greedy_replies(states: Any, conversations: Any, *, max_tokens: int) -> list[str]:
        asked.append((max_tokens, [messages[-1].role for messages in conversations]))
        return real(states, conversations, max_tokens=2)

    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    evaluate_recall(engine, TITLE, [case("Ann", "Maximilian")], arms=[Arm.MEMORY])
    old = Case((Message("user", "x"),), (Asked("Who?", "Ann", "It is", ("Bartholomew",)),))
    evaluate_recall(engine, TITLE, [old], arms=[Arm.MEMORY])
    evaluate_recall(engine, TITLE, [case("Ann", prefix="")], arms=[Arm.MEMORY])
    (behind_prefix, roles), (with_old, _), (free, free_roles) = asked
    assert behind_prefix >= len(" Maximilian") + 1
    assert with_old >= len(" Bartholomew") + 1
    assert free > recall.FREE_REPLY_TOKENS
    assert (roles, free_roles) == (["assistant", "assistant"], ["user"])


def test_progress_ends_at_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    named: list[str] = []

    @contextmanager
    def watch(text: str) -> Any:
        named.append(text)
        yield lambda done, total: seen.append((done, total))

    engine = rigged(monkeypatch, lambda state, text: "")
    evaluate_recall(engine, TITLE, [case("a", "b"), case("c")], watch=watch)
    assert named == ["capacity: some facts"]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (2 + 5 * 3, 2 + 5 * 3)
    assert {total for _, total in seen} == {seen[-1][1]}


# What is refused before any work is done.


@pytest.mark.parametrize("answer", ["", "  ", "…", "🐶", "\u0301", "_"])
def test_an_answer_without_words_is_refused(answer: str) -> None:
    with pytest.raises(ConfigError, match="expected at least one word"):
        evaluate_recall(tiny_engine(), TITLE, [case("Ann"), case(answer)])


def test_a_single_conversation_has_no_wrong_conversation() -> None:
    with pytest.raises(ConfigError, match=r"needs another conversation.*at least 2 episodes"):
        evaluate_recall(tiny_engine(), TITLE, [case("Ann", "Oslo")])


def test_a_single_conversation_is_enough_without_the_wrong_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rigged(monkeypatch, lambda state, text: " Ann")
    assert values(evaluate_recall(engine, TITLE, [case("Ann")], arms=[Arm.MEMORY])) == {"memory": 1.0}


@pytest.mark.parametrize("cases", [[], [case(), case()]])
def test_having_no_questions_is_refused(cases: list[Case]) -> None:
    with pytest.raises(ConfigError, match="no questions"):
        evaluate_recall(tiny_engine(), TITLE, cases)
