"""Opens a store from the URL or path in a configuration."""

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
"""The type of `store=` in every function; see `open_store`."""


def default_store_path() -> Path:
    """The SQLite file that is used when no store is named: in $DELTAMEM_HOME, else in the user's data folder.

    Raises ConfigError if this user has no home folder.
    """
    home = os.environ.get(HOME_VARIABLE)
    folder = as_path(home) if home else platformdirs.user_data_path("deltamem-agents")
    if not folder.is_absolute():
        # If a user has no home folder, platformdirs leaves the '~' in: a folder of that name would be made.
        raise ConfigError(
            f"the default store would be in {str(folder)!r}, because this user has no home folder; "
            f"name a store with store=, or a folder in the environment variable {HOME_VARIABLE}"
        )
    return folder / DEFAULT_FILE


def open_store(store: StoreLike) -> Store:
    """Opens "sqlite:///PATH", "folder:///PATH", "memory:" or a plain path, which is a SQLite file.

    A Store object is returned as it is. None opens `default_store_path()`. Three slashes start a relative path, four an
    absolute one. ":memory:" and "sqlite:///:memory:" mean "memory:". Raises ConfigError for another scheme or for text
    that is not a path, StoreError if the store cannot be opened.
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
            f"{HOME_VARIABLE}. Calls without an agent and calls with memory='off' need no store"
        ) from error


def _open(place: Location) -> Store:
    if place.path is None:
        return InMemoryStore()
    return FileStore(place.path) if place.kind == "folder" else SQLiteStore(place.path)


def store_path(store: str | os.PathLike[str] | None) -> Path | None:
    """The file or folder that `open_store` opens or makes; None for "memory:".

    Raises ConfigError for another scheme or for text that is not a path.
    """
    return default_store_path() if store is None else locate(store).path


class LazyStore:
    """A store that is opened when it is first needed. Calls without an agent or with memory="off" need none.

    An invalid URL or path is refused at once. A relative path is resolved at once, against the current folder.
    """

    def __init__(self, store: StoreLike) -> None:
        self._lock = Mutex()
        self._store = store if isinstance(store, Store) else None
        self._place = None if store is None or isinstance(store, Store) else locate(store)

    @classmethod
    def of(cls, store: StoreLike | LazyStore) -> LazyStore:
        return store if isinstance(store, LazyStore) else cls(store)

    def open(self) -> Store:
        """Returns the store and opens it if necessary. After an error the next call tries again."""
        with self._lock:
            if self._store is None:
                self._store = open_store(None) if self._place is None else _open(self._place)
            return self._store

    def is_same(self, other: LazyStore) -> bool:
        """Whether both refer to the same open store, or are the same object."""
        return self is other or (self._store is not None and self._store is other._store)

    @property
    def place(self) -> object:
        """An object that identifies the store: the store itself once it is open, else this object."""
        return self if self._store is None else self._store

    def close(self) -> None:
        """Close the store if it was opened."""
        with self._lock:
            if self._store is not None:
                self._store.close()
