"""Laws of the recall evaluation: what counts as right, which memory each arm reads, and what a file may hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError, MessageError
from deltamem_agents.evaluation import recall
from deltamem_agents.evaluation.controls import Arm
from deltamem_agents.evaluation.recall import evaluate_recall, generated_episodes, read_episodes, words
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.training.episodes import Episode, EpisodeShape, Question, held_out
from deltamem_agents.types import Message, MessageLike
from tiny_engine import tiny_engine

WORDS = tuple(f"{a}{b}{c}" for a in ("zor", "vik", "mul", "tep") for b in "aeiou" for c in ("lim", "nad", "rux", "sk"))
ARMS = ("memory", "off", "zero_state", "wrong_conversation", "random_state")

Replies = Callable[[Sequence[MemoryState] | None, list[Message], str], str]


def episode(*answers: str, prefix: str = "It is", told: str = "My name is Ada.") -> Episode:
    questions = tuple(Question(f"Question {i} about {answer}?", answer, prefix) for i, answer in enumerate(answers))
    return Episode((Message("user", told), Message("assistant", "Noted.")), questions)


def rigged(monkeypatch: pytest.MonkeyPatch, reply: Callable[[MemoryState | None, str], str]) -> DeltaMemEngine:
    """An engine that replies to a question what `reply` makes of the state and the question's text."""
    engine = tiny_engine()

    def greedy_replies(
        states: Sequence[MemoryState] | None, conversations: Sequence[Sequence[MessageLike]], *, max_tokens: int
    ) -> list[str]:
        given: Sequence[MemoryState | None] = [None] * len(conversations) if states is None else states
        asked = [messages[0].content for messages in conversations if isinstance(messages[0], Message)]
        return [reply(state, text) for state, text in zip(given, asked, strict=True)]

    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    return engine


def figures(report: recall.RecallReport) -> dict[str, tuple[float, float]]:
    return {arm: (result.first.rate, result.whole.rate) for arm, result in report.arms.items()}


def judged(monkeypatch: pytest.MonkeyPatch, answer: str, reply: str, prefix: str) -> tuple[bool, bool]:
    """Whether the first word and the whole of `answer` count as right in `reply`."""
    engine = rigged(monkeypatch, lambda state, text: reply)
    report = evaluate_recall(engine, [episode(answer, prefix=prefix)], arms=[Arm.MEMORY])
    first, whole = figures(report)["memory"]
    return first == 1.0, whole == 1.0


# What counts as right.

BOTH, FIRST, NEITHER = (True, True), (True, False), (False, False)


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("Ann", " Ann.", BOTH),
        ("Ann", "Ann", BOTH),
        ("Ann", " Ann! And you?", BOTH),
        ("Ann", ' "Ann".', BOTH),
        ("Ann", " **Ann**", BOTH),
        ("Ann", " Anna.", NEITHER),
        ("Anna", " Ann", NEITHER),
        ("Ann", " Joann.", NEITHER),
        ("Ann", " ann.", NEITHER),
        ("Ann", " not Ann", NEITHER),
        ("Ann", "", NEITHER),
        ("Ann", " ...", NEITHER),
        ("New York", " New York.", BOTH),
        ("New York", " New Delhi.", FIRST),
        ("New York", " York", NEITHER),
        ("New York", " New\nYork", BOTH),
        ("New York", " New", FIRST),
        ("New York", " The New York", NEITHER),
        ("Jean-Luc", " Jean-Luc.", BOTH),
        ("Jean-Luc", " Jean Paul.", FIRST),
        ("3.5", " 3.5.", BOTH),
        ("3.5", " 3.7", NEITHER),
        ("3.5", " 3", NEITHER),
        ("3", " 3.5", NEITHER),
        ("3", " 3. Then", BOTH),
        ("3.5", " 3. 5", NEITHER),
        ("1,000", " 1,000 of them", BOTH),
        ("1", " 1,000", NEITHER),
        ("10:30", " 10:30.", BOTH),
        ("10:30", " 10:45", NEITHER),
        ("42", " 421", NEITHER),
        ("Zoë", " Zoe\u0308.", BOTH),
        ("Zoe\u0308", " Zoë", BOTH),
        ("Zoë", " Zoe", NEITHER),
        ("Łódź", " Łódź!", BOTH),
        ("हिन्दी", " हिन्दी।", BOTH),
        ("हिन्दी", " हिन्दु", NEITHER),
        ("snake_case", " snake_case", BOTH),
        ("snake_case", " snake case", NEITHER),
        ("東京", " 東京。", BOTH),
    ],
)
def test_behind_a_prefix_the_answer_comes_first_word_by_word(
    monkeypatch: pytest.MonkeyPatch, answer: str, reply: str, expected: tuple[bool, bool]
) -> None:
    assert judged(monkeypatch, answer, reply, "It is") == expected


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("Ann", "Your name is Ann.", BOTH),
        ("Ann", "Ann, of course", BOTH),
        ("Ann", "Is it Anna, or Joann?", NEITHER),
        ("Ann", "I do not know.", NEITHER),
        ("New York", "You live in New York, I think.", BOTH),
        ("New York", "You live in New Delhi, not York.", FIRST),
        ("New York", "New? New York.", BOTH),
        ("New York", "York New", FIRST),
        ("3.5", "You said it is 3.5 metres.", BOTH),
        ("3.5", "Between 3 and 5.", NEITHER),
        ("3.5", "About 3.55.", NEITHER),
        ("5", "About 3.5 or so", NEITHER),
        ("Zoë", "Her name is ZOË or Zoe\u0308.", BOTH),
    ],
)
def test_a_free_reply_is_searched_for_the_answer(
    monkeypatch: pytest.MonkeyPatch, answer: str, reply: str, expected: tuple[bool, bool]
) -> None:
    assert judged(monkeypatch, answer, reply, "") == expected


