"""The examples and the two programs of docs/engine.md, run as a reader would run them."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents import DeltaMemEngine, Message, Sampling
from deltamem_agents.snapshots import open_store
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from pages import PAGES, REAL_MODEL, blocks, opening
from real_model import OTHER, in_each_precision, real_engine

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ENGINE_PAGE = "docs/engine.md"


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


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_every_example_opens_with_what_it_shows_and_prints(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        first, *_ = json.loads(text)["cells"]
        opening_text = "".join(first["source"]).replace("**", "") if first["cell_type"] == "markdown" else ""
    else:
        opening_text = ast.get_docstring(ast.parse(text)) or ""
    assert "Shows: " in opening_text and "Prints: " in opening_text


def notebook_cells() -> list[str]:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_notebook(engine: DeltaMemEngine, folder: Path) -> None:
    """The cells in order in one namespace, as a kernel runs them."""
    names: dict[str, Any] = {"__name__": "notebook"}
    with opening(engine, folder):
        for number, cell in enumerate(notebook_cells()):
            exec(compile(cell, f"quickstart.ipynb, cell {number}", "exec"), names)


def test_the_notebook_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_notebook(ScriptedEngine("Noted.", config=SELECTIVE), tmp_path)
    assert capsys.readouterr().out.rstrip().endswith("snapshots erased")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.xdist_group(OTHER)
def test_on_the_real_model_the_notebook_recalls_corrects_and_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_notebook(real_engine(OTHER), tmp_path)
    printed = capsys.readouterr().out
    remembered = [line for line in printed.splitlines() if line.startswith("  with the memory:")]
    assert "Biscuit" in remembered[0] and "Lisbon" in remembered[1]
    corrected = printed.split(remembered[1])[1]
    assert "Porto" in corrected and "\nFalse\n" in corrected


def two_programs() -> tuple[str, str]:
    """The program that tells a fact, and the program that asks for it."""
    told, asked = (block.code for block in blocks(ENGINE_PAGE) if block.mark == REAL_MODEL)
    return told, asked


@pytest.fixture
def opened(precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DeltaMemEngine:
    """Opening an engine by name gives this one, with the test's own store."""
    engine = real_engine(precision)
    monkeypatch.setenv("DELTAMEM_HOME", str(tmp_path))
    monkeypatch.setattr(
        DeltaMemEngine, "from_pretrained", lambda name, store=None, **_: engine.with_store(open_store(store))
    )
    return engine


DOG = ("My dog's name is Biscuit.", "What is my dog called?")


@pytest.mark.model
@pytest.mark.slow
@in_each_precision
def test_the_two_programs_print_what_the_page_says(opened: DeltaMemEngine, capsys: pytest.CaptureFixture[str]) -> None:
    told, asked = two_programs()
    text = " ".join(PAGES[ENGINE_PAGE].read_text(encoding="utf-8").split())
    answers = [(*DOG, answer) for answer in re.findall(r'the answer is "([^"]*)"', text)]
    answers += re.findall(r'told "([^"]*)" and asked "([^"]*)",[^"]*"([^"]*)"', text)
    assert len(answers) == 2 and "Biscuit" in answers[0][2]
    for number, (fact, question, answer) in enumerate(answers):
        for block, old, new in ((told, DOG[0], fact), (asked, DOG[1], question)):
            assert old in block
            capsys.readouterr()
            exec(block.replace(old, new).replace('"ada"', f'"{number}"'), {})
        assert capsys.readouterr().out.strip() == answer
    frozen = opened.run_turn(None, [Message("user", DOG[1])], memory="off", sampling=Sampling(max_tokens=24))
    assert "Biscuit" not in frozen.text


SOME = (2, 4, 5, 7)
"""Which of the demo's facts are told: a name, an order number, what is corrected and what is forgotten."""


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("precision", [pytest.param(OTHER, marks=pytest.mark.xdist_group(OTHER))])
def test_the_demos_facts_are_recalled_in_the_precision_of_other_machines(
    opened: DeltaMemEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = runpy.run_path(str(EXAMPLES / "demo.py"))
    # The functions look their constants up here.
    demo = names["recall"].__globals__
    facts = [demo["FACTS"][place] for place in SOME]
    demo |= {"FACTS": facts} | {name: SOME.index(demo[name]) for name in ("FORGOTTEN", "CORRECTED")}
    demo["tell"](tmp_path / "memory.sqlite")
    capsys.readouterr()
    demo["recall"](tmp_path / "memory.sqlite")
    lines = json.loads(capsys.readouterr().out)
    asked, (forgotten, corrected, never) = lines[: len(facts)], lines[len(facts) :]
    for line, (told, question, answer) in zip(asked, facts, strict=True):
        assert line["question"] == question and answer.lower() not in line["without"].lower()
        assert line["rests on"] in (told, "")
    assert sum(answer in line["with"] for line, (_, _, answer) in zip(asked, facts, strict=True)) >= len(facts) - 1
    assert facts[demo["FORGOTTEN"]][2] not in forgotten["with"] and not forgotten["rests on"]
    assert corrected["rests on"] == demo["CORRECTION"][0]
    assert never["with"] == never["without"]


@pytest.mark.model
@pytest.mark.slow
def test_remember_across_runs(tmp_path: Path) -> None:
    example = tmp_path / "remember_across_runs.py"
    example.write_text((EXAMPLES / "remember_across_runs.py").read_text(encoding="utf-8"), encoding="utf-8")
    told, asked = re.findall(r'remember_across_runs.py \w+ "(.*)"', example.read_text(encoding="utf-8"))
    run(example.name, "tell", told, folder=tmp_path)
    assert "Biscuit" in told and "Biscuit" in run(example.name, "ask", asked, folder=tmp_path)
    assert "forgotten" in run(example.name, "forget", folder=tmp_path)
    assert "Biscuit" not in run(example.name, "ask", asked, folder=tmp_path)


@pytest.mark.model
@pytest.mark.slow
def test_the_demo_runs_in_processes_of_its_own(tmp_path: Path) -> None:
    lines = run(str(EXAMPLES / "demo.py"), folder=tmp_path).strip().splitlines()
    told = re.fullmatch(r"recalled (\d+) of 10 with memory, 0 of 10 without", lines[-1])
    assert told is not None and int(told[1]) >= 9
    assert lines[-4:-1] == ["forgotten and gone: yes", "corrected: yes", "never told and not made up: yes"]
