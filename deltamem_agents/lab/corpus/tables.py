"""Word lists and tables: JSON files in the folder `data` beside the code, read on first use.

All of them were written for this project. The order of every list matters: equal seeds must draw equal entries.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "data"

HELD_OUT = CORPUS / "held_out"
"""Files of the same names with entries reserved for evaluation, never used in training."""


@cache
def read_table(folder: Path, name: str) -> Any:
    """The table `name` of a folder, lists as tuples. The result is cached and shared: do not modify it."""
    return _frozen(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def corpus_table(name: str, *, held_out: bool = False) -> Any:
    """A table of this corpus."""
    return read_table(HELD_OUT if held_out else CORPUS, name)


def _frozen(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_frozen(item) for item in data)
    if isinstance(data, dict):
        return {key: _frozen(value) for key, value in data.items()}
    return data
