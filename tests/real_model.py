"""The embedded model with its shipped adapter, opened once per process in each precision that machines use."""

from __future__ import annotations

from functools import cache

import pytest

from deltamem_agents import DeltaMemEngine
from deltamem_agents.loading import default_dtype

MODEL = "smollm2-135m-instruct"
OTHER = "bfloat16" if str(default_dtype()) == "torch.float32" else "float32"
"""The precision in which other machines open the model."""

# A test worker's memory has room for one of the two, so tests with the same precision run in one worker.
PRECISIONS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("float32", "bfloat16")]
in_each_precision = pytest.mark.parametrize("precision", PRECISIONS)


@cache
def real_engine(precision: str) -> DeltaMemEngine:
    return DeltaMemEngine.from_pretrained(MODEL, store="memory:", dtype=precision, progress=False)
