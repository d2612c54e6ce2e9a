"""Engines by name, each opened once in a process however many chat models name it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deltamem_agents.bridges.binding import bound
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.snapshots import InMemoryStore, Store, open_store

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class EngineSpec:
    """Which engine: arguments of `DeltaMemEngine.from_pretrained`. `adapter` None: the one that ships."""

    model: str
    adapter: str | None = None
    device: str = "cpu"
    window_tokens: int | None = None


_opened: dict[EngineSpec, DeltaMemEngine] = {}
_given: dict[str, DeltaMemEngine] = {}
_opening = threading.Lock()


@contextmanager
def named_engines(engines: Mapping[str, DeltaMemEngine]) -> Iterator[None]:
    """Inside, these names of models mean these engines: for tests of code that names its model."""
    with _opening:
        before = dict(_given)
        _given.update(engines)
    try:
        yield
    finally:
        with _opening:
            _given.clear()
            _given.update(before)


def shared_engine(spec: EngineSpec) -> DeltaMemEngine:
    """The engine of this specification, with a store of its own that nobody should use: see `with_store`."""
    with _opening:
        if spec.model in _given:
            return _given[spec.model]
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


class Serving:
    """What stands behind a chat model and its copies: engines, and stores that are opened at their first use."""

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._stores: dict[str | None, Store] = {}

    def __reduce__(self) -> tuple[type[Serving], tuple[()]]:
        # Pickled with its chat model: another process opens its own stores.
        return Serving, ()

    def __deepcopy__(self, memo: object) -> Serving:
        return self

    def engine(
        self, spec: EngineSpec, given: DeltaMemEngine | None, store: Store | str | None, agent: str
    ) -> DeltaMemEngine:
        """The engine for one call of `agent`, over the store where that agent lives.

        `given`: an engine that is open already, used where the call names no other model. `store`: None is
        the given engine's own store, or the SQLite file in the user's data folder; an enclosing `use_agent`
        may name another for its agent. Raises what opening an engine or a store raises.
        """
        engine = given if given is not None and given.model_name == spec.model else shared_engine(spec)
        binding = bound()
        if binding is not None and binding.store is not None and binding.agent_id == agent:
            return engine.with_store(binding.store)
        if store is None and given is not None:
            return engine.with_store(given.store)
        return engine.with_store(self._store(store))

    def _store(self, named: Store | str | None) -> Store:
        if named is not None and not isinstance(named, str):
            return named
        with self._opening:
            if named not in self._stores:
                self._stores[named] = open_store(named)
            return self._stores[named]
