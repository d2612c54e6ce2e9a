"""Laws of tasks on long histories: what a prompt shows within its budget, which memory is read, what is counted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation import long_tasks
from deltamem_agents.lab.evaluation.context import History, Line, Shown
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.long_tasks import LongQuestion, LongTask, Rows, evaluate_tasks, sampled
from deltamem_agents.lab.evaluation.recall import unwatched
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.recalling import Recollection
from deltamem_agents.types import Message, Recall
from tiny_engine import tiny_engine

LINES = (
    Line("Ada: I bought a violin.", "[May]"),
    Line("Bob: How nice, and how loud.", "[May]"),
    Line("Ada: The garden is wet.", "[June]"),
    Line("Bob: Mine is dry.", "[July]"),
)
QUESTION = "Question: What did Ada buy?"


@pytest.fixture(scope="module")
def engine() -> DeltaMemEngine:
    return tiny_engine()


def task(name: str, *kinds: str, seed: int = 0) -> LongTask:
    questions = tuple(
        LongQuestion(f"{name}{n}?", f"{name}{n}", (f"gold {name}{n}",), kind) for n, kind in enumerate(kinds)
    )
    told = ((Message("user", f"I am {name}."),), (Message("user", "Hello."), Message("assistant", "Hi."))[: len(name)])
    return LongTask(name, told, (Line(f"I am {name}."), Line("Hello.")), questions, seed)


# What a prompt shows.


def test_the_window_shows_the_newest_lines_under_their_headings(engine: DeltaMemEngine) -> None:
    history = History(engine, LINES)
    whole = history.prompt(Shown.WINDOW, QUESTION, "violin", 1000)
    assert whole == (
        "[May]\nAda: I bought a violin.\nBob: How nice, and how loud.\n[June]\nAda: The garden is wet.\n"
        f"[July]\nBob: Mine is dry.\n\n{QUESTION}"
    )
    assert history.prompt(Shown.WINDOW, QUESTION, "violin", 90) == (
        f"[June]\nAda: The garden is wet.\n[July]\nBob: Mine is dry.\n\n{QUESTION}"
    )


def test_snippets_are_search_results_in_their_original_order(engine: DeltaMemEngine) -> None:
    history = History(engine, (*LINES, Line("Ada: My violin needs strings.", "[August]")))
    found = history.prompt(Shown.SNIPPETS, QUESTION, "Whose violin?", 1000)
    assert found == f"[May]\nAda: I bought a violin.\n[August]\nAda: My violin needs strings.\n\n{QUESTION}"
    assert history.prompt(Shown.SNIPPETS, QUESTION, "zebra", 1000) == QUESTION


def test_with_nothing_shown_the_prompt_is_the_question_alone(engine: DeltaMemEngine) -> None:
    assert History(engine, LINES).prompt(Shown.NOTHING, QUESTION, "violin", 1000) == QUESTION


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(Shown), st.integers(30, 200), st.lists(st.text("ab c", max_size=20), max_size=8))
def test_no_prompt_is_longer_than_its_budget(shown: Shown, budget: int, texts: list[str]) -> None:
    engine = tiny_engine()
    lines = [Line(f"{text} violin {place}", f"[{place // 3}]") for place, text in enumerate(texts)]
    prompt = History(engine, lines).prompt(shown, QUESTION, "violin", budget)
    assert len(engine.tokenizer.encode(prompt, add_special_tokens=False)) <= budget
    assert prompt.endswith(QUESTION)


def test_a_question_longer_than_the_budget_is_refused(engine: DeltaMemEngine) -> None:
    with pytest.raises(ConfigError, match=r"takes 27 tokens, the prompt budget is 20; raise it"):
        History(engine, LINES).prompt(Shown.WINDOW, QUESTION, "violin", 20)


def test_without_the_search_library_the_error_says_what_to_install(
    engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rank_bm25", None)
    with pytest.raises(ConfigError, match=r"rank-bm25.*deltamem-agents\[eval\]"):
        evaluate_tasks(
            engine, [task("a", "x"), task("b", "x")], ROWS, scored_by_gold, prompt_tokens=200, watch=unwatched
        )


# Which questions.


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.integers(1, 12), st.integers(0, 3))
def test_a_sample_is_drawn_from_all_questions_and_deterministic(counts: list[int], wanted: int, seed: int) -> None:
    tasks = [task(f"t{n}", *["x"] * count) for n, count in enumerate(counts)]
    found = sampled(tasks, wanted, seed)
    assert found == sampled(tasks, wanted, seed)
    assert sum(len(one.questions) for one in found) == min(wanted, sum(counts))
    assert [one.sessions for one in found] == [one.sessions for one in tasks]
    for one, other in zip(found, tasks, strict=True):
        places = [other.questions.index(question) for question in one.questions]
        assert places == sorted(set(places))
    assert sampled(tasks, None) == tasks


def test_having_no_questions_is_refused() -> None:
    with pytest.raises(ConfigError, match="no questions"):
        sampled([task("a"), task("b")], None)


# What is asked with which memory, and counted.

ROWS = Rows(
    "tasks", "right", {"x": frozenset("x"), "y": frozenset("y"), "none": frozenset("z"), "all": frozenset("xy")}
)


TWO = (task("a", "x", "y"), task("bbb", "x"))


def scored_by_gold(question: LongQuestion, reply: str) -> float:
    return float(question.golds[0] in reply)


def rigged(monkeypatch: pytest.MonkeyPatch) -> tuple[DeltaMemEngine, list[tuple[Any, str]]]:
    """An engine that answers right with any nonzero state, and otherwise "nothing"."""
    engine, asked = tiny_engine(), []

    def greedy_replies(states: Any, conversations: Sequence[Sequence[Message]], *, max_tokens: int) -> list[str]:
        given = [None] * len(conversations) if states is None else states
        replies = []
        for state, (message,) in zip(given, conversations, strict=True):
            asked.append((state, message.content))
            question = message.content.split("\n")[-1].rstrip("?")
            replies.append(f"gold {question}" if state is not None and state.norm() > 0 else "nothing")
        return replies

    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    return engine, asked


def by_name(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_every_row_has_every_arm_for_every_kind_of_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = rigged(monkeypatch)
    tasks = [task("a", "x", "x", "y", seed=1), task("b", "x", seed=2), task("c", "y", seed=2)]
    figures = evaluate_tasks(engine, tasks, ROWS, scored_by_gold, prompt_tokens=200, watch=unwatched)
    assert [figure.name for figure in figures] == [
        f"{row} · {shown}" for row in ("x", "y", "all") for shown in ("recent window", "question only", "BM25 snippets")
    ]
    found = by_name(figures)
    assert (found["x · question only"].questions, found["x · question only"].conversations) == (3, 2)
    assert (found["all · recent window"].questions, found["all · recent window"].conversations) == (5, 3)
    assert set(found["all · BM25 snippets"].arms) == {"off"}
    for name in ("all · recent window", "all · question only"):
        values = {arm: measures["right"].value for arm, measures in found[name].arms.items()}
        assert values == {"memory": 1, "off": 0, "zero_state": 0, "wrong_conversation": 1, "random_state": 1}
        assert len(found[name].arms["memory"]["right"].by_seed) == 2
    assert len(asked) == 5 * (2 * len(Arm) + 1)


def test_a_question_reads_its_own_historys_state(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = rigged(monkeypatch)
    tasks = [task("a", "x", "x"), task("b", "x")]
    evaluate_tasks(engine, tasks, ROWS, scored_by_gold, prompt_tokens=200, watch=unwatched)
    own = {}
    for one in tasks:
        state = engine.new_state()
        for session in one.sessions:
            state = engine.absorb(state, session)
        own[one.name] = state.matrices
    only = [(state, text) for state, text in asked if "\n" not in text]
    memory, wrong = only[:3], only[9:12]
    for state, text in memory:
        assert own[text[0]].allclose(state.matrices, atol=1e-5)
    for state, text in wrong:
        assert own["b" if text[0] == "a" else "a"].allclose(state.matrices, atol=1e-5)


def test_replies_are_in_the_order_of_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although prompts are batched by length, longest first."""
    engine, _ = rigged(monkeypatch)
    monkeypatch.setattr(long_tasks, "ASKED_TOKENS", 20)
    tasks = [task("a" * length, "x", "x") for length in (1, 9, 4)]
    figures = evaluate_tasks(engine, tasks, ROWS, scored_by_gold, prompt_tokens=200, watch=unwatched)
    assert by_name(figures)["x · question only"].arms["memory"]["right"].value == 1.0


