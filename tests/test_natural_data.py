"""Laws of the natural suite's conversations: each question has one answer, told where it says, and nowhere else."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "deltamem_agents" / "lab" / "evaluation" / "data" / "natural"
SPLITS = {split: json.loads((DATA / f"{split}.json").read_text("utf-8")) for split in ("validation", "evaluation")}
PEOPLE: dict[str, Any] = {person["id"]: person for data in SPLITS.values() for person in data["people"]}
KINDS = {"fact", "correction", "other_person", "number", "passing", "recommended", "plan"}

everybody = pytest.mark.parametrize("person", PEOPLE.values(), ids=PEOPLE.keys())


@cache
def words(text: str) -> str:
    """What stands between spaces and punctuation, without case and a space around each; 3.5 or 10:30 is one word."""
    text = unicodedata.normalize("NFC", text).lower()
    inside = {found.start() for found in re.finditer(r"(?<=\d)[.,:/](?=\d)", text)}
    kept = "".join(one if at in inside or one.isalnum() else " " for at, one in enumerate(text))
    return f" {' '.join(kept.split())} "


def says(text: str, value: str) -> bool:
    return words(value) in words(text)


def says_any(text: str, values: list[str]) -> bool:
    return any(says(text, value) for value in values)


def questions(person: Any) -> Iterator[tuple[Any, Any]]:
    for conversation in person["conversations"]:
        for question in conversation["questions"]:
            yield conversation, question


def asked(person: Any) -> list[str]:
    """Everything that is asked of a memory of this person."""
    return [*(question["ask"] for _, question in questions(person)), *person["never_told"], *person["unrelated"]]


def test_there_is_enough_of_it() -> None:
    assert all(data["format"] == 1 for data in SPLITS.values())
    counts = {split: sum(1 for person in data["people"] for _ in questions(person)) for split, data in SPLITS.items()}
    assert len(SPLITS["validation"]["people"]) == 4 and len(SPLITS["evaluation"]["people"]) == 6
    assert counts["validation"] >= 200 and counts["evaluation"] >= 330
    assert all(len(person["conversations"]) == 10 for person in PEOPLE.values())
    assert all(len(person["never_told"]) >= 12 and len(person["unrelated"]) >= 8 for person in PEOPLE.values())


def test_the_readme_counts_what_there_is() -> None:
    readme = (DATA / "README.md").read_text("utf-8")
    for split, data in SPLITS.items():
        people = data["people"]
        conversations = sum(len(person["conversations"]) for person in people)
        total = sum(1 for person in people for _ in questions(person))
        never, unrelated = (sum(len(person[name]) for person in people) for name in ("never_told", "unrelated"))
        ids = ", ".join(person["id"] for person in people)
        assert f"| `{split}.json` | {ids} | {conversations} | {total} | {never} | {unrelated} |" in readme


def test_ids_are_unique() -> None:
    assert len(PEOPLE) == sum(len(data["people"]) for data in SPLITS.values())
    ids = [conversation["id"] for person in PEOPLE.values() for conversation in person["conversations"]]
    assert len(set(ids)) == len(ids)
    assert ids == [f"{person}-{number:02}" for person in PEOPLE for number in range(1, 11)]


@everybody
def test_conversations_alternate_and_end_with_a_reply(person: Any) -> None:
    for conversation in person["conversations"]:
        roles = [message["role"] for message in conversation["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), conversation["id"]
        assert 3 <= len(roles) // 2 <= 7, conversation["id"]
        assert len(conversation["questions"]) >= 5, conversation["id"]
        assert all(message["content"].strip() == message["content"] != "" for message in conversation["messages"])


@everybody
def test_each_answer_is_told_where_it_says(person: Any) -> None:
    for conversation, question in questions(person):
        messages, told_in = conversation["messages"], question["told_in"]
        assert told_in and sorted(set(told_in)) == told_in and told_in[-1] < len(messages), question
        assert all(says_any(messages[at]["content"], question["answers"]) for at in told_in), question
        tellers = {messages[at]["role"] for at in told_in}
        assert "assistant" in tellers if question["kind"] == "recommended" else tellers == {"user"}, question


@everybody
def test_what_answers_a_question_is_said_in_its_own_conversation_alone(person: Any) -> None:
    for conversation, question in questions(person):
        others = [
            message["content"]
            for other in person["conversations"]
            if other is not conversation
            for message in other["messages"]
        ]
        assert not [text for text in others if says_any(text, question["answers"])], question


@everybody
def test_no_question_tells_an_answer(person: Any) -> None:
    texts = asked(person)
    for _, question in questions(person):
        assert not [text for text in texts if says_any(text, question["answers"])], question


@everybody
def test_nothing_is_asked_twice(person: Any) -> None:
    assert not [text for text, count in Counter(text.lower() for text in asked(person)).items() if count > 1]


@everybody
def test_answers_are_short_and_of_a_known_kind(person: Any) -> None:
    for _, question in questions(person):
        answers = question["answers"]
        assert question["kind"] in KINDS, question
        assert answers and all(1 <= len(words(answer).split()) <= 4 for answer in answers), question
        assert len(set(answers)) == len(answers), question


@everybody
def test_corrections_replace_something_that_was_told(person: Any) -> None:
    for conversation, question in questions(person):
        assert ("old" in question) == (question["kind"] == "correction"), question
        for old in question.get("old", []):
            before = [message["content"] for message in conversation["messages"][: question["told_in"][0] + 1]]
            assert any(says(text, old) for text in before), question
            assert not says_any(old, question["answers"]), question
            current = [answer for _, other in questions(person) for answer in other["answers"]]
            assert not [answer for answer in current if words(answer) == words(old)], question


def test_no_answer_belongs_to_two_questions() -> None:
    owners: dict[str, set[str]] = {}
    for person in PEOPLE.values():
        for conversation, question in questions(person):
            for answer in question["answers"]:
                owners.setdefault(words(answer), set()).add(f"{conversation['id']}: {question['ask']}")
    assert not {answer: by for answer, by in owners.items() if len(by) > 1}
