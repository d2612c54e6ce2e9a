"""Laws of recall's training data: for the same statements and questions it equals the data of a turn."""

from __future__ import annotations

import torch

from deltamem_agents.chat.terms import terms_of
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.training.recall_material import (
    Asked,
    Conversation,
    answer_in,
    collect_memory,
    collect_replies,
    generated_people,
    natural_people,
)
from deltamem_agents.types import Message
from tiny_engine import tiny_engine

CONFIG = AdapterConfig(
    rank=4, key_shift=True, gate_floor=0.6, state_update_mode="no_lambda", rankwise_gates=False, read_scope="replies"
)
TOLD = Conversation(
    (Message("user", "My boat is called Tuppen."), Message("assistant", "Noted."), Message("user", "It is red.")),
    (
        Asked("What is my boat called?", (0,), "Tuppen", "It is Tuppen."),
        Asked("How old is it?"),
        Asked("Why is the sky blue?", asks=False),
    ),
)


def engine() -> DeltaMemEngine:
    return tiny_engine(config=CONFIG)


def test_statements_are_numbered_through_all_conversations_of_a_person() -> None:
    memory = collect_memory(engine()._speaker, [TOLD, TOLD])
    assert [each.role for each in memory.statements] == ["user", "assistant", "user"] * 2
    assert [each.right for each in memory.questions] == [(0,), (), (), (3,), (), ()]
    assert [each.asks for each in memory.questions] == [True, True, False] * 2
    assert memory.statements[5].terms == tuple(terms_of("It is red."))


def test_each_reply_is_also_collected_with_the_answer_at_once() -> None:
    speaker = engine()._speaker
    whole, at_once = collect_replies(speaker, [TOLD], frozenset())
    assert whole.features.shape[:2] == (len(whole.target), len(whole.owners)) and len(at_once.target) == 1
    assert set(whole.answering.tolist()) == {False, True} and not whole.at_once
    torch.testing.assert_close(at_once.features, whole.features[:1])
    pointed = whole.targets >= 0
    places = torch.arange(len(whole.targets))[pointed]
    torch.testing.assert_close(whole.log_probabilities[places, whole.targets[pointed]], whole.target[pointed])


def test_an_answer_is_marked_only_as_a_whole_word() -> None:
    speaker = engine()._speaker
    text = "Tuppenny and Tuppen."
    ids = speaker.tokenizer.encode(text, add_special_tokens=False)
    marked = answer_in(speaker, ids, "tuppen")
    assert speaker.tokenizer.decode([token for token, on in zip(ids, marked, strict=True) if on]).strip() == "Tuppen"
    assert not any(answer_in(speaker, ids, "boat"))


def test_the_corpora_give_questions_told_never_told_and_unrelated() -> None:
    words = ["Oslo", "Lima", "blue", "green", "tea", "oak", "Ada", "Bo", "Tom", "cello"] * 40
    for people in (list(natural_people()), list(generated_people([f"{word}{n}" for n, word in enumerate(words)]))):
        asked = [each for person in people for told in person for each in told.asked]
        assert any(each.told_in for each in asked) and any(not each.asks for each in asked)
        assert any(each.asks and not each.told_in for each in asked)
        assert all(each.answer in each.reply for each in asked if each.told_in)
