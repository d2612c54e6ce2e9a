"""The examples run, on a scripted model and on the real model."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from brain import brain
from real_engine import OTHER, USUAL, in_other_precision, in_usual_precision, real_engine

from deltamem_agents import InMemoryStore, Store
from deltamem_agents.testing import ScriptedEngine
from langchain_deltamem import ChatDeltaMem

EXAMPLES = Path(__file__).parents[4] / "examples"
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NAMES = ("langchain_agent", "langgraph_time_travel", "two_users_one_model")
TOLD, ASKED, VALUE = "My dog's name is Biscuit.", "What is my dog's name?", "Biscuit"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of this distribution")


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_the_agent_remembers_in_its_store() -> None:
    store = InMemoryStore()
    model = ChatDeltaMem(engine=ScriptedEngine(brain, store), max_tokens=500)
    assert "bytes of state" in example("langchain_agent").run(TOLD, model)
    assert store.load("you").snapshot.counters.turns == 2


def test_each_branch_of_the_thread_has_its_own_memory() -> None:
    told = example("langgraph_time_travel").main(ChatDeltaMem(engine=ScriptedEngine(brain), max_tokens=500))
    assert told["at the crossroads"] == told["back at the crossroads"] != told["told Oslo"]
    assert told["told Oslo"] != told["told Rome"]
    assert told["told Oslo"].startswith("4 messages") and told["told Rome"].startswith("4 messages")


def test_two_users_have_two_memories() -> None:
    store = InMemoryStore()
    asyncio.run(example("two_users_one_model").main(ChatDeltaMem(engine=ScriptedEngine(brain, store), max_tokens=500)))
    ada, bob = (store.load(user).snapshot for user in ("ada", "bob"))
    assert ada.counters.turns == bob.counters.turns == 2 and ada.absorbed.tail != bob.absorbed.tail


def real(store: Store | None = None, *, precision: str = USUAL, **fields: Any) -> ChatDeltaMem:
    """The real model in this precision, with its own store."""
    engine = real_engine(precision).with_store(store or InMemoryStore())
    return ChatDeltaMem(engine=engine, max_tokens=24, **fields)


def test_the_documentation_uses_the_tested_sentences() -> None:
    for command in (f'langchain_agent.py tell "{TOLD}"', f'langchain_agent.py ask "{ASKED}"'):
        assert command in str(example("langchain_agent").__doc__)
    assert f'model.invoke("{TOLD}", ada)' in README and f'model.invoke("{ASKED}", ada)' in README


@pytest.mark.model
@pytest.mark.slow
@in_usual_precision
def test_on_the_real_model_a_new_process_recalls(tmp_path: Path) -> None:
    script = tmp_path / "langchain_agent.py"
    script.write_text((EXAMPLES / "langchain_agent.py").read_text(encoding="utf-8"), encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("tell", TOLD)
    assert VALUE in run("ask", ASKED)


@pytest.mark.model
@pytest.mark.slow
@in_other_precision
def test_on_the_real_model_the_agent_recalls_what_the_frozen_model_does_not_say() -> None:
    """In the precision that the test with a separate process does not use."""
    run, store = example("langchain_agent").run, InMemoryStore()
    run(TOLD, real(store, precision=OTHER))
    assert VALUE in run(ASKED, real(store, precision=OTHER, memory="readonly"))
    assert VALUE not in run(ASKED, real(store, precision=OTHER, memory="off"))


@pytest.mark.model
@pytest.mark.slow
@in_usual_precision
def test_on_the_real_model_each_branch_recalls_its_own_city() -> None:
    told = example("langgraph_time_travel").main(real())
    assert told["at the crossroads"] == told["back at the crossroads"]
    for city, other in (("Oslo", "Rome"), ("Rome", "Oslo")):
        answer = told[f"asked where I live, on the branch of {city}"]
        assert city in answer and other not in answer
    without = real(memory="off").invoke("Which city do I live in?").text
    assert "Oslo" not in without and "Rome" not in without


@pytest.mark.model
@pytest.mark.slow
@in_usual_precision
def test_on_the_real_model_each_user_is_told_their_own() -> None:
    users = example("two_users_one_model")
    answers = asyncio.run(users.main(real()))
    assert "Pepper" in answers["ada"] and "Clover" not in answers["ada"]
    assert "Clover" in answers["bob"] and "Pepper" not in answers["bob"]
    without = real(memory="off").invoke(users.QUESTION).text
    assert "Pepper" not in without and "Clover" not in without
