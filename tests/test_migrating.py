"""Laws of moving a memory to another model or adapter: every text arrives once and in order."""

from __future__ import annotations

import pytest
import torch

from deltamem_agents import (
    AlreadyExistsError,
    DeltaMemEngine,
    InMemoryStore,
    Sampling,
    SQLiteStore,
    StateError,
    WritePolicy,
)
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.migrating import survey
from tiny_engine import tiny_engine

SHORT = Sampling(max_tokens=4)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def source(**options: object) -> DeltaMemEngine:
    """An agent with two alternating threads."""
    engine = tiny_engine(seed=3, **options)  # type: ignore[arg-type]
    for number in range(6):
        engine.run_turn("ada", [user(f"Fact {number} is blue.")], thread="ab"[number % 2], sampling=SHORT)
    return engine


def said(engine: DeltaMemEngine, agent: str = "ada") -> list[tuple[object, ...]]:
    statements = engine.store.statements(agent)
    return [(each.role, each.text, each.thread, each.place, each.created) for each in statements]


@pytest.mark.slow
@pytest.mark.parametrize("there", ["selective", "one state"])
@pytest.mark.parametrize("here", ["selective", "one state"])
def test_texts_roles_threads_and_times_arrive_in_their_order(here: str, there: str) -> None:
    adapters = {"selective": SELECTIVE, "one state": None}
    old, new = source(config=adapters[here]), tiny_engine(config=adapters[there])
    before = said(old)
    report = new.adopt(old.store, "ada", name="eve")
    assert said(new, "eve") == said(old) == before
    assert report.snapshot == new.store.head("eve")
    assert (report.source, report.agent, report.statements) == ("ada", "eve", 12)
    assert report.written == len(new.statements("eve")) > 0
    assert new.store.load("eve").snapshot.state.norm() > 0


def test_a_client_can_continue_its_thread() -> None:
    old, new = tiny_engine(seed=3, config=SELECTIVE), tiny_engine(config=SELECTIVE)
    history = [user("My name is Ada.")]
    history.append({"role": "assistant", "content": old.run_turn("ada", history, thread="t", sampling=SHORT).text})
    new.adopt(old.store, "ada")
    turn = new.run_turn("ada", [*history, user("And I live in Oslo.")], thread="t", sampling=SHORT)
    assert turn.facts.alignment == "extends" and turn.facts.undone_messages == 0
    assert [each.text for each in new.store.statements("ada") if each.role == "user"] == [
        "My name is Ada.",
        "And I live in Oslo.",
    ]


def test_a_forgotten_statement_does_not_come_back_with_its_client() -> None:
    old, new = tiny_engine(seed=3, config=SELECTIVE), tiny_engine(config=SELECTIVE)
    history = [user("My name is Ada.")]
    history.append({"role": "assistant", "content": old.run_turn("ada", history, thread="t", sampling=SHORT).text})
    old.forget_statement("ada", old.statements("ada")[0].id)
    new.adopt(old.store, "ada")
    new.run_turn("ada", [*history, user("Hello.")], thread="t", sampling=SHORT)
    assert "My name is Ada." not in [each.text for each in new.store.statements("ada")]


def test_the_state_is_that_of_the_texts() -> None:
    old, new = source(config=SELECTIVE), tiny_engine(config=SELECTIVE)
    new.adopt(old.store, "ada")
    again = tiny_engine(config=SELECTIVE)
    again.adopt(new.store, "ada")
    assert torch.equal(new.store.load("ada").snapshot.state.matrices, again.store.load("ada").snapshot.state.matrices)


def test_statements_without_text_are_not_moved_and_are_reported() -> None:
    old = source(config=SELECTIVE, policy=WritePolicy(keep_text=False))
    found = survey(old.store, "ada")
    assert found.statements == 0
    assert [*found.without_text] == [each.id for each in old.store.statements("ada")] != []
    new = tiny_engine(config=SELECTIVE)
    with pytest.raises(StateError, match="no statement with a text"):
        new.adopt(old.store, "ada")
    assert new.store.agents() == []


def test_an_existing_agent_is_not_replaced() -> None:
    old, new = source(config=SELECTIVE), tiny_engine(config=SELECTIVE)
    new.run_turn("ada", [user("Hello.")], sampling=SHORT)
    head = new.store.head("ada")
    with pytest.raises(AlreadyExistsError):
        new.adopt(old.store, "ada")
    assert new.store.head("ada") == head


@pytest.mark.slow
def test_a_memory_moves_within_one_store(tmp_path: object) -> None:
    with SQLiteStore(f"{tmp_path}/m.sqlite") as store:
        old = source(config=SELECTIVE, store=store)
        head = store.head("ada")
        tiny_engine(store, config=SELECTIVE).adopt(store, "ada", name="ada-2")
        assert store.agents() == ["ada", "ada-2"] and store.head("ada") == head
        assert [each.text for each in old.statements("ada")]


def test_a_migration_that_fails_leaves_nothing() -> None:
    old, new = source(config=SELECTIVE), tiny_engine(InMemoryStore(), config=SELECTIVE)

    def stop(tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new.adopt(old.store, "ada", advance=stop)
    assert new.store.agents() == []
