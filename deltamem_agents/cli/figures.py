"""Prints figures as tables: one line per measure, one column per arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltamem_agents.cli.screen import nbytes, stdout, table

if TYPE_CHECKING:
    from deltamem_agents.lab.evaluation.estimates import Estimate
    from deltamem_agents.lab.evaluation.report import Figure, Report, Subject

_LEADING = "memory"
"""The arm whose interval is shown."""

_SHORT = {
    "memory_read_only": "read only",
    "zero_state": "zero",
    "wrong_conversation": "another's",
    "random_state": "random",
    "whole": "whole answer",
    "first": "first word",
}
"""Short column names of arms and measures."""


def print_subject(subject: Subject) -> None:
    layers, heads, rank = subject.geometry
    side = f"{rank}×{rank}" if heads == 1 else f"{heads}×{rank}×{rank}"
    shape = f"{side} in each of {layers} layers, {nbytes(subject.state_bytes)} per state"
    stdout().print(f"{subject.adapter} on {subject.model} ({subject.dtype}, {subject.device}): {shape}")


def print_figures(figures: Sequence[Figure], *, all_intervals: bool = False) -> None:
    """Prints one table. `all_intervals`: show the interval of every arm, not of the memory alone."""
    arms = list(dict.fromkeys(arm for figure in figures for arm in figure.arms))
    numbers = ["absorbed", "questions", *(_SHORT.get(arm, arm) for arm in arms)]
    shown = table("asked about", *numbers[:2], "measure", *numbers[2:], right=tuple(numbers))
    for figure in figures:
        about = (figure.name, f"{figure.history_tokens:,.0f}", f"{figure.questions:,}")
        for measure in dict.fromkeys(name for measured in figure.arms.values() for name in measured):
            cells = [
                _cell(figure.arms.get(arm, {}).get(measure), interval=all_intervals or arm == _LEADING) for arm in arms
            ]
            shown.add_row(*about, _SHORT.get(measure, measure), *cells)
            about = ("", "", "")
    stdout().print(shown)


def print_report(report: Report, about: dict[str, str], *, all_intervals: bool = False) -> None:
    """Prints every suite of a report under its heading. `all_intervals`: as in `print_figures`."""
    for suite in dict.fromkeys(figure.suite for figure in report.figures):
        stdout().print(f"{suite}: {about[suite]}" if suite in about else suite, style="bold")
        print_figures(report.of_suite(suite), all_intervals=all_intervals)


def _cell(estimate: Estimate | None, *, interval: bool) -> str:
    if estimate is None:
        return "–"
    if estimate.unit == "share":
        value, low, high = (f"{100 * number:.1f}" for number in (estimate.value, estimate.low, estimate.high))
        value += " %"
    else:
        value, low, high = (f"{number:.3f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}–{high})" if interval else value
