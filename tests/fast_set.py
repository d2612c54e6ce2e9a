"""Which cases of a law are among the fast tests. `make test` runs them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(every: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, all but each `every`-th marked slow. A case of several values is a tuple."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] if place % every else [])
        for place, case in enumerate(cases)
    ]
