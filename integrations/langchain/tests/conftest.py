"""No test reaches the network, and models named "scripted…" are scripted."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LANGSMITH_TRACING", "false")

from collections.abc import Iterator

import pytest
from brain import brain

from deltamem_agents.bridges import named_engines
from deltamem_agents.testing import ScriptedEngine

NAMES = ("scripted", "scripted-b", "scripted-env")


@pytest.fixture(autouse=True)
def scripted_names() -> Iterator[None]:
    with named_engines({name: ScriptedEngine(brain, name=name) for name in NAMES}):
        yield
