"""Store locations: parses a store URL or path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltamem_agents.errors import ConfigError

OPEN_MARK = "open://"
"""Prefix of the text that stands for an open store when a chat model is serialised."""

_EXPECTED = "expected sqlite:///PATH, folder:///PATH, memory: or a path"
_IN_MEMORY = ("memory:", "memory://", ":memory:", "sqlite://", "sqlite:///", "sqlite://:memory:", "sqlite:///:memory:")
_SHARED_MEMORY = re.compile(r"(sqlite:///)?file::memory:")
# Nobody means a file of such a name: it is a URL that lost its slashes, or SQLite's own name for memory.
# A single letter before the colon is a drive.
_NO_PATH = re.compile(r":memory:|(sqlite|folder|memory|file|open):|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """The location of a store. `path`: absolute, None for a store in memory."""

    kind: Literal["memory", "sqlite", "folder"]
    path: Path | None


def locate(named: str | os.PathLike[str]) -> Location:
    """The location that a text or path names; see `open_store`. Raises ConfigError if it names none."""
    text = _text(named)
    if text in _IN_MEMORY or _SHARED_MEMORY.match(text):
        return Location("memory", None)
    if text.startswith(OPEN_MARK):
        raise ConfigError(
            f"this chat model was serialised with an open store ({text.removeprefix(OPEN_MARK)}), and "
            "an open store cannot be; give store= or engine= again, or serialise a model that has a store URL"
        )
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Location("sqlite", as_path(text))
    if scheme not in ("sqlite", "folder"):
        raise ConfigError(f"store {text!r} is of kind {scheme!r}, {_EXPECTED}")
    if "?" in rest:
        raise ConfigError(
            f"store {text!r} has options after '?', expected none in a URL; open it with SQLiteStore(path, …) or "
            "FileStore(path, …). Give a path that contains '?' as a path, not as a URL"
        )
    if not rest.startswith("/"):
        raise ConfigError(
            f"store {text!r} has two slashes, expected three before a relative path ({scheme}:///{rest}) "
            f"and four before an absolute one ({scheme}:////{rest})"
        )
    # As in SQLAlchemy's URLs, three slashes start a relative path and four an absolute one.
    return Location("sqlite" if scheme == "sqlite" else "folder", as_path(rest[1:]))


def as_path(named: str | os.PathLike[str]) -> Path:
    """The absolute path of a plain path; ~ is the user's home. Raises ConfigError if it is not a path."""
    text = _text(named)
    if not text.strip() or "\0" in text:
        raise ConfigError(f"store {text!r} names no file or folder, {_EXPECTED}; leave store out for the default")
    if _NO_PATH.match(text):
        raise ConfigError(
            f"store {text!r} is no path, {_EXPECTED}. Pass a URL as text to open_store or store=; for a store in this "
            "process's memory use InMemoryStore(); for a file of this name write './…'"
        )
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"store {text!r} cannot be found: {error}; give an absolute path") from error


def _text(named: object) -> str:
    text = os.fspath(named) if isinstance(named, (str, os.PathLike)) else named
    if not isinstance(text, str):
        raise ConfigError(f"store is {named!r}, expected a Store or {_EXPECTED.removeprefix('expected ')}")
    return text
