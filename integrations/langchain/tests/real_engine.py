"""The embedded model with its adapter, opened once for all tests that ask it."""

from __future__ import annotations

import os
from functools import cache

from deltamem_agents import DeltaMemEngine

NAME = "smollm2-135m-instruct"


@cache
def real_engine() -> DeltaMemEngine:
    """DELTAMEM_TEST_ADAPTER names another adapter than the one that ships."""
    adapter = os.environ.get("DELTAMEM_TEST_ADAPTER")
    return DeltaMemEngine.from_pretrained(NAME, adapter=adapter, store="memory:", progress=False)
