"""Laws of the hand-written conversations: each question has one answer, told in the messages it names and nowhere else.

The natural suite is for evaluation, the natural corpus for training. The two share no answer.
"""

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

LAB = Path(__file__).parents[1] / "deltamem_agents" / "lab"
SUITE, CORPUS = LAB / "evaluation" / "data" / "natural", LAB / "corpus" / "natural"
SPLITS, TRAINING = (
    {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    for folder in (SUITE, CORPUS)
)
PEOPLE, TAUGHT = (
    {person["id"]: person for data in files.values() for person in data["people"]} for files in (SPLITS, TRAINING)
)
KINDS = {"fact", "correction", "other_person", "number", "passing", "recommended", "plan"}

everybody = pytest.mark.parametrize("person", [*PEOPLE.values(), *TAUGHT.values()], ids=[*PEOPLE, *TAUGHT])
the_taught = pytest.mark.parametrize("person", TAUGHT.values(), ids=TAUGHT.keys())


@cache
def words(text: str) -> str:
    """The text's words in lower case, with a space around each. A number such as 3.5 or 10:30 is one word."""
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
    """All questions and prompts of this person."""
    overviews = [overview["ask"] for overview in person.get("overview", [])]
    return [
        *(question["ask"] for _, question in questions(person)),
        *person["never_told"],
        *person["unrelated"],
        *overviews,
    ]


def answers_of(people: dict[str, Any]) -> set[str]:
    return {
        words(answer)
        for person in people.values()
        for _, question in questions(person)
        for answer in question["answers"]
    }


def runs(people: dict[str, Any], length: int) -> set[tuple[str, ...]]:
    """Every sequence of `length` words in these people's conversations and questions."""
    found: set[tuple[str, ...]] = set()
    for person in people.values():
        said = [message["content"] for talk in person["conversations"] for message in talk["messages"]]
        for text in [*said, *(question["ask"] for _, question in questions(person))]:
            split = words(text).split()
            found.update(tuple(split[at : at + length]) for at in range(len(split) - length + 1))
    return found


def test_the_suite_is_large_enough() -> None:
    assert set(SPLITS) == {"validation", "evaluation"}
    assert all(data["format"] == 1 for data in [*SPLITS.values(), *TRAINING.values()])
    counts = {split: sum(1 for person in data["people"] for _ in questions(person)) for split, data in SPLITS.items()}
    assert len(SPLITS["validation"]["people"]) == 4 and len(SPLITS["evaluation"]["people"]) == 6
    assert counts["validation"] >= 200 and counts["evaluation"] >= 330
    assert all(len(person["conversations"]) == 10 for person in PEOPLE.values())
    assert all(len(person["never_told"]) >= 12 and len(person["unrelated"]) >= 8 for person in PEOPLE.values())


def test_the_corpus_is_large_enough() -> None:
    assert sum(1 for person in TAUGHT.values() for _ in questions(person)) >= 650
    for person in TAUGHT.values():
        assert len(person["conversations"]) == 8, person["id"]
        assert (len(person["never_told"]), len(person["unrelated"]), len(person["overview"])) == (10, 6, 2), person[
            "id"
        ]


@pytest.mark.parametrize(("folder", "files"), [(SUITE, SPLITS), (CORPUS, TRAINING)], ids=["suite", "corpus"])
def test_the_readme_has_the_right_counts(folder: Path, files: dict[str, Any]) -> None:
    readme = (folder / "README.md").read_text("utf-8")
    for name, data in files.items():
        people = data["people"]
        conversations = sum(len(person["conversations"]) for person in people)
        total = sum(1 for person in people for _ in questions(person))
        never, unrelated = (sum(len(person[name]) for person in people) for name in ("never_told", "unrelated"))
        ids = ", ".join(person["id"] for person in people)
        assert f"| `{name}.json` | {ids} | {conversations} | {total} | {never} | {unrelated} |" in readme


def test_ids_are_unique() -> None:
    files = [*SPLITS.values(), *TRAINING.values()]
    assert len(PEOPLE | TAUGHT) == sum(len(data["people"]) for data in files)
    for people, conversations in ((PEOPLE, 10), (TAUGHT, 8)):
        ids = [conversation["id"] for person in people.values() for conversation in person["conversations"]]
        assert ids == [f"{person}-{number:02}" for person in people for number in range(1, conversations + 1)]


@everybody
def test_conversations_alternate_and_end_with_a_reply(person: Any) -> None:
    for conversation in person["conversations"]:
        roles = [message["role"] for message in conversation["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), conversation["id"]
        assert 3 <= len(roles) // 2 <= 7, conversation["id"]
        assert len(conversation["questions"]) >= 5, conversation["id"]
        assert all(message["content"].strip() == message["content"] != "" for message in conversation["messages"])


@everybody
def test_every_answer_is_in_the_messages_it_names(person: Any) -> None:
    for conversation, question in questions(person):
        messages, told_in = conversation["messages"], question["told_in"]
        assert told_in and sorted(set(told_in)) == told_in and told_in[-1] < len(messages), question
        assert all(says_any(messages[at]["content"], question["answers"]) for at in told_in), question
        tellers = {messages[at]["role"] for at in told_in}
        assert "assistant" in tellers if question["kind"] == "recommended" else tellers == {"user"}, question


@everybody
def test_an_answer_occurs_only_in_its_own_conversation(person: Any) -> None:
    for conversation, question in questions(person):
        others = [
            message["content"]
            for other in person["conversations"]
            if other is not conversation
            for message in other["messages"]
        ]
        assert not [text for text in others if says_any(text, question["answers"])], question


@everybody
def test_no_question_contains_an_answer(person: Any) -> None:
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
def test_corrections_replace_a_told_value(person: Any) -> None:
    for conversation, question in questions(person):
        assert ("old" in question) == (question["kind"] == "correction"), question
        for old in question.get("old", []):
            before = [message["content"] for message in conversation["messages"][: question["told_in"][0] + 1]]
            assert any(says(text, old) for text in before), question
            assert not says_any(old, question["answers"]), question
            current = [answer for _, other in questions(person) for answer in other["answers"]]
            assert not [answer for answer in current if words(answer) == words(old)], question


@pytest.mark.parametrize(
    "people", [list(PEOPLE.values()), *([person] for person in TAUGHT.values())], ids=["suite", *TAUGHT]
)
def test_no_answer_belongs_to_two_questions(people: list[Any]) -> None:
    owners: dict[str, set[str]] = {}
    for person in people:
        for conversation, question in questions(person):
            for answer in question["answers"]:
                owners.setdefault(words(answer), set()).add(f"{conversation['id']}: {question['ask']}")
    assert not {answer: by for answer, by in owners.items() if len(by) > 1}


@the_taught
def test_a_reply_contains_the_first_answer(person: Any) -> None:
    for _, question in questions(person):
        reply, answer = question["reply"], question["answers"][0]
        assert answer in reply and says(reply, answer), question
        assert reply[-1] in ".!" and not says_any(reply, question.get("old", [])), question


@the_taught
def test_an_overview_names_statements_of_the_person(person: Any) -> None:
    told = {(conversation["id"], at) for conversation, question in questions(person) for at in question["told_in"]}
    messages = {conversation["id"]: conversation["messages"] for conversation in person["conversations"]}
    for overview in person["overview"]:
        places = [(place["conversation"], place["message"]) for place in overview["told_in_conversations"]]
        assert places and sorted(set(places)) == places and told.issuperset(places), overview
        assert all(messages[conversation][at]["role"] == "user" for conversation, at in places), overview


def test_the_corpus_shares_no_answer_with_the_suite() -> None:
    assert not answers_of(TAUGHT) & answers_of(PEOPLE)


def test_the_corpus_shares_no_question_and_no_seven_words_with_the_suite() -> None:
    asks = [{words(text) for person in people.values() for text in asked(person)} for people in (PEOPLE, TAUGHT)]
    assert not asks[0] & asks[1]
    assert not runs(PEOPLE, 7) & runs(TAUGHT, 7)
