"""No test reaches the network, and models named "scripted-…" are scripted."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LANGSMITH_TRACING", "false")

import pytest
from brain import brain

from deltamem_agents import DeltaMemEngine
from deltamem_agents.scripted import ScriptedEngine
from langchain_deltamem import engines


@pytest.fixture(autouse=True)
def scripted_names(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, DeltaMemEngine] = {}
    genuine = engines._open

    def open_by_name(spec: engines.EngineSpec) -> DeltaMemEngine:
        if not spec.model.startswith("scripted"):
            return genuine(spec)
        return opened.setdefault(spec.model, ScriptedEngine(brain, name=spec.model))

    monkeypatch.setattr(engines, "_open", open_by_name)
    monkeypatch.setattr(engines, "_opened", {})
