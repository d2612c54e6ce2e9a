"""The embedded model with its adapter, opened once for all tests that ask it."""

from __future__ import annotations

import os
from functools import cache

import pytest

from deltamem_agents import AdapterError, DeltaMemEngine

NAME = "smollm2-135m-instruct"


@cache
def real_engine() -> DeltaMemEngine:
    """Skips the test where no adapter is at hand; DELTAMEM_TEST_ADAPTER names another than the one that ships."""
    adapter = os.environ.get("DELTAMEM_TEST_ADAPTER")
    try:
        return DeltaMemEngine.from_pretrained(NAME, adapter=adapter, store="memory:", progress=False)
    except AdapterError as error:
        pytest.skip(f"no adapter for the embedded model: {error}")
