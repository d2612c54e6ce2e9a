"""Helpers that run a client's turns."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.snapshots import Snapshot
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.types import Message, Sampling, Turn

SHORT = Sampling(max_tokens=6)
U1, U2, U3 = (Message("user", text) for text in ("I live in Oslo.", "My cat is Miu.", "Where do I live?"))


def head(engine: DeltaMemEngine, agent: str = "ada") -> Snapshot:
    return engine.store.load(agent).snapshot


def same_state(a: Snapshot, b: Snapshot) -> bool:
    return torch.equal(a.state.matrices, b.state.matrices)


def scripted() -> ScriptedEngine:
    """An engine that gives a different reply in every turn."""
    replies = itertools.count(1)
    return ScriptedEngine(lambda asked: f"Reply {next(replies)}.")


def grow(engine: DeltaMemEngine, agent: str, history: list[Message], message: Message, **options: Any) -> Turn:
    """One turn of a client that sends its whole history."""
    history.append(message)
    turn = engine.run_turn(agent, history, sampling=SHORT, **options)
    history.append(turn.message)
    return turn
