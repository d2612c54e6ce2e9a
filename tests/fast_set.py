"""Selects which cases of a test are among the fast tests. `make test` runs all cases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(every: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`; all except every `every`-th are marked slow. A case with several values is a tuple."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] if place % every else [])
        for place, case in enumerate(cases)
    ]
