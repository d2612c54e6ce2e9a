"""The code in the README runs."""

from __future__ import annotations

import asyncio
import inspect
import re
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import llama_index.llms.deltamem as package
from deltamem_agents import DeltaMemEngine
from deltamem_agents.bridges import DEFAULT_MODEL, named_engines
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from llama_index.llms.deltamem.agents import MEMORIES_KEY

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
QUICKSTART, STATEMENTS, FORGET, CONTEXT, BLOCK, SUITE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def compiled(block: str) -> CodeType:
    code: CodeType = compile(block, "README.md", "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


async def run(block: str, **names: Any) -> dict[str, Any]:
    """Runs a block with the scripted model and returns its names."""
    names |= {name: getattr(package, name) for name in package.__all__}
    result = eval(compiled(block.replace('"smollm2-135m-instruct"', '"scripted"')), names)
    if inspect.isawaitable(result):
        await result
    return names


def test_the_quickstart_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(run(QUICKSTART))
    assert "What is my dog called?" in capsys.readouterr().out
    assert (tmp_path / "memory.sqlite").is_file()


@pytest.mark.model
@pytest.mark.slow
def test_on_the_real_model_the_quickstart_prints_what_was_told(
    other_engine: DeltaMemEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with named_engines({DEFAULT_MODEL: other_engine}):
        exec(compiled(QUICKSTART), names)
        assert "Biscuit" in capsys.readouterr().out
        frozen = names["ada"].chat([names["ChatMessage"]("What is my dog called?")], memory="off", max_tokens=24)
        assert "Biscuit" not in str(frozen.message.content)


@pytest.mark.model
@pytest.mark.slow
async def test_on_the_real_model_a_restored_context_recalls_what_was_told(real_engine: DeltaMemEngine) -> None:
    names: dict[str, Any] = {name: getattr(package, name) for name in package.__all__}
    with named_engines({DEFAULT_MODEL: real_engine}):
        await eval(compiled(CONTEXT), names)
    assert "Biscuit" in names["reply"].response.content


async def test_the_context_is_saved_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = await run(CONTEXT)
    assert names["reply"].raw["deltamem"]["alignment"] == "windowed"
    assert (await names["ctx"].store.get(MEMORIES_KEY)).keys() == {"Agent"}


async def test_the_memory_block_is_made() -> None:
    names = await run(BLOCK, llm=package.DeltaMemLLM(model="scripted", store="memory:"))
    assert names["memory"].memory_blocks[0].name == "deltamem"


async def test_the_suite_is_subclassed() -> None:
    names = await run(SUITE, MyLLM=lambda temperature: package.DeltaMemLLM(model="scripted", store="memory:"))
    names["TestMyLLM"]().test_the_metadata_says_what_it_can()


def test_statements_are_listed_corrected_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    llm = package.DeltaMemLLM(engine=ScriptedEngine("Noted.", config=SELECTIVE))
    engine = llm.open_engine("ada")
    for text in ("My dog is called Biscuit.", "I live in Oslo."):
        engine.absorb_into("ada", [{"role": "user", "content": text}])
    exec(compile(STATEMENTS, "README.md", "exec"), {"llm": llm})
    assert "My dog is called Biscuit." in capsys.readouterr().out
    assert len(engine.statements("ada")) == 1
    exec(compile(FORGET, "README.md", "exec"), {"llm": llm})
    assert "bytes deleted" in capsys.readouterr().out and engine.store.agents() == []
