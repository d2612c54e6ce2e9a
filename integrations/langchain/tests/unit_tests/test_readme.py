"""The code in the README runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from real_engine import NAME, OTHER, in_other_precision, real_engine

from deltamem_agents.bridges import named_engines
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from langchain_deltamem import ChatDeltaMem

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_block_is_python() -> None:
    for block in BLOCKS:
        compile(block, "README.md", "exec")


def test_the_quickstart_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0].replace("smollm2-135m-instruct", "scripted"), "README.md", "exec"), {})
    assert "What is my dog's name?" in capsys.readouterr().out
    assert (tmp_path / "memory.sqlite").is_file()


@pytest.mark.model
@pytest.mark.slow
@in_other_precision
def test_on_the_real_model_the_quickstart_prints_what_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with named_engines({NAME: real_engine(OTHER)}):
        exec(compile(BLOCKS[0], "README.md", "exec"), names)
        assert "Biscuit" in capsys.readouterr().out
        without = {"memory": "off", "max_tokens": 24}
        assert "Biscuit" not in names["model"].invoke("What is my dog's name?", names["ada"], **without).text


def test_statements_are_listed_corrected_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in BLOCKS if "forget_statement" in block]
    (forget,) = [block for block in BLOCKS if "store.forget" in block]
    model = ChatDeltaMem(engine=ScriptedEngine("Noted.", config=SELECTIVE))
    engine = model.open_engine("ada")
    for text in ("My dog is called Biscuit.", "I live in Oslo."):
        engine.absorb_into("ada", [{"role": "user", "content": text}])
    exec(compile(block, "README.md", "exec"), {"model": model})
    assert "My dog is called Biscuit." in capsys.readouterr().out
    assert len(engine.statements("ada")) == 1
    exec(compile(forget, "README.md", "exec"), {"model": model})
    assert "bytes deleted" in capsys.readouterr().out and engine.store.agents() == []
