"""Tests run without network access, and models named "scripted…" are scripted engines."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LANGSMITH_TRACING", "false")

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deltamem_agents import DeltaMemEngine

NAMES = ("scripted", "scripted-b", "scripted-env")

# pytest also reads this file in the process that distributes the tests, which needs no model library.


@pytest.fixture(scope="session")
def scripted_engines() -> "Mapping[str, DeltaMemEngine]":
    from brain import brain

    from deltamem_agents.testing import ScriptedEngine

    return {name: ScriptedEngine(brain, name=name) for name in NAMES}


@pytest.fixture(autouse=True)
def scripted_names(scripted_engines: "Mapping[str, DeltaMemEngine]") -> Iterator[None]:
    from deltamem_agents.bridges import named_engines

    with named_engines({name: engine.with_store("memory:") for name, engine in scripted_engines.items()}):
        yield
