"""The examples and the README's quickstart, run as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "DELTAMEM_HOME": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_core_example_is_short() -> None:
    assert len((EXAMPLES / "remember_across_runs.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.model
def test_remember_across_runs(tmp_path: Path) -> None:
    example = tmp_path / "remember_across_runs.py"
    example.write_text((EXAMPLES / "remember_across_runs.py").read_text(encoding="utf-8"), encoding="utf-8")
    run(example.name, "tell", "My dog's name is Biscuit.", folder=tmp_path)
    assert "Biscuit" in run(example.name, "ask", "What is my dog's name?", folder=tmp_path)
    assert "forgotten" in run(example.name, "forget", folder=tmp_path)
    assert "Biscuit" not in run(example.name, "ask", "What is my dog's name?", folder=tmp_path)


@pytest.mark.model
def test_readme_quickstart(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    told, asked = (block for block in blocks if "run_turn" in block)
    (tmp_path / "told.py").write_text(told, encoding="utf-8")
    (tmp_path / "asked.py").write_text(asked, encoding="utf-8")
    run("told.py", folder=tmp_path)
    assert "Biscuit" in run("asked.py", folder=tmp_path)


@pytest.mark.model
def test_the_demo_recalls_more_with_memory_than_without(tmp_path: Path) -> None:
    lines = run(str(EXAMPLES / "demo.py"), folder=tmp_path).strip().splitlines()
    recalled = re.fullmatch(r"recalled (\d) of 3 with memory, (\d) of 3 without", lines[-1])
    assert recalled is not None and int(recalled[1]) > int(recalled[2])
    assert (tmp_path / "demo-output" / "state.png").stat().st_size > 1000
