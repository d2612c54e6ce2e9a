"""The embedded model with its adapter, opened once for all tests with the same precision."""

from __future__ import annotations

import os
from functools import cache

import pytest

from deltamem_agents import DeltaMemEngine
from deltamem_agents.loading import default_dtype

NAME = "smollm2-135m-instruct"
USUAL = str(default_dtype()).removeprefix("torch.")
"""The precision in which the model is opened on this machine."""

OTHER = "bfloat16" if USUAL == "float32" else "float32"
"""The precision in which other machines open it."""

# A test worker's memory has room for one of the two, so tests with the same precision run in one worker.
in_usual_precision = pytest.mark.xdist_group(USUAL)
in_other_precision = pytest.mark.xdist_group(OTHER)


@cache
def real_engine(precision: str = USUAL) -> DeltaMemEngine:
    """The environment variable DELTAMEM_TEST_ADAPTER names another adapter than the shipped one."""
    adapter = os.environ.get("DELTAMEM_TEST_ADAPTER")
    return DeltaMemEngine.from_pretrained(NAME, adapter=adapter, store="memory:", dtype=precision, progress=False)
