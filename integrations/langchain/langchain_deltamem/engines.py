"""Engines by name, each opened once in a process however many chat models name it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from deltamem_agents import DeltaMemEngine, InMemoryStore


@dataclass(frozen=True)
class EngineSpec:
    """Which engine: arguments of `DeltaMemEngine.from_pretrained`. `adapter` None: the one that ships."""

    model: str
    adapter: str | None = None
    device: str = "cpu"
    window_tokens: int | None = None


_opened: dict[EngineSpec, DeltaMemEngine] = {}
_opening = threading.Lock()


def shared_engine(spec: EngineSpec) -> DeltaMemEngine:
    """The engine of this specification, with a store of its own that nobody should use: see `with_store`."""
    with _opening:
        if spec not in _opened:
            _opened[spec] = _open(spec)
        return _opened[spec]


def _open(spec: EngineSpec) -> DeltaMemEngine:
    return DeltaMemEngine.from_pretrained(
        spec.model,
        adapter=spec.adapter,
        store=InMemoryStore(),
        device=spec.device,
        window_tokens=spec.window_tokens,
    )
