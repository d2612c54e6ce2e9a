"""The pages' figures equal the reports', and the reports belong to the shipped adapters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.estimates import Estimate
from deltamem_agents.lab.evaluation.recall import WHOLE, unwatched
from deltamem_agents.lab.evaluation.report import read_report
from deltamem_agents.lab.evaluation.suites import capacity, run_suite
from pages import PAGES, ROOT
from real_model import real_engine

REPORTS = sorted((ROOT / "docs" / "reports").glob("*.json"))
ADAPTERS = "deltamem_agents/adapters/smollm2-135m-instruct"
COMPLETE = (f"{ADAPTERS}/README.md", "docs/results.md")
"""The pages that have every figure of every report."""

SMALL = f"{ADAPTERS}/small/README.md"
"""The card whose figures have no report."""

WITH_FIGURES = [name for name in PAGES if name not in (SMALL, "docs/training-trials.md", "docs/training-log.md")]
"""Pages on which every figure with an interval is of a shipped adapter. The trials' pages have other adapters too."""

NAMED = "another's value"
SHOWN = {"untold": NAMED, "locomo": "token F1", "conflict": "right", "label-learning": "right"}
"""The measure that a suite's rows show, if it is not the whole answer."""


def shown(estimate: Estimate) -> tuple[str, str]:
    """The value and its interval, as written on pages."""
    parts = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{100 * part:.1f}" if estimate.unit == "share" else f"{part:.3f}" for part in parts)
    return value, f"{low}–{high}"


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_reports_belong_to_the_shipped_adapter() -> None:
    engine = real_engine("float32")
    assert REPORTS
    for path in REPORTS:
        assert read_report(path).subject.fingerprint == engine.fingerprint.adapter, path.name


@pytest.mark.parametrize("page", COMPLETE)
@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_complete_pages_figures_equal_the_reports(path: Path, page: str) -> None:
    card = plain(page)
    for figure in read_report(path).figures:
        if figure.suite == "harmless":  # In sentences, not in a table.
            said = [part for estimate in figure.arms["memory"].values() for part in shown(estimate)]
            assert [part for part in said if part not in card] == []
            continue
        name = figure.name.split(" · ")[0]
        rows = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        for arm in ("memory", "off") if " · " in figure.name else ("memory",):
            if arm in figure.arms:
                measures = figure.arms[arm]
                named = SHOWN.get(figure.suite, WHOLE)
                # What was never told has no answer.
                value, interval = shown(measures[named if named in measures else NAMED])
                assert any(f"{value} ({interval})" in row for row in rows), (name, arm, value, interval)


def test_every_figure_with_an_interval_is_a_reports_or_the_small_adapters() -> None:
    known = set(with_intervals(plain(SMALL)))
    for path in REPORTS:
        for figure in read_report(path).figures:
            known |= {shown(estimate) for arm in figure.arms.values() for estimate in arm.values()}
    printed = {page: with_intervals(plain(page)) for page in WITH_FIGURES}
    assert len(printed["docs/results.md"]) > 60 and len(printed["README.md"]) >= 4 and printed["docs/limits.md"]
    assert {page: unknown for page, found in printed.items() if (unknown := sorted(set(found) - known))} == {}


README_ROWS = {
    "8 short facts": ("statements-capacity", "8 facts"),
    "32 short facts": ("statements-capacity", "32 facts"),
    "1 fact, changed later (the old value is said in 5.7)": ("statements-updates", "1 fact: each changed later"),
    "a conversation in people's own words": ("statements-people", "one conversation"),
    "ten such conversations in one memory": ("statements-people", "ten conversations in one memory"),
}
README_ARMS = (
    Arm.MEMORY.value,
    Arm.OFF.value,
    Arm.WRONG.value,
    Arm.RANDOM.value,
    "BM25 snippets",
    "history in the prompt",
)


def test_the_readmes_table_is_the_reports() -> None:
    section = plain("README.md").split("## What it holds")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\|.*\d\.\d", line)]
    assert [row[0] for row in rows] == list(README_ROWS)
    for name, *cells in rows:
        stem, title = README_ROWS[name]
        report = read_report(ROOT / "docs" / "reports" / f"{stem}.json")
        (figure,) = (each for each in report.figures if each.name == title)
        measured = [figure.arms[arm][WHOLE] if arm in figure.arms else None for arm in README_ARMS]
        assert [cell.split(" ")[0] for cell in cells] == [shown(each)[0] if each else "–" for each in measured]


def plain(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8").replace("**", "")


def with_intervals(text: str) -> list[tuple[str, str]]:
    """The figures that are followed by an interval, as `shown` writes them."""
    return re.findall(r"(\d+\.\d+)(?: %)? \((\d+\.\d+–\d+\.\d+)[);,]", text)


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_the_shipped_adapter_recalls_more_than_any_control() -> None:
    (figure,) = run_suite(real_engine("float32"), capacity((8,)), Size(12, (1, 2)), unwatched)
    # Six of twelve against one of twelve is significant (Fisher, p = 0.034).
    whole = {arm: figure.arms[arm.value][WHOLE].value for arm in Arm}
    assert whole[Arm.MEMORY] >= 0.5
    # A random statement of the agent's own is sometimes the right one.
    assert whole.pop(Arm.RANDOM) <= whole.pop(Arm.MEMORY) / 2
    assert max(whole.values()) <= 0.1
