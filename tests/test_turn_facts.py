"""Laws of `TurnFacts`: they agree with what can be observed from outside."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import StaleHeadError
from deltamem_agents.memory import attach
from deltamem_agents.snapshots import InMemoryStore, Snapshot
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.turns.planning import WritePolicy
from deltamem_agents.types import MemoryMode, Message, Sampling
from tiny_engine import tiny_engine

SHORT = Sampling(max_tokens=5)
U1, A1, U2 = Message("user", "I live in Oslo."), Message("assistant", "Nice."), Message("user", "Where do I live?")
TALK = [Message("system", "Be brief."), U1, A1, U2]
SCOPES = {scope: AdapterConfig(rank=4, read_scope=scope) for scope in ("all", "replies")}  # type: ignore[arg-type]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The reads of the first layer's tokens, for each forward pass."""
    found: list[Tensor] = []
    real = attach.read_and_write

    def watching(memory: object, call: object, slot: int, x: Tensor) -> Tensor:
        reads: Tensor = real(memory, call, slot, x)  # type: ignore[arg-type]
        if slot == 0:
            found.append(reads)
        return reads

    monkeypatch.setattr(attach, "read_and_write", watching)
    return found


def count(found: list[Tensor]) -> int:
    return sum(int(reads.abs().sum(-1).gt(0).sum()) for reads in found)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("memory", ["readwrite", "readonly", "off"])
@pytest.mark.parametrize("window", [None, 150])
def test_tokens_read_counts_the_tokens_that_read(
    scope: str, memory: MemoryMode, window: int | None, heard: list[Tensor]
) -> None:
    engine = tiny_engine(config=SCOPES[scope], window_tokens=window)
    engine.absorb_into("ada", [Message("user", "Something to be read.")], thread="before")
    heard.clear()
    long = [*TALK, Message("assistant", "In Oslo. " * 5), U2]
    facts = engine.run_turn("ada", long, sampling=SHORT, memory=memory, thread="now").facts
    assert facts.tokens_read == count(heard)
    assert (facts.tokens_read > 0) == (memory != "off")


def counters(engine: DeltaMemEngine) -> tuple[int, int]:
    found = engine.store.load("ada").snapshot.counters
    return found.messages, found.tokens


@pytest.mark.parametrize("roles", [("user",), ("user", "tool"), ("user", "assistant", "tool"), ("assistant",)])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_messages_and_tokens_written_are_counted(roles: tuple, window: int | None, granularity: str) -> None:
    config = AdapterConfig(rank=4, memory_write_granularity=granularity)  # type: ignore[arg-type]
    engine = tiny_engine(config=config, policy=WritePolicy(roles=roles), window_tokens=window)
    turn = engine.run_turn("ada", TALK, sampling=SHORT)
    spoken = [message for message in (*TALK, turn.message) if message.role in roles]
    assert turn.facts.messages_written == len(spoken)
    assert (turn.facts.messages_written, turn.facts.tokens_written) == counters(engine)
    if granularity == "token" or "assistant" not in roles:
        said = engine.count_tokens([m for m in TALK if m.role in roles]) if set(roles) & {"user", "assistant"} else 0
        assert turn.facts.tokens_written == said + (turn.usage.completion_tokens if "assistant" in roles else 0)


@pytest.mark.parametrize("memory", ["readonly", "off"])
def test_a_mode_that_does_not_write_counts_no_writes(memory: MemoryMode) -> None:
    facts = tiny_engine().run_turn("ada", TALK, sampling=SHORT, memory=memory).facts
    assert (facts.messages_written, facts.tokens_written, facts.tokens_unwritten) == (0, 0, 0)


def test_a_temporary_memory_counts_its_writes_too() -> None:
    facts = tiny_engine().run_turn(None, TALK, sampling=SHORT).facts
    assert facts.messages_written == 4


def test_known_messages_are_not_counted_again() -> None:
    engine = tiny_engine()
    first = engine.run_turn("ada", TALK, sampling=SHORT)
    facts = engine.run_turn("ada", [*TALK, first.message, U1], sampling=SHORT).facts
    assert facts.messages_written == 2


def test_an_empty_reply_is_not_counted_as_written() -> None:
    facts = ScriptedEngine("").run_turn("ada", [U1]).facts
    assert (facts.messages_written, facts.tokens_written) == (1, len(U1.content))


def test_a_repeated_turn_counts_only_its_last_attempt() -> None:
    class Contended(InMemoryStore):
        refusals = 2

        def save(self, agent: str, snapshot: Snapshot, **options: Any) -> str:
            if self.refusals:
                self.refusals -= 1
                raise StaleHeadError("another came first")
            return super().save(agent, snapshot, **options)

    alone, contended = (tiny_engine(store) for store in (InMemoryStore(), Contended()))
    facts, again = (engine.run_turn("ada", TALK, sampling=SHORT).facts for engine in (alone, contended))
    assert again.attempts == 3 and facts.attempts == 1
    for name in ("tokens_read", "tokens_written", "messages_written", "state_norm"):
        assert getattr(facts, name) == pytest.approx(getattr(again, name))
