"""No test reaches the network, and a model named "scripted" is scripted."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator

import pytest

from deltamem_agents import DeltaMemEngine
from deltamem_agents.bridges import DEFAULT_MODEL, named_engines
from deltamem_agents.testing import ScriptedEngine, oblige


@pytest.fixture(autouse=True)
def scripted_name() -> Iterator[None]:
    with named_engines({"scripted": ScriptedEngine(oblige)}):
        yield


@pytest.fixture(scope="session")
def real_engine() -> DeltaMemEngine:
    """The embedded model with the adapter that ships, or the one that DELTAMEM_TEST_ADAPTER names."""
    adapter = os.environ.get("DELTAMEM_TEST_ADAPTER")
    return DeltaMemEngine.from_pretrained(DEFAULT_MODEL, adapter=adapter, store="memory:", progress=False)
