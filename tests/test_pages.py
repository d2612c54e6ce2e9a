"""Laws of pages: their links work, their Python runs, and the names in them exist in the package."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deltamem_agents
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from pages import NOT_RUN, PAGES, REAL_MODEL, ROOT, anchors, blocks, links, opening, promised, run, with_python
from real_model import OTHER, real_engine

TRIALS = PAGES["docs/training-trials.md"].read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_an_anchor(page: str) -> None:
    broken = []
    for path, anchor in links(page):
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(path)
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_the_check_of_links_sees_what_is_broken() -> None:
    assert anchors('# One `two`, three?\n\n## Again\n\n## Again\n\n<a id="x-1"></a>') == {
        "one-two-three",
        "again",
        "again-1",
        "x-1",
    }


# The README's two blocks import two frameworks.
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page == "README.md" else ()) for page in with_python()],
)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    with opening(ScriptedEngine("Noted.", config=SELECTIVE), tmp_path):
        for block in blocks(page):
            assert block.mark in ("", REAL_MODEL) or block.mark.startswith(NOT_RUN), block.mark
            run(block, names, page)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.xdist_group(OTHER)
@pytest.mark.parametrize(
    "page", [page for page in with_python() if any(promised(block.code) for block in blocks(page))]
)
def test_on_the_real_model_a_page_prints_what_it_says(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = [block for block in blocks(page) if block.mark == REAL_MODEL]
    assert real and [block for block in blocks(page) if promised(block.code)] == real
    with opening(real_engine(OTHER), tmp_path):
        for block in real:
            capsys.readouterr()
            run(block, {"__name__": "page"}, page)
            printed = capsys.readouterr().out
            assert [text for text in promised(block.code) if text not in printed] == []


def test_every_trial_that_is_named_has_a_row() -> None:
    rows = set(map(int, re.findall(r'id="trial-(\d+)"', TRIALS)))
    assert rows == set(range(1, max(rows) + 1))
    sources = [*ROOT.glob("deltamem_agents/**/*.py"), *ROOT.glob("tests/*.py"), *PAGES.values()]
    for path in sources:
        for first, last in re.findall(r"\btrials? (\d+)(?:(?: to |–)(\d+))?", path.read_text(encoding="utf-8")):
            assert {int(first), int(last or first)} <= rows, path


@pytest.mark.slow
def test_the_reference_names_everything_public() -> None:
    documented = re.findall(r"^::: (\S+)$", PAGES["docs/reference.md"].read_text(encoding="utf-8"), re.MULTILINE)
    for name in documented:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    assert len(set(documented)) == len(documented)
    text = PAGES["docs/reference.md"].read_text(encoding="utf-8")
    for package in ("deltamem_agents", "langchain_deltamem", "llama_index.llms.deltamem"):
        for name in importlib.import_module(package).__all__:
            earlier = package == "deltamem_agents" and f"`{name}`" in text
            assert f"{package}.{name}" in documented or earlier, name


def test_the_readme_is_read_in_two_minutes() -> None:
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 135
    # How to delete a memory is found there.
    for verb in ("forget_statement", "store.forget", "deltamem memory forget "):
        assert verb in readme.split("## Delete a memory")[1].split("\n## ")[0]


def test_the_glossary_has_ten_lines() -> None:
    rows = [line for line in PAGES["docs/glossary.md"].read_text("utf-8").splitlines() if line.startswith("| **")]
    assert len(rows) == 10


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("material") and importlib.util.find_spec("mkdocstrings")),
    reason="the extra docs is not installed; `make docs` installs it",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "pictures/statements.png" in first and (tmp_path / "site" / "pictures" / "statements.png").is_file()
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert all(
        f'id="deltamem_agents.{name}"' in reference
        for name in ("DeltaMemEngine", "Recall", deltamem_agents.Turn.__name__)
    )
