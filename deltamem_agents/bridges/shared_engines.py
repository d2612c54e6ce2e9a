"""Engines by name. Each is opened once per process, and all chat models that name it share it."""

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
    """Which engine: arguments of `DeltaMemEngine.from_pretrained`. `adapter`: None for the model's default adapter."""

    model: str
    adapter: str | None = None
    device: str = "cpu"
    window_tokens: int | None = None


class _Slot:
    """One engine and the lock under which it is opened. Opening one engine does not block another."""

    def __init__(self) -> None:
        self.opening = Mutex()
        self.engine: DeltaMemEngine | None = None


_opened: dict[EngineSpec, _Slot] = {}
_given: dict[str, DeltaMemEngine] = {}
_naming = Mutex()


@contextmanager
def named_engines(engines: Mapping[str, DeltaMemEngine]) -> Iterator[None]:
    """Inside this block, these model names refer to these engines. For tests of code that names its model."""
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
    """The engine of this specification. Use it only through `with_store`: its own store is in memory and shared."""
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
    """The engines and stores of a chat model and its copies. Stores are opened at their first use."""

    def __init__(self) -> None:
        self._naming = Mutex()
        self._stores: dict[str | None, LazyStore] = {}

    def __reduce__(self) -> tuple[type[Serving], tuple[()]]:
        # It is pickled with its chat model; the other process opens its own stores.
        return Serving, ()

    def __deepcopy__(self, memo: object) -> Serving:
        return self

    def engine(self, spec: EngineSpec, given: DeltaMemEngine | None, store: StoreLike, agent: str) -> DeltaMemEngine:
        """The engine for one call of `agent`, with the agent's store, which is not opened yet.

        `given`: an open engine, used unless the call names another model. `store`: None is the given engine's store, or
        the SQLite file in the user's data folder. An enclosing `use_agent` may name another store for its agent. Raises
        the errors of opening an engine, and ConfigError if `store` names no store.
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
    """The text that stands for a chat model's store when the model is serialised: its URL or path.

    An open store, or that of an open engine, has none. Its placeholder is refused when the chat model is loaded,
    because another store would hold other memories.
    """
    if isinstance(store, Store):
        return f"{OPEN_MARK}{type(store).__name__}"
    if store is None:
        return None if engine is None else _ENGINES_OWN
    return os.fspath(store)


def read_store(written: StoreLike, engine: DeltaMemEngine | None) -> StoreLike:
    """The store of a chat model, as given or as serialised by `written_store`. Raises ConfigError if it names none."""
    if engine is not None and written == _ENGINES_OWN:
        return None
    LazyStore(written)
    return written


def require_names(kind: str, store: StoreLike, engine: DeltaMemEngine | None) -> None:
    """Raises ConfigError unless a chat model of this kind can be pickled, which needs a named model and store."""
    if engine is not None or isinstance(store, Store):
        raise ConfigError(
            f"a {kind} with an open engine or Store cannot be pickled; "
            "give model= and a store URL, and each process opens its own"
        )
