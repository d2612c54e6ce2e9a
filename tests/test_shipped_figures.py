"""The model cards' figures equal the reports', and the reports belong to the shipped adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

import deltamem_agents
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.estimates import Estimate
from deltamem_agents.lab.evaluation.recall import WHOLE, unwatched
from deltamem_agents.lab.evaluation.report import read_report
from deltamem_agents.lab.evaluation.suites import capacity, run_suite
from real_model import real_engine

REPORTS = sorted((Path(__file__).parents[1] / "docs" / "reports").glob("*.json"))
CARD = Path(deltamem_agents.__file__).parent / "adapters" / "smollm2-135m-instruct" / "README.md"
SHOWN = {"untold": "another's value", "locomo": "token F1", "conflict": "right", "label-learning": "right"}
"""The measure that the card's rows show, if it is not the whole answer."""


def shown(estimate: Estimate) -> tuple[str, str]:
    """The value and its interval, as written in the card."""
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


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_cards_figures_equal_the_reports(path: Path) -> None:
    card = CARD.read_text(encoding="utf-8").replace("**", "")
    for figure in read_report(path).figures:
        if figure.suite == "harmless":  # In sentences, not in a table.
            said = [part for estimate in figure.arms["memory"].values() for part in shown(estimate)]
            assert [part for part in said if part not in card] == []
            continue
        name = figure.name.split(" · ")[0]
        rows = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        for arm in ("memory", "off") if " · " in figure.name else ("memory",):
            if arm in figure.arms:
                value, interval = shown(figure.arms[arm][SHOWN.get(figure.suite, "whole")])
                assert any(f"{value} ({interval})" in row for row in rows), (name, arm, value, interval)


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
