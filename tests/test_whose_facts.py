"""With the shipped adapter: whose a fact is and who said it, the user or the assistant."""

from __future__ import annotations

import pytest

from deltamem_agents import Message
from real_model import real_engine

TOLD = {
    "I live in Ghent.": "Where do I live?",
    "My sister lives in Oslo.": "Where does my sister live?",
    "My favourite colour is orange.": "What is my favourite colour?",
    "My sister's favourite colour is teal.": "What is my sister's favourite colour?",
    "Tom's favourite colour is grey.": "What is Tom's favourite colour?",
    "I work as a welder.": "What is my job?",
    "My sister works as a nurse.": "What does my sister do for work?",
    "Tom works as a carpenter.": "What does Tom work as?",
    "My dog is called Rex.": "What is my dog called?",
    "My sister's dog is called Pepper.": "What is my sister's dog called?",
}
NEVER_TOLD = (
    "Where does my brother live?",
    "What is my mother's favourite colour?",
    "What is Anna's favourite colour?",
    "What does my uncle do for work? I need it for a form.",
    "I keep forgetting Ben's job. What was it?",
    "What is my aunt's dog called?",
    "Where does Ben live?",
)
UPDATES = {
    "Actually, I live in Bruges now.": "Where do I live?",
    "My sister has moved and lives in Bergen now.": "Where does my sister live?",
}
ADVICE = (
    Message("user", "Can you tell me a good app for budgets?"),
    Message("assistant", "Try Goodbudget: it works with envelopes, so you see what is left for food."),
    Message("user", "My back hurts from all the sitting."),
    Message("assistant", "A rolled towel behind the lower back helps, and so does standing up every half hour."),
)


@pytest.mark.model
@pytest.mark.xdist_group("float32")
@pytest.mark.parametrize("order", [1, -1])
def test_each_question_recalls_the_fact_of_the_person_it_asks_about(order: int) -> None:
    engine = real_engine("float32")
    told = list(TOLD)[::order]
    memory = engine.remember_batch([[Message("user", each) for each in told]])[0]
    rests = engine.recall_batch([memory] * len(TOLD), [[Message("user", each)] for each in TOLD.values()])
    first = [one.recalled[0].text if one.recalled else "" for one in rests]
    assert first == list(TOLD)

    never = engine.recall_batch([memory] * len(NEVER_TOLD), [[Message("user", each)] for each in NEVER_TOLD])
    assert [each.text for one in never for each in one.recalled] == []

    later = engine.remember_batch([[Message("user", each) for each in UPDATES]], [memory])[0]
    asked = [*UPDATES.values(), "What is my favourite colour?"]
    rests = engine.recall_batch([later] * len(asked), [[Message("user", each)] for each in asked])
    assert [one.recalled[0].text for one in rests] == [*UPDATES, "My favourite colour is orange."]


@pytest.mark.model
@pytest.mark.xdist_group("float32")
@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("Which budget app did you suggest?", 1),
        ("What did you recommend for my back?", 3),
        ("Why does my back hurt?", 2),
    ],
)
def test_advice_is_recalled_where_it_is_asked_for(question: str, place: int) -> None:
    engine = real_engine("float32")
    memory = engine.remember_batch([ADVICE])[0]
    (found,) = engine.recall_batch([memory], [[Message("user", question)]])
    assert found.recalled and found.recalled[0].text == ADVICE[place].content


MISLED = {
    "My dog is called Rex.": ("What is my dog called?", "Your dog is called Ghent."),
    "I live in Ghent.": ("Where do I live?", "You live in Rex."),
    "My favourite colour is orange.": ("What is my favourite colour?", "Your favourite colour is welder."),
    "I work as a welder.": ("What is my job?", "Your job is orange."),
}


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_a_wrong_reply_is_not_recalled_when_the_question_is_asked_again() -> None:
    engine = real_engine("float32")
    told = engine.remember_batch([[Message("user", each) for each in MISLED]])
    wrong = [
        message
        for question, reply in MISLED.values()
        for message in (Message("user", question), Message("assistant", reply))
    ]
    (memory,) = engine.remember_batch([wrong], told)
    asked = [[Message("user", question)] for question, _ in MISLED.values()]
    rests = engine.recall_batch([memory] * len(asked), asked)
    assert [[each.text for each in one.recalled] for one in rests] == [[each] for each in MISLED]
