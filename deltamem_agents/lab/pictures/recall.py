"""Pictures of recall: against the number of facts, and against distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.recall import WHOLE
from deltamem_agents.lab.evaluation.report import Figure, Report
from deltamem_agents.lab.pictures.canvas import INK, heading, import_matplotlib, legend, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, distinguishable with any colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_CONTROL = "#9a9a9a"
_WIDTH, _PANEL, _TOP, _GAP, _BOTTOM = 8.8, 3.1, 0.95, 0.85, 0.62
_LEFT, _RIGHT = 0.08, 0.735


@dataclass(frozen=True)
class _Panel:
    """One suite's axes. `label`: of the horizontal axis. `tick`: formats a position on it."""

    suite: str
    title: str
    label: str
    tick: Callable[[float], str]


_PANELS = (
    _Panel("capacity", "How much it holds", "facts told in the conversation", lambda place: f"{place:g}"),
    _Panel(
        "distance",
        "How long it holds",
        "tokens of unrelated conversation between telling and asking",
        lambda place: f"{place:,.0f}",
    ),
)


def recall_picture(reports: Sequence[Report], path: Path) -> None:
    """Draws recall of whole answers from memory alone, one panel each for capacity and distance, if measured.

    One line per adapter, its 95 % interval as a band. Controls are thin grey lines. The extension of `path` sets the
    file type: .png, .svg, .pdf. Raises ConfigError without matplotlib, for an unknown extension or for reports without
    such figures, OSError when the file cannot be written.
    """
    panels = [panel for panel in _PANELS if any(_curve(report, panel) for report in reports)]
    if not panels:
        found = ", ".join(dict.fromkeys(figure.suite for report in reports for figure in report.figures))
        raise ConfigError(f"nothing to draw: found figures of {found or 'nothing'}, expected capacity or distance")
    if len(reports) > len(_COLOURS):
        raise ConfigError(f"{len(reports)} reports were given, expected at most {len(_COLOURS)} to a picture")
    import_matplotlib()
    height = _TOP + len(panels) * _PANEL + (len(panels) - 1) * _GAP + _BOTTOM
    figure = new_figure(_WIDTH, height)
    for row, panel in enumerate(panels):
        bottom = height - _TOP - _PANEL - row * (_PANEL + _GAP)
        axes = figure.add_axes((_LEFT, bottom / height, _RIGHT - _LEFT, _PANEL / height))
        _draw(axes, panel, reports)
        if row == 0:
            legend(axes, _handles(reports))
    asked = sorted({shown.questions for report in reports for panel in panels for shown in _curve(report, panel)})
    counted = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}"
    models = ", ".join(dict.fromkeys(report.subject.model for report in reports))
    below = f"{models} · whole answer, exactly · {counted} questions a point · bands: 95 % intervals"
    heading(figure, "Recall from memory alone", below)
    save(figure, path)


def _curve(report: Report, panel: _Panel) -> list[Figure]:
    """The figures of a panel, from left to right."""
    placed = [figure for figure in report.of_suite(panel.suite) if figure.place is not None]
    return sorted(placed, key=lambda figure: figure.place or 0.0)


def _draw(axes: Axes, panel: _Panel, reports: Sequence[Report]) -> None:
    """Positions are equally spaced: facts double, and distances grow too fast for a linear scale."""
    curves = [_curve(report, panel) for report in reports]
    places = sorted({figure.place for curve in curves for figure in curve if figure.place is not None})
    at = {place: step for step, place in enumerate(places)}
    for curve in curves:
        for arm in dict.fromkeys(name for figure in curve for name in figure.arms if name != Arm.MEMORY):
            shown = [figure for figure in curve if arm in figure.arms]
            steps = [at[figure.place] for figure in shown if figure.place is not None]
            axes.plot(steps, [figure.arms[arm][WHOLE].value for figure in shown], color=_CONTROL, lw=0.9, zorder=2)
    for curve, colour in zip(curves, _COLOURS, strict=False):
        steps = [at[figure.place] for figure in curve if figure.place is not None]
        measured = [figure.arms[Arm.MEMORY][WHOLE] for figure in curve]
        axes.fill_between(
            steps, [m.low for m in measured], [m.high for m in measured], color=colour, alpha=0.16, lw=0, zorder=3
        )
        axes.plot(steps, [m.value for m in measured], color=colour, lw=1.8, marker="o", ms=4.5, zorder=4)
    _label_values(axes, curves, at)
    axes.set_xticks(range(len(places)), [panel.tick(place) for place in places])
    axes.set_xlim(-0.3, len(places) - 0.7)
    axes.set_ylim(-0.03, 1.06)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel(panel.label, color=INK, fontsize=10)
    axes.set_title(panel.title, color=INK, fontsize=10.5, loc="left", pad=6)
    tidy(axes)


def _label_values(axes: Axes, curves: Sequence[Sequence[Figure]], at: Mapping[float, int]) -> None:
    """Labels each position's highest point above it, and its lowest below it."""
    for place, step in at.items():
        here = sorted(
            (figure.arms[Arm.MEMORY][WHOLE].value, colour)
            for curve, colour in zip(curves, _COLOURS, strict=False)
            for figure in curve
            if figure.place == place
        )
        labels = [(here[-1], 6, "bottom"), (here[0], -6, "top")]
        for (value, colour), offset, side in labels[: len(here)]:
            axes.annotate(
                f"{100 * value:.0f}",
                (step, value),
                xytext=(0, offset),
                textcoords="offset points",
                ha="center",
                va=side,
                fontsize=8.5,
                color=colour,
                zorder=5,
            )


def _handles(reports: Sequence[Report]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"lw": 1.8, "marker": "o", "ms": 4.5}
    lines = [
        Line2D([], [], color=colour, label=_named(report), **style)
        for report, colour in zip(reports, _COLOURS, strict=False)
    ]
    controls = "controls: memory off,\nzero state, another\nconversation's, random"
    return [*lines, Line2D([], [], color=_CONTROL, lw=0.9, label=controls)]


def _named(report: Report) -> str:
    subject = report.subject
    layers, heads, rank = subject.geometry
    states = f"{rank}×{rank}" if heads == 1 else f"{heads} of {rank}×{rank}"
    return f"{subject.adapter}\n{states}, {layers} layers\n{subject.state_bytes:,} bytes"
