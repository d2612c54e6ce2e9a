"""Tests run without network access, and a model named "scripted" is a scripted engine."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deltamem_agents import DeltaMemEngine

# pytest also reads this file in the process that distributes the tests, which needs no model library.


@cache
def usual_precision() -> str:
    from deltamem_agents.loading import default_dtype

    return str(default_dtype()).removeprefix("torch.")


def other_precision() -> str:
    return "bfloat16" if usual_precision() == "float32" else "float32"


@pytest.fixture(scope="session")
def scripted_engine() -> "DeltaMemEngine":
    from deltamem_agents.testing import ScriptedEngine, oblige

    return ScriptedEngine(oblige)


@pytest.fixture(autouse=True)
def scripted_name(scripted_engine: "DeltaMemEngine") -> Iterator[None]:
    from deltamem_agents.bridges import named_engines

    with named_engines({"scripted": scripted_engine.with_store("memory:")}):
        yield


@pytest.fixture(scope="session")
def real_engines() -> "Callable[[str], DeltaMemEngine]":
    """The embedded model in a precision, with its shipped adapter or the one that DELTAMEM_TEST_ADAPTER names."""
    from deltamem_agents import DeltaMemEngine
    from deltamem_agents.bridges import DEFAULT_MODEL

    adapter = os.environ.get("DELTAMEM_TEST_ADAPTER")

    @cache
    def opened(precision: str) -> DeltaMemEngine:
        return DeltaMemEngine.from_pretrained(
            DEFAULT_MODEL, adapter=adapter, store="memory:", dtype=precision, progress=False
        )

    return opened


@pytest.fixture(scope="session")
def real_engine(real_engines: "Callable[[str], DeltaMemEngine]") -> "DeltaMemEngine":
    """The embedded model in this machine's default precision."""
    return real_engines(usual_precision())


@pytest.fixture(scope="session")
def other_engine(real_engines: "Callable[[str], DeltaMemEngine]") -> "DeltaMemEngine":
    """The embedded model in the default precision of other machines."""
    return real_engines(other_precision())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs tests with the same precision in one worker, because its memory has room for one precision only."""
    for item in items:
        for fixture, precision in (("real_engine", usual_precision), ("other_engine", other_precision)):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(precision()))
