"""A store from the text a user writes in a configuration."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from deltamem_agents.errors import ConfigError
from deltamem_agents.snapshots.file_store import FileStore
from deltamem_agents.snapshots.memory_store import InMemoryStore
from deltamem_agents.snapshots.sqlite_store import SQLiteStore
from deltamem_agents.snapshots.store import Store

HOME_VARIABLE = "DELTAMEM_HOME"
DEFAULT_FILE = "memory.sqlite"


def default_store_path() -> Path:
    """The SQLite file used when no store is named: in $DELTAMEM_HOME, else the user's data folder."""
    home = os.environ.get(HOME_VARIABLE)
    return (Path(home).expanduser() if home else platformdirs.user_data_path("deltamem-agents")) / DEFAULT_FILE


def open_store(store: Store | str | os.PathLike[str] | None) -> Store:
    """A Store as it is; "sqlite:///PATH", "folder:///PATH" or "memory:"; a plain path is a SQLite file.

    None is `default_store_path()`. Raises ConfigError for another scheme, StoreError when it cannot be opened.
    """
    if isinstance(store, Store):
        return store
    path = store_path(store)
    if path is None:
        return InMemoryStore()
    is_folder = store is not None and os.fspath(store).startswith("folder://")
    return FileStore(path) if is_folder else SQLiteStore(path)


def store_path(store: str | os.PathLike[str] | None) -> Path | None:
    """The file or folder that `open_store` opens, or makes where there is none; None for "memory:".

    Raises ConfigError for another scheme.
    """
    if store is None:
        return default_store_path()
    text = os.fspath(store)
    scheme, separator, rest = text.partition("://")
    if text in ("memory:", "memory://"):
        return None
    if not separator:
        return Path(text).expanduser()
    if scheme not in ("sqlite", "folder"):
        raise ConfigError(f"store {text!r} is of kind {scheme!r}, expected sqlite:///PATH, folder:///PATH or memory:")
    # As in SQLAlchemy's URLs, three slashes lead to a relative path and four to an absolute one.
    return Path(rest.removeprefix("/")).expanduser()