@given(st.text(max_size=30))
def test_words_have_no_spaces_in_them_and_are_in_the_text(text: str) -> None:
    found = words(text)
    assert found == words(f" ({text}) ")
    assert all(word and word == "".join(word.split()) for word in found)
    assert words(" ".join(found)) == found


@given(st.lists(st.text("abcéжß09", min_size=1), max_size=5), st.sampled_from([" ", "-", "; ", "\n", " … "]))
def test_what_is_joined_by_punctuation_comes_apart_again(parts: list[str], mark: str) -> None:
    assert words(mark.join(parts)) == parts


# Rates.


def test_rates_are_the_shares_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four questions: two right, one right in its first word alone, one wrong; without memory one is right."""
    replies = {"Oslo": " Oslo.", "New York": " New Delhi.", "Ann": " Ann", "blue": " red"}

    def reply(state: MemoryState | None, text: str) -> str:
        answer = text.split(" about ")[1].rstrip("?")
        if state is None:
            return " blue" if answer == "blue" else " nothing"
        return replies[answer]

    engine = rigged(monkeypatch, reply)
    episodes = [episode("Oslo", "New York"), episode("Ann"), episode("blue")]
    report = evaluate_recall(engine, episodes, arms=[Arm.MEMORY, Arm.OFF])
    assert figures(report) == {"memory": (0.75, 0.5), "off": (0.25, 0.25)}
    assert (report.episodes, report.questions, report.facts) == (3, 4, None)
    for result in report.arms.values():
        for rate in (result.first, result.whole):
            assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert report.state_bytes == engine.new_state().nbytes
    assert report.history_tokens == len("My name is Ada." + "Noted.")


def test_more_questions_than_a_batch_are_all_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def reply(state: MemoryState | None, text: str) -> str:
        asked.append(text)
        return " " + text.split(" about ")[1]

    count = 2 * recall.BATCH + 3
    episodes = [episode(f"a{i}", f"b{i}") for i in range(count)]
    report = evaluate_recall(rigged(monkeypatch, reply), episodes, arms=[Arm.MEMORY])
    assert asked == [question.question for one in episodes for question in one.questions]
    assert figures(report)["memory"] == (1.0, 1.0)
    assert report.questions == 2 * count


def test_each_arm_reads_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[MemoryState | None] = []

    def reply(state: MemoryState | None, text: str) -> str:
        read.append(state)
        return ""

    engine = rigged(monkeypatch, reply)
    episodes = [
        episode("Oslo", "Ann", told="I live in Oslo."),
        episode("Oslo", told="My home is Oslo."),
        episode("Rome", told="I am from Rome."),
    ]
    own = [engine.absorb(engine.new_state(), one.messages).matrices for one in episodes]
    evaluate_recall(engine, episodes, arms=list(Arm))
    by_arm = {arm: read[4 * place : 4 * place + 4] for place, arm in enumerate(Arm)}
    for index, row in enumerate((0, 0, 1, 2)):
        memory, zero, random = (by_arm[arm][index] for arm in (Arm.MEMORY, Arm.ZERO, Arm.RANDOM))
        assert memory is not None and zero is not None and random is not None
        assert torch.equal(memory.matrices, own[row])
        assert zero.norm() == 0
        torch.testing.assert_close(random.matrices.norm(dim=(-2, -1)), own[row].norm(dim=(-2, -1)))
        assert not torch.allclose(random.matrices, own[row])
    assert by_arm[Arm.OFF] == [None] * 4
    # Episode 1 tells Oslo too, so episode 0 and it both get episode 2's.
    wrong = [state.matrices for state in by_arm[Arm.WRONG] if state is not None]
    assert [next(i for i in range(3) if torch.equal(one, own[i])) for one in wrong] == [2, 2, 2, 0]


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
def test_the_wrong_conversation_cannot_be_right_by_accident(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], expected: int
) -> None:
    read: list[MemoryState | None] = []

    def reply(state: MemoryState | None, text: str) -> str:
        read.append(state)
        return ""

    engine = rigged(monkeypatch, reply)
    episodes = [episode(answer, told=f"Fact {i} is {answer}.") for i, answer in enumerate(answers)]
    own = [engine.absorb(engine.new_state(), one.messages).matrices for one in episodes]
    evaluate_recall(engine, episodes, arms=[Arm.WRONG])
    assert read[0] is not None
    assert torch.equal(read[0].matrices, own[expected])


def test_the_evaluation_is_the_same_each_time() -> None:
    engine = tiny_engine()
    episodes = generated_episodes(WORDS, EpisodeShape(split="evaluation", distractors=(0, 1)), 3, seed=5)
    reports = [evaluate_recall(engine, episodes, seed=2, facts=1) for _ in range(2)]
    assert reports[0] == reports[1]
    assert engine.store.agents() == []


def test_without_memory_and_with_a_zero_state_the_same_is_said() -> None:
    """On a real engine, whose replies need not be right for their rates to be equal: compare the replies."""
    engine = tiny_engine()
    conversations = [[Message("user", f"What is {word}?"), Message("assistant", "It is")] for word in WORDS[:3]]
    zeros = [engine.new_state()] * 3
    off = engine.greedy_replies(None, conversations, max_tokens=6)
    assert engine.greedy_replies(zeros, conversations, max_tokens=6) == off
    told = [engine.absorb(engine.new_state(), [Message("user", f"My code is {word}.")]) for word in WORDS[:3]]
    assert engine.greedy_replies(told, conversations, max_tokens=6) != off


def test_a_reply_has_room_for_the_longest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one token a byte, a longer word that begins with the answer has to be told from it."""
    engine, asked = tiny_engine(), []
    real = engine.greedy_replies

    def greedy_replies(states: Any, conversations: Any, *, max_tokens: int) -> list[str]:
        asked.append((max_tokens, [messages[-1].role for messages in conversations]))
        return real(states, conversations, max_tokens=2)

    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    evaluate_recall(engine, [episode("Ann", "Maximilian")], arms=[Arm.MEMORY])
    evaluate_recall(engine, [episode("Ann", prefix="")], arms=[Arm.MEMORY])
    (behind_prefix, roles), (free, free_roles) = asked
    assert behind_prefix >= len(" Maximilian") + 1
    assert free > recall.FREE_REPLY_TOKENS
    assert (roles, free_roles) == (["assistant", "assistant"], ["user"])


