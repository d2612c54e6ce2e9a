"""Laws of histories: each message is written once, and only messages that the client changed are dropped."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch

from client_turns import SHORT, U1, U2, U3, grow, head, same_state, scripted
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import (
    HistoryDivergedError,
)
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.turns.planning import WritePolicy
from deltamem_agents.types import Message
from tiny_engine import tiny_engine


@pytest.fixture
def engine() -> DeltaMemEngine:
    return tiny_engine()


@pytest.mark.parametrize("thread", [None, "a"])
def test_a_growing_history_is_written_once(engine: DeltaMemEngine, thread: str | None) -> None:
    history: list[Message] = []
    outcomes = [grow(engine, "ada", history, message, thread=thread).facts for message in (U1, U2, U3)]
    assert [facts.alignment for facts in outcomes] == ["fresh", "extends", "extends"]
    assert [facts.messages_written for facts in outcomes] == [2, 2, 2]
    assert head(engine).counters.messages == head(engine).absorbed.count == 6


def test_a_client_that_sends_only_new_messages_is_written_once(engine: DeltaMemEngine) -> None:
    for message in (U1, U2, U3):
        engine.run_turn("ada", [message], sampling=SHORT)
    assert head(engine).counters.messages == 6 and head(engine).counters.turns == 3


def test_a_trimmed_history_is_windowed(engine: DeltaMemEngine) -> None:
    history: list[Message] = []
    grow(engine, "ada", history, U1)
    grow(engine, "ada", history, U2)
    turn = engine.run_turn("ada", [*history[2:], U3], sampling=SHORT)
    assert turn.facts.alignment == "windowed" and turn.facts.messages_written == 2
    assert head(engine).counters.messages == 6


def test_a_regenerated_reply_in_a_named_thread_replaces_the_one_before(engine: DeltaMemEngine) -> None:
    history: list[Message] = []
    grow(engine, "ada", history, U1, thread="a")
    first = engine.run_turn("ada", [*history, U2], sampling=SHORT, thread="a")
    once = head(engine)
    again = engine.run_turn("ada", [*history, U2], sampling=SHORT, thread="a")
    assert again.facts.alignment == "diverged" and again.text == first.text and again.facts.undone_messages == 1
    assert same_state(head(engine), once) and head(engine).counters == once.counters


@pytest.mark.parametrize("thread", [None, "a"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_retried_input_is_not_written_twice_and_drops_nothing(thread: str | None, whole: bool) -> None:
    engine = ScriptedEngine(["Hello.", "Sorry?", "A fine name.", "A fine name."])
    engine.run_turn("ada", [U1], thread=thread)
    again = engine.run_turn("ada", [U1], thread=thread)
    assert (again.facts.alignment, again.facts.messages_written, again.facts.undone_messages) == ("windowed", 1, 0)
    asked = [U1, again.message, U2] if whole else [U2]
    third = engine.run_turn("ada", asked, thread=thread)
    assert third.facts.messages_written == 2 and head(engine).counters.messages == 5
    same = engine.run_turn("ada", [U2], thread=thread)
    assert same.text == third.text and same.snapshot == third.snapshot == engine.store.head("ada")
    assert same.facts.messages_written == same.facts.tokens_written == 0
    assert same.facts.state_norm == pytest.approx(head(engine).state.norm())


def test_an_edit_in_a_named_thread_goes_back_exactly_and_is_logged(
    engine: DeltaMemEngine, caplog: pytest.LogCaptureFixture
) -> None:
    history: list[Message] = []
    grow(engine, "ada", history, U1, thread="a")
    before_edit = list(history)
    grow(engine, "ada", history, U2, thread="a")
    undone = engine.store.head("ada")
    assert not caplog.records
    turn = engine.run_turn("ada", [*before_edit, U3], sampling=SHORT, thread="a")
    assert turn.facts.undone_messages == turn.report["undone_messages"] == 2
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and warning.name.startswith("deltamem_agents.")
    assert "messages undone: 2" in warning.getMessage() and str(undone) in warning.getMessage()
    straight = tiny_engine()
    other: list[Message] = []
    grow(straight, "ada", other, U1, thread="a")
    grow(straight, "ada", other, U3, thread="a")
    # One engine computed tokens that the other had cached, which rounds differently.
    torch.testing.assert_close(head(engine).state.matrices, head(straight).state.matrices, atol=1e-5, rtol=0)
    assert head(engine).counters == head(straight).counters


def test_a_message_edited_in_place_is_remembered_as_edited(engine: DeltaMemEngine) -> None:
    history: list[Message] = []
    for message in (U1, U2, U3):
        grow(engine, "ada", history, message, thread="a")
    history[0] = Message("user", "I live in Rome.")
    turn = engine.run_turn("ada", [*history, U2], sampling=SHORT, thread="a")
    assert turn.facts.undone_messages == 1 and turn.facts.messages_written == 8
    assert head(engine).counters.messages == head(engine).absorbed.count == 8
    straight = tiny_engine().run_turn("bob", [*history, U2], sampling=SHORT)
    assert turn.facts.state_norm == pytest.approx(straight.facts.state_norm, rel=1e-5)
    again = engine.run_turn("ada", [*history, U2, turn.message, U1], sampling=SHORT, thread="a")
    assert again.facts.alignment == "extends" and again.facts.messages_written == 2


@pytest.mark.parametrize("memory", ["readonly", "readwrite"])
def test_a_turn_that_only_reads_undoes_nothing(engine: DeltaMemEngine, memory: Any) -> None:
    history: list[Message] = []
    for message in (U1, U2):
        grow(engine, "ada", history, message, thread="a")
    before = engine.store.head("ada")
    turn = engine.run_turn("ada", [*history[:2], U3], sampling=SHORT, thread="a", memory=memory)
    assert (turn.facts.undone_messages == 0) == (engine.store.head("ada") == before) == (memory == "readonly")


EXAMPLES = [Message("user", "What is 1 + 1?"), Message("assistant", "2")]
GREETING = [Message("assistant", "How can I help you?")]


@pytest.mark.parametrize("prefix", [EXAMPLES, GREETING])
@pytest.mark.parametrize("thread", [None, "ada"])
def test_a_fixed_prefix_is_written_once_and_drops_nothing(prefix: list[Message], thread: str | None) -> None:
    engine = scripted()
    for number in range(5):
        turn = engine.run_turn("ada", [*prefix, Message("user", f"Fact {number}.")], thread=thread)
        assert turn.facts.undone_messages == 0 and turn.facts.messages_written == 2 + len(prefix) * (number == 0)
    assert head(engine).counters.messages == head(engine).absorbed.count == 10 + len(prefix)


@pytest.mark.parametrize("order", ["ABBA", "AABBAB", "ABABBBA"])
def test_a_client_that_names_no_thread_never_makes_a_memory_go_back(order: str) -> None:
    """Two conversations of one agent with whole histories, and later with edits and regenerated replies."""
    engine = scripted()
    histories: dict[str, list[Message]] = {"A": [], "B": []}
    for turns, name in enumerate(order, 1):
        turn = grow(engine, "ada", histories[name], Message("user", f"{name} says {turns}."))
        assert turn.facts.undone_messages == 0 and turn.facts.messages_written == 2
        assert head(engine).counters.messages == 2 * turns and len(list(engine.store.log("ada"))) == turns
    for departing in (histories["A"][:2], histories["A"][:1], [*histories["A"][:2], U3], histories["B"][:-1]):
        before = head(engine).counters.messages
        assert engine.run_turn("ada", departing).facts.undone_messages == 0
        assert head(engine).counters.messages > before


@pytest.mark.parametrize("thread", [None, "ada"])
def test_one_repeated_user_message_does_not_make_the_memory_go_back(thread: str | None) -> None:
    engine = scripted()
    for turns, text in enumerate(["hi", "My cat is Miu.", "hi", "It is late.", "My cat is Miu.", "hi", "hi there"], 1):
        turn = engine.run_turn("ada", [Message("user", text)], thread=thread)
        assert turn.facts.undone_messages == 0 and turn.facts.messages_written == 2
        assert head(engine).counters.messages == 2 * turns


REWORDED = ("", "Certainly. {}", "{}\n\nThis is not legal advice.")


@pytest.mark.parametrize(
    ("reworded", "sent", "thread"),
    [
        (*one, thread)
        for one, thread in zip(product(REWORDED, (1000, 3, 4, 5)), cycle((None, "ada", "ada", None)), strict=False)
    ],
)
def test_a_reworded_reply_is_not_an_edit(thread: str | None, sent: int, reworded: str) -> None:
    engine = scripted()
    history: list[Message] = []
    for turns in range(1, 7):
        history.append(Message("user", f"Fact {turns}."))
        turn = engine.run_turn("ada", history[-sent:], thread=thread)
        history.append(Message("assistant", reworded.format(turn.text) or "…"))
        assert turn.facts.undone_messages == 0 and turn.facts.messages_written == 2
        assert head(engine).counters.messages == 2 * turns


def test_threads_of_one_agent_share_its_memory(engine: DeltaMemEngine) -> None:
    a: list[Message] = []
    b: list[Message] = []
    grow(engine, "ada", a, U1, thread="a")
    grow(engine, "ada", b, U2, thread="b")
    grow(engine, "ada", a, U3, thread="a")
    assert head(engine).counters.messages == 6 and head(engine).absorbed.count == 4


def test_a_copied_thread_is_not_written_twice(engine: DeltaMemEngine) -> None:
    history: list[Message] = []
    grow(engine, "ada", history, U1, thread="a")
    turn = engine.run_turn("ada", [*history, U2], sampling=SHORT, thread="copy")
    assert turn.facts.messages_written == 2 and head(engine).counters.messages == 4


@pytest.mark.parametrize("policy", ["append", "rewind", "raise"])
def test_an_edit_before_another_threads_writes_follows_the_policy(policy: Any) -> None:
    engine = tiny_engine(policy=WritePolicy(on_divergence=policy))
    a: list[Message] = []
    grow(engine, "ada", a, U1, thread="a")
    grow(engine, "ada", a, U2, thread="a")
    grow(engine, "ada", [], U2, thread="b")
    before = engine.store.head("ada")
    if policy == "raise":
        with pytest.raises(HistoryDivergedError, match="'b'"):
            engine.run_turn("ada", [*a[:2], U3], thread="a", sampling=SHORT)
        assert engine.store.head("ada") == before
        return
    turn = engine.run_turn("ada", [*a[:2], U3], thread="a", sampling=SHORT)
    assert turn.facts.undone_messages == (4 if policy == "rewind" else 0)
    assert head(engine).counters.messages == (4 if policy == "rewind" else 8)
    assert head(engine).absorbed.count == 4


# Forgetting during a turn
