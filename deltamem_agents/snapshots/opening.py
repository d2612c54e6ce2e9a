"""A store from the text or path a user writes in a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import platformdirs

from deltamem_agents.errors import ConfigError, StoreError
from deltamem_agents.processes import Mutex
from deltamem_agents.snapshots.file_store import FileStore
from deltamem_agents.snapshots.locations import Location, as_path, locate
from deltamem_agents.snapshots.memory_store import InMemoryStore
from deltamem_agents.snapshots.sqlite_store import SQLiteStore
from deltamem_agents.snapshots.store import Store

HOME_VARIABLE = "DELTAMEM_HOME"
DEFAULT_FILE = "memory.sqlite"

StoreLike: TypeAlias = Store | str | os.PathLike[str] | None
"""What `store=` takes everywhere; see `open_store`."""


def default_store_path() -> Path:
    """The SQLite file used when no store is named: in $DELTAMEM_HOME, else the user's data folder.

    Raises ConfigError where this user has no folder of the kind.
    """
    home = os.environ.get(HOME_VARIABLE)
    folder = as_path(home) if home else platformdirs.user_data_path("deltamem-agents")
    if not folder.is_absolute():
        # Where a user has no home, platformdirs leaves the '~' in: a folder of that name would be made.
        raise ConfigError(
            f"the default store would be in {str(folder)!r}, as this user has no home folder; "
            f"name a place with store=, or a folder in the environment variable {HOME_VARIABLE}"
        )
    return folder / DEFAULT_FILE


def open_store(store: StoreLike) -> Store:
    """A Store as it is; "sqlite:///PATH", "folder:///PATH" or "memory:"; a plain path is a SQLite file.

    Three slashes lead to a relative path, four to an absolute one. ":memory:" and "sqlite:///:memory:" are
    "memory:". None is `default_store_path()`. Raises ConfigError for another scheme or what is no path,
    StoreError when it cannot be opened.
    """
    if isinstance(store, Store):
        return store
    if store is not None:
        return _open(locate(store))
    try:
        return SQLiteStore(default_store_path())
    except StoreError as error:
        raise StoreError(
            f"{error}. This is the default store: name another with store=, or its folder in the environment variable "
            f"{HOME_VARIABLE}. Calls without an agent and with memory='off' need no store"
        ) from error


def _open(place: Location) -> Store:
    if place.path is None:
        return InMemoryStore()
    return FileStore(place.path) if place.kind == "folder" else SQLiteStore(place.path)


def store_path(store: str | os.PathLike[str] | None) -> Path | None:
    """The file or folder that `open_store` opens, or makes where there is none; None for "memory:".

    Raises ConfigError for another scheme or what is no path.
    """
    return default_store_path() if store is None else locate(store).path


class LazyStore:
    """A store that is opened when it is first needed: memory off and calls without an agent need none.

    What `open_store` refuses by its name is refused at once; relative paths start at the folder of now.
    """

    def __init__(self, store: StoreLike) -> None:
        self._lock = Mutex()
        self._store = store if isinstance(store, Store) else None
        self._place = None if store is None or isinstance(store, Store) else locate(store)

    @classmethod
    def of(cls, store: StoreLike | LazyStore) -> LazyStore:
        return store if isinstance(store, LazyStore) else cls(store)

    def open(self) -> Store:
        """The store. Raises what opening it raises, and then tries again at the next call."""
        with self._lock:
            if self._store is None:
                self._store = open_store(None) if self._place is None else _open(self._place)
            return self._store

    def is_same(self, other: LazyStore) -> bool:
        """Whether both stand for one store that is open, or for the same one to be opened."""
        return self is other or (self._store is not None and self._store is other._store)

    @property
    def place(self) -> object:
        """What all who mean this store have in common: the store once it is open."""
        return self if self._store is None else self._store

    def close(self) -> None:
        """Close the store if it was opened."""
        with self._lock:
            if self._store is not None:
                self._store.close()