def test_a_reply_continues_from_its_given_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = tiny_engine(), []

    def greedy_replies(states: Any, conversations: Sequence[Sequence[Message]], *, max_tokens: int) -> list[str]:
        asked.extend(messages[-1] for messages in conversations)
        return [""] * len(conversations)

    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    begun = [replace(one, questions=tuple(replace(q, begun="label:") for q in one.questions)) for one in TWO]
    evaluate_tasks(engine, begun, ROWS, scored_by_gold, prompt_tokens=90, watch=unwatched)
    assert set(asked) == {Message("assistant", "label:")}


@pytest.mark.slow
def test_a_rows_history_length_is_that_of_its_own_histories(engine: DeltaMemEngine) -> None:
    figures = by_name(evaluate_tasks(engine, TWO, ROWS, scored_by_gold, prompt_tokens=90, watch=unwatched))
    own = {one.name: sum(map(engine.count_tokens, one.sessions)) for one in TWO}
    assert figures["y · question only"].history_tokens == own["a"]
    assert figures["x · question only"].history_tokens == sum(own.values()) / 2


@pytest.mark.slow
def test_the_evaluation_is_deterministic(engine: DeltaMemEngine) -> None:
    tasks = [task("a", "x", "y"), task("b", "x")]
    runs = [
        evaluate_tasks(engine, tasks, ROWS, lambda question, reply: len(reply) / 100, prompt_tokens=90, watch=unwatched)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_single_history_is_refused(engine: DeltaMemEngine) -> None:
    with pytest.raises(ConfigError, match="needs another history, and there is 1"):
        evaluate_tasks(engine, [task("a", "x")], ROWS, scored_by_gold, prompt_tokens=90, watch=unwatched)


# A memory of statements.


def test_messages_returned_to_the_window_count_towards_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, budget = tiny_engine(config=SELECTIVE), 60
    engine.recall = Recall(window_tokens=40)
    calls: list[tuple[Recollection, Sequence[Message]]] = []

    def recalled_replies(
        rests: Sequence[Recollection], prompts: Sequence[Sequence[Message]], *, max_tokens: int
    ) -> list[str]:
        calls.extend(zip(rests, prompts, strict=True))
        return [
            prompt[-1].content.split("\n")[-1].replace("?", "") if one.chosen else ""
            for one, prompt in calls[-len(rests) :]
        ]

    def greedy_replies(states: Any, conversations: Sequence[Any], *, max_tokens: int) -> list[str]:
        assert states is None
        return [""] * len(conversations)

    monkeypatch.setattr(engine, "recalled_replies", recalled_replies)
    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    tasks = [task("aa", "x", "x"), task("bb", "x")]
    told = {one.name: [message.content for session in one.sessions for message in session] for one in tasks}

    def scored(question: LongQuestion, reply: str) -> float:
        return float(reply == question.query)

    figures = by_name(evaluate_tasks(engine, tasks, ROWS, scored, prompt_tokens=budget, watch=unwatched))
    for shown in ("recent window", "question only"):
        arms = {arm: found["right"].value for arm, found in figures[f"x · {shown}"].arms.items()}
        assert arms == {"memory": 1, "off": 0, "zero_state": 0, "wrong_conversation": 1, "random_state": 1}
    assert set(figures["x · BM25 snippets"].arms) == {"off"}
    assert any(one.shown for one, _ in calls)
    for one, prompt in calls:
        assert engine.count_tokens([*one.shown, *prompt]) <= budget
    # Four arms of three questions each. The first reads its own history's statements, the third the other's.
    for one, prompt in calls[:3]:
        assert {each.text for each in one.recalled} <= set(told[prompt[0].content.split("\n")[-1][:2]])
    for one, prompt in calls[6:9]:
        assert not {each.text for each in one.recalled} - {"Hello.", "Hi."} & set(
            told[prompt[0].content.split("\n")[-1][:2]]
        )


def test_statements_that_leave_no_room_for_the_question_are_not_shown() -> None:
    engine = tiny_engine(config=SELECTIVE)
    engine.recall = Recall(window_tokens=100)
    asked = LongQuestion("What is the colour of my old bicycle?", "", ("green",), "x")
    told = LongTask("a", ((Message("user", "The colour of my old bicycle is green and white."),),), (), (asked,))
    memories = engine.remember_batch(told.sessions)
    for budget, returns in ((50, False), (200, True)):
        (one,) = long_tasks._Asking(engine, [told], budget).recollections(Arm.MEMORY, memories, lambda count: None)
        assert one.chosen and bool(one.shown) == bool(one.in_window) == returns