def test_progress_ends_at_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    engine = rigged(monkeypatch, lambda state, text: "")
    evaluate_recall(engine, [episode("a", "b"), episode("c")], advance=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (2 + 5 * 3, 2 + 5 * 3)
    assert {total for _, total in seen} == {seen[-1][1]}


def test_a_report_as_json_has_stable_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rigged(monkeypatch, lambda state, text: " a")
    report = asdict(evaluate_recall(engine, [episode("a"), episode("b")], facts=1))
    assert set(report) == {"facts", "episodes", "questions", "state_bytes", "history_tokens", "arms"}
    assert tuple(report["arms"]) == ARMS
    for result in report["arms"].values():
        assert set(result) == {"first", "whole"}
        assert all(set(rate) == {"rate", "low", "high"} for rate in result.values())
    assert json.loads(json.dumps(report)) == report


# What is refused before any work is done.


@pytest.mark.parametrize("answer", ["", "  ", "…", "🐶", "\u0301", "_"])
def test_an_answer_without_words_is_refused(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    with pytest.raises(ConfigError, match="expected at least one word"):
        evaluate_recall(tiny_engine(), [episode("Ann"), episode(answer)])


def test_a_single_episode_has_no_wrong_conversation() -> None:
    with pytest.raises(ConfigError, match=r"needs another conversation.*at least 2 episodes"):
        evaluate_recall(tiny_engine(), [episode("Ann", "Oslo")])


def test_a_single_episode_is_enough_without_that_control(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rigged(monkeypatch, lambda state, text: " Ann")
    assert figures(evaluate_recall(engine, [episode("Ann")], arms=[Arm.MEMORY]))["memory"] == (1.0, 1.0)


@pytest.mark.parametrize("episodes", [[], [episode(), episode()]])
def test_nothing_to_ask_is_refused(episodes: list[Episode]) -> None:
    with pytest.raises(ConfigError, match="no questions"):
        evaluate_recall(tiny_engine(), episodes)


# Generated episodes.


def test_generated_episodes_are_those_of_their_seed() -> None:
    shape = EpisodeShape(2, split="evaluation")
    assert generated_episodes(WORDS, shape, 5, 1) == generated_episodes(WORDS, shape, 5, 1)
    assert generated_episodes(WORDS, shape, 5, 1) != generated_episodes(WORDS, shape, 5, 2)
    assert generated_episodes(WORDS, shape, 5, 1)[:3] == generated_episodes(WORDS, shape, 3, 1)
    assert all(held_out(q.answer) for one in generated_episodes(WORDS, shape, 50, 1) for q in one.questions)


# Episodes from a file.

ROW: dict[str, Any] = {
    "messages": [{"role": "user", "content": "I live in Oslo."}, {"role": "assistant", "content": "Noted."}],
    "questions": [
        {"question": "Where do I live?", "answer": "Oslo"},
        {"question": "Which city?", "answer": "Oslo", "prefix": "It is"},
    ],
}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_holds_one_episode_a_line(tmp_path: Path) -> None:
    (found, again) = read_episodes(written(tmp_path / "a.jsonl", ROW, ROW))
    assert found == again
    assert found.messages == (Message("user", "I live in Oslo."), Message("assistant", "Noted."))
    assert found.questions == (
        Question("Where do I live?", "Oslo", ""),
        Question("Which city?", "Oslo", "It is"),
    )


def test_blank_lines_a_byte_order_mark_and_foreign_line_ends_are_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", ROW)
    plain = read_episodes(path)
    text = path.read_text(encoding="utf-8").rstrip("\n")
    path.write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n\r\n   \r\n{text}".encode())
    assert read_episodes(path) == plain * 2


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_text_may_hold_any_character(tmp_path: Path, mark: str) -> None:
    row = {**ROW, "messages": [{"role": "user", "content": f"a{mark}b"}]}
    path = tmp_path / "a.jsonl"
    raw = json.dumps(row, ensure_ascii=mark < " ")
    path.write_bytes(raw.encode() + b"\n")
    (found,) = read_episodes(path)
    assert found.messages[0].content == f"a{mark}b"


def test_numbers_are_taken_as_their_text(tmp_path: Path) -> None:
    row = {**ROW, "questions": [{"question": "How many?", "answer": 42}, {"question": "How far?", "answer": 3.5}]}
    (found,) = read_episodes(written(tmp_path / "a.jsonl", row))
    assert [question.answer for question in found.questions] == ["42", "3.5"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2], r"found \[1, 2\]"),
        ({"questions": ROW["questions"]}, "'messages' is None"),
        ({**ROW, "messages": []}, r"'messages' is \[\]"),
        ({**ROW, "messages": "I live in Oslo."}, "'messages' is 'I live"),
        ({**ROW, "messages": [{"role": "robot", "content": "x"}]}, "message 0: .*robot"),
        ({**ROW, "messages": [{"role": "user", "content": ["x"]}]}, "message 0: .*expected text"),
        ({**ROW, "messages": ["x"]}, "message 0 is 'x'"),
        ({**ROW, "questions": []}, r"'questions' is \[\]"),
        ({"messages": ROW["messages"]}, "'questions' is None"),
        ({**ROW, "questions": ["Where?"]}, "question 1 is 'Where"),
        ({**ROW, "questions": [*ROW["questions"], {"question": "Where?"}]}, "question 3 has answer None"),
        ({**ROW, "questions": [{"answer": "Oslo"}]}, "question 1 has question None"),
        ({**ROW, "questions": [{"question": "Where?", "answer": ["Oslo"]}]}, "question 1 has answer .*no text"),
        ({**ROW, "questions": [{"question": "Where?", "answer": True}]}, "question 1 has answer True"),
        ({**ROW, "questions": [{"question": "Where?", "answer": "  "}]}, "no word that a reply could match"),
        ({**ROW, "questions": [{"question": "Where?", "answer": "a", "prefix": None}]}, "has prefix None"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = written(tmp_path / "a.jsonl", ROW, ROW)
    path.write_text(path.read_text(encoding="utf-8") + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(MessageError, match=rf"a\.jsonl, line 4: .*{message}") as refused:
        read_episodes(path)
    assert "expected an object" in str(refused.value)


@pytest.mark.parametrize("line", [b"{", b'{"messages": \xff}', b"not json"])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "a.jsonl", ROW)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(MessageError, match=r"a\.jsonl, line 2: "):
        read_episodes(path)


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_a_file_without_episodes_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no episodes"):
        read_episodes(path)
