"""Laws of finding a question in a message that says other things too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import DeltaMemEngine, Message, Sampling
from deltamem_agents.chat.questions import asking_part, offers_choices, questions_within
from real_model import real_engine

TOLD = {
    "I moved to Lisbon last spring and I love it here.": "Which city do I live in?",
    "My dog Biscuit had to see the vet again today.": "What is my dog's name?",
    "The code of our garage door is 4471.": "What is the code of our garage door?",
    "My next dentist appointment is on Thursday at 3 pm.": "When is my dentist appointment?",
}
AROUND = (
    "Answer in a few words. {}",
    "{} Please answer in one short sentence.",
    "You are talking to a returning customer. Answer as briefly as you can, and do not invent anything.\n"
    "Question: {}\nShort answer:",
    "Hi there, hope you are well! I was just cleaning up my calendar and got confused. {}",
)


def told_all(agent: str) -> DeltaMemEngine:
    """The real engine, with everything in TOLD told to the agent, each in a thread of its own."""
    engine = real_engine("float32")
    for number, told in enumerate(TOLD):
        engine.run_turn(agent, [Message("user", told)], thread=str(number), sampling=Sampling(max_tokens=1))
    return engine


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I like tea.", []),
        ("", []),
        ("What is my name?", ["What is my name?"]),
        ("Answer briefly. What is my name?", ["What is my name?"]),
        ("What is my name? Answer briefly.", ["What is my name?"]),
        ("Be brief.\n\nQuestion: What is my name?\nAnswer:", ["What is my name?"]),
        ("What does Mrs. Hatano keep?", ["What does Mrs. Hatano keep?"]),
        ("Is it 3 p.m. yet?", ["Is it 3 p.m. yet?"]),
        ("Be brief. What does Mr. Oduya collect?", ["What does Mr. Oduya collect?"]),
        ("簡潔に答えてください。 私の名前は何ですか？", ["私の名前は何ですか？"]),
        ("Hi! What is my name? I forgot. And my age?", ["What is my name?", "And my age?"]),
    ],
)
def test_the_questions_of_a_text(text: str, found: list[str]) -> None:
    assert questions_within(text) == found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", ""),
        ("Tell me Tom's age. Thanks.", "Tell me Tom's age. Thanks."),
        ("I forgot Tom's age. What is it? Ada is waiting.", "I forgot Tom's age. What is it?"),
        ("Ada is here. Do you know what my age is?", "Do you know what my age is?"),
        ("How old am I? How old is Tom?", "How old am I? How old is Tom?"),
    ],
)
def test_the_part_of_a_text_that_asks(text: str, part: str) -> None:
    assert asking_part(text) == part


@pytest.mark.parametrize(
    ("text", "offers"),
    [
        ("Choose one: (a) Not mentioned (b) Oslo\nAnswer with a or b:", True),
        ("Where do I live?\nA. Oslo\nB. Lisbon", True),
        ("1. Be brief. 2. Be polite. What is my name?", False),
        ("Where do I live?", False),
        ("I was at plan B. a) is missing", False),
        ("My list: 1. milk", False),
        ("What is vitamin A. and why (b) now", False),
        ("", False),
    ],
)
def test_choices_are_known_by_their_letters(text: str, offers: bool) -> None:
    assert offers_choices(text) == offers


@given(st.text(st.sampled_from("ab.?? \n:"), max_size=40))
def test_questions_are_part_of_the_text(text: str) -> None:
    for question in questions_within(text):
        assert question.endswith("?") and set(question.split()) <= set(text.split())
        assert questions_within(question) == [question]


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_instructions_around_a_question_do_not_hide_what_it_is_about() -> None:
    engine = told_all("wrapped")
    found = {}
    for around in ("{}", *AROUND):
        for told, question in TOLD.items():
            asked = [Message("user", around.format(question))]
            turn = engine.run_turn("wrapped", asked, memory="readonly", sampling=Sampling(max_tokens=1))
            found[around, question] = [each.text for each in turn.facts.recalled[:1]] == [told]
    assert all(found["{}", question] for question in TOLD.values())
    missed = [key for key, right in found.items() if not right]
    assert len(missed) <= 1, missed
    for prompt in ("Answer in a few words. What is the capital of France?", "Be brief. How do I boil an egg?"):
        turn = engine.run_turn("wrapped", [Message("user", prompt)], memory="readonly", sampling=Sampling(max_tokens=1))
        assert turn.facts.recalled == ()


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_each_question_of_a_message_finds_its_own_statement() -> None:
    engine = told_all("several")
    (lives, city), (dog, name), *_ = TOLD.items()
    for text in (f"{city} {name}", f"{name} And {city[0].lower()}{city[1:]}", f"Be brief. {name} {city}"):
        turn = engine.run_turn("several", [Message("user", text)], memory="readonly", sampling=Sampling(max_tokens=1))
        assert {each.text for each in turn.facts.recalled} == {lives, dog}, text


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_a_statement_is_shown_and_not_quoted_where_the_reply_is_a_choice() -> None:
    engine = real_engine("float32")
    engine.run_turn("choosing", [Message("user", next(iter(TOLD)))], sampling=Sampling(max_tokens=1))
    for text, how in (
        ("Which city do I live in?", "state"),
        ("Which city do I live in? (a) Oslo (b) Rome", "state+window"),
    ):
        turn = engine.run_turn("choosing", [Message("user", text)], memory="readonly", sampling=Sampling(max_tokens=4))
        assert [each.read_from for each in turn.facts.recalled] == [how]
