"""The embedded model with the adapter that ships, opened once a process in each precision that machines open it in."""

from __future__ import annotations

from functools import cache

import pytest

from deltamem_agents import DeltaMemEngine
from deltamem_agents.loading import default_dtype

MODEL = "smollm2-135m-instruct"
OTHER = "bfloat16" if str(default_dtype()) == "torch.float32" else "float32"
"""What the model is opened in on other machines than this one."""

# A worker's memory holds one of the two: what opens one precision stays together.
PRECISIONS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("float32", "bfloat16")]
in_each_precision = pytest.mark.parametrize("precision", PRECISIONS)


@cache
def real_engine(precision: str) -> DeltaMemEngine:
    return DeltaMemEngine.from_pretrained(MODEL, store="memory:", dtype=precision, progress=False)
