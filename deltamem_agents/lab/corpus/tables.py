"""Word lists and tables: JSON files in a folder `data` beside the code, read when first asked for.

All of them were written for this project. The order of every list counts, since equal seeds draw equal lines.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "data"

HELD_OUT = CORPUS / "held_out"
"""Files of the same names with what is kept for evaluation and never trained on."""


@cache
def read_table(folder: Path, name: str) -> Any:
    """The table `name` in a folder, its lists as tuples. It is shared: do not change it."""
    return _frozen(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def corpus_table(name: str, *, held_out: bool = False) -> Any:
    """A table of the corpus itself."""
    return read_table(HELD_OUT if held_out else CORPUS, name)


def _frozen(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_frozen(item) for item in data)
    if isinstance(data, dict):
        return {key: _frozen(value) for key, value in data.items()}
    return data
