"""The examples run, on a scripted model and on the real model, where a new process recalls what it was told."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents import DeltaMemEngine, InMemoryStore
from deltamem_agents.bridges import DEFAULT_MODEL, named_engines
from deltamem_agents.testing import Asked, ScriptedEngine
from llama_index.llms.deltamem import DeltaMemLLM

EXAMPLES = Path(__file__).parents[4] / "examples"
NAMES = ("llamaindex_agent", "llamaindex_chat_engine")
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TOLD, ASKED, VALUE = "My dog's name is Biscuit.", "What is my dog called?", "Biscuit"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of this distribution")


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_the_agent_continues_from_the_file(tmp_path: Path) -> None:
    seen: list[int] = []

    def script(asked: Asked) -> str:
        seen.append(len(asked.messages))
        return "Noted."

    llm, saved = DeltaMemLLM(engine=ScriptedEngine(script), max_tokens=50), tmp_path / "context.json"
    run = example("llamaindex_agent").run
    for text in (TOLD, ASKED):
        assert asyncio.run(run(text, llm, saved)).startswith("Noted.\n(64 bytes of state, ")
    # The file contains the memory and no history.
    assert seen == [1, 1] and saved.is_file()


def test_the_chat_engine_continues_from_its_store() -> None:
    store = InMemoryStore()
    llm = DeltaMemLLM(engine=ScriptedEngine("Noted.", store), max_tokens=50).for_agent("you")
    for text in (TOLD, ASKED):
        assert example("llamaindex_chat_engine").run(text, llm) == "Noted.\n(2 messages of history)"
    assert store.load("you").snapshot.counters.turns == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_uses_the_tested_sentences(name: str) -> None:
    assert f'{name}.py tell "{TOLD}"' in str(example(name).__doc__)
    assert f'{name}.py ask "{ASKED}"' in str(example(name).__doc__)
    # In the quickstart and in the agent's example.
    assert README.count(TOLD) >= 2
    assert README.count(ASKED) >= 2


@pytest.mark.model
@pytest.mark.slow
def test_on_the_real_model_a_new_process_recalls(tmp_path: Path, real_engine: DeltaMemEngine) -> None:
    script = tmp_path / "llamaindex_agent.py"
    script.write_text((EXAMPLES / script.name).read_text(encoding="utf-8"), encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("tell", TOLD)
    assert VALUE in run("ask", ASKED)


@pytest.mark.model
@pytest.mark.slow
def test_on_the_real_model_the_chat_engine_recalls_what_the_frozen_model_does_not_say(
    other_engine: DeltaMemEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision that the test with a separate process does not use."""
    chat = example("llamaindex_chat_engine")
    monkeypatch.setattr(chat, "STORE", tmp_path / "memory.sqlite")
    with named_engines({DEFAULT_MODEL: other_engine}):
        chat.main("tell", TOLD)
        assert VALUE in chat.main("ask", ASKED)
    frozen = DeltaMemLLM(engine=other_engine, memory="off", max_tokens=24)
    assert VALUE not in chat.run(ASKED, frozen)
