"""Engines by name, each opened once in a process however many chat models name it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deltamem_agents.bridges.binding import bound
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.processes import Mutex
from deltamem_agents.snapshots import InMemoryStore, LazyStore, Store, StoreLike
from deltamem_agents.snapshots.locations import OPEN_MARK

DEFAULT_MODEL = "smollm2-135m-instruct"
_ENGINES_OWN = f"{OPEN_MARK}the engine's own"


@dataclass(frozen=True)
class EngineSpec:
    """Which engine: arguments of `DeltaMemEngine.from_pretrained`. `adapter` None: the one that ships."""

    model: str
    adapter: str | None = None
    device: str = "cpu"
    window_tokens: int | None = None


class _Slot:
    """Where one engine is opened, by one of those who wait for it; nobody waits for another's."""

    def __init__(self) -> None:
        self.opening = Mutex()
        self.engine: DeltaMemEngine | None = None


_opened: dict[EngineSpec, _Slot] = {}
_given: dict[str, DeltaMemEngine] = {}
_naming = Mutex()


@contextmanager
def named_engines(engines: Mapping[str, DeltaMemEngine]) -> Iterator[None]:
    """Inside, these names of models mean these engines: for tests of code that names its model."""
    with _naming:
        before = dict(_given)
        _given.update(engines)
    try:
        yield
    finally:
        with _naming:
            _given.clear()
            _given.update(before)


def shared_engine(spec: EngineSpec) -> DeltaMemEngine:
    """The engine of this specification, with a store of its own that nobody should use: see `with_store`."""
    with _naming:
        if spec.model in _given:
            return _given[spec.model]
        slot = _opened.setdefault(spec, _Slot())
    with slot.opening:
        if slot.engine is None:
            slot.engine = _open(spec)
        return slot.engine


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
        self._naming = Mutex()
        self._stores: dict[str | None, LazyStore] = {}

    def __reduce__(self) -> tuple[type[Serving], tuple[()]]:
        # Pickled with its chat model: another process opens its own stores.
        return Serving, ()

    def __deepcopy__(self, memo: object) -> Serving:
        return self

    def engine(self, spec: EngineSpec, given: DeltaMemEngine | None, store: StoreLike, agent: str) -> DeltaMemEngine:
        """The engine for one call of `agent`, over the store where that agent lives; the store is not opened yet.

        `given`: an engine that is open already, used where the call names no other model. `store`: None is
        the given engine's own store, or the SQLite file in the user's data folder; an enclosing `use_agent`
        may name another for its agent. Raises what opening an engine raises, and ConfigError for what names no store.
        """
        engine = given if given is not None and given.model_name == spec.model else shared_engine(spec)
        binding = bound()
        if binding is not None and binding.store is not None and binding.agent_id == agent:
            return engine.with_store(self._named(binding.store))
        if store is None and given is not None:
            return engine.with_store(given.lazy_store)
        return engine.with_store(self._named(store))

    def _named(self, store: StoreLike) -> Store | LazyStore:
        if isinstance(store, Store):
            return store
        name = None if store is None else os.fspath(store)
        with self._naming:
            if name not in self._stores:
                self._stores[name] = LazyStore(name)
            return self._stores[name]


def written_store(store: StoreLike, engine: DeltaMemEngine | None) -> str | None:
    """What is written down of a chat model's store: its name.

    An open store has none, nor has that of an open engine. What stands for it is refused when the chat model is
    loaded, as another store would hold other memories.
    """
    if isinstance(store, Store):
        return f"{OPEN_MARK}{type(store).__name__}"
    if store is None:
        return None if engine is None else _ENGINES_OWN
    return os.fspath(store)


def read_store(written: StoreLike, engine: DeltaMemEngine | None) -> StoreLike:
    """The store that a chat model is given, or that was written down of it. Raises ConfigError for what names none."""
    if engine is not None and written == _ENGINES_OWN:
        return None
    LazyStore(written)
    return written


def require_names(kind: str, store: StoreLike, engine: DeltaMemEngine | None) -> None:
    """Raises ConfigError unless a chat model of this kind can be pickled: it has to name its model and its store."""
    if engine is not None or isinstance(store, Store):
        raise ConfigError(
            f"a {kind} with an open engine or Store cannot be pickled; "
            "give model= and a store URL, and each process opens its own"
        )
