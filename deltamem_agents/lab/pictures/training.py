"""A picture of a training run: the loss, and recall of held-out values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.pictures.canvas import (
    FAINT,
    INK,
    SEQUENTIAL,
    heading,
    import_matplotlib,
    legend,
    new_figure,
    plural,
    save,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REACH = 12
"""Number of steps to either side over which the loss is smoothed."""

_HELD_OUT = re.compile(r"(\d+) facts, (whole answer|first token)")


def training_picture(log_lines: Iterable[str], path: Path) -> None:
    """Draws a training log (one JSON object per line): the loss, and recall of held-out values by number of facts.

    If a step was repeated after an interruption, its last line counts. An incomplete last line is ignored. Raises as
    `state_picture` does, and ConfigError for a log without steps.
    """
    import_matplotlib()
    curves = _read_log(log_lines)
    figure = new_figure(8.8, 6.2)
    upper, lower = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"left": 0.085, "right": 0.8, "top": 0.87, "bottom": 0.085, "hspace": 0.12}
    )
    _draw_loss(upper, curves)
    _draw_recall(lower, curves)
    lower.set_xlabel("step", color=INK)
    last = max(curves.loss)
    smoothed = _smooth(list(curves.loss.values()))[-1]
    heading(figure, "Training", f"{last + 1:,} steps in {_duration(curves.seconds)} · smoothed loss {smoothed:.3f}")
    save(figure, path)


@dataclass(frozen=True)
class _Curves:
    """A log's content. `loss`, `facts`: loss and number of facts per conversation, by step. `recall`: shares of right
    answers by step, for each kind of answer and number of facts.
    """

    loss: Mapping[int, float]
    facts: Mapping[int, int]
    recall: Mapping[tuple[str, int], Mapping[int, float]]
    seconds: float

    def colours(self) -> dict[int, Any]:
        """A colour for each number of facts."""
        import matplotlib

        counts = sorted({*self.facts.values(), *(facts for _, facts in self.recall)})
        spread = max(1, len(counts) - 1)
        return {facts: matplotlib.colormaps[SEQUENTIAL](0.88 * at / spread) for at, facts in enumerate(counts)}


def _read_log(lines: Iterable[str]) -> _Curves:
    loss: dict[int, float] = {}
    told: dict[int, int] = {}
    recall: dict[tuple[str, int], dict[int, float]] = {}
    seconds = 0.0
    for line in lines:
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        step, seconds = int(row["step"]), max(seconds, float(row["seconds"]))
        if "loss" in row:
            loss[step], told[step] = float(row["loss"]), int(row["facts"])
        for name, share in row.get("held_out_values", {}).items():
            if found := _HELD_OUT.fullmatch(name):
                recall.setdefault((found[2], int(found[1])), {})[step] = float(share)
    if not loss:
        raise ConfigError("the training log holds no steps yet; draw it again once the run has done some")
    return _Curves(dict(sorted(loss.items())), told, recall, seconds)


def _draw_loss(axes: Axes, curves: _Curves) -> None:
    from matplotlib.lines import Line2D

    steps, values, colours = list(curves.loss), list(curves.loss.values()), curves.colours()
    dots = [colours[curves.facts[step]] for step in steps]
    axes.scatter(steps, values, s=7, color=dots, alpha=0.35, linewidths=0)
    axes.plot(steps, _smooth(values), color=INK, linewidth=1.7)
    axes.set_ylabel("loss", color=INK)
    axes.set_ylim(bottom=min(0.0, *values))
    tidy(axes)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=4,
            color=FAINT,
            alpha=0.6,
            label="each step,\ncoloured as below",
        ),
        Line2D([], [], color=INK, linewidth=1.7, label="smoothed"),
    ]
    legend(axes, handles)


def _draw_recall(axes: Axes, curves: _Curves) -> None:
    from matplotlib.lines import Line2D

    colours = curves.colours()
    styles: dict[str, Any] = {"whole answer": "-", "first token": (0, (2.5, 1.8))}
    for (kind, facts), shares in sorted(curves.recall.items()):
        steps = sorted(shares)
        axes.plot(steps, [shares[s] for s in steps], ls=styles[kind], color=colours[facts], lw=1.6, marker="o", ms=3)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("recall of held-out values", color=INK)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    tidy(axes)
    handles = [Line2D([], [], color=colour, lw=4, label=plural(facts, "fact")) for facts, colour in colours.items()]
    handles += [Line2D([], [], color=FAINT, ls=style, lw=1.6, label=kind) for kind, style in styles.items()]
    legend(axes, handles)


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving average over up to _REACH values to either side."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = ((max(0, i - _REACH), min(len(values), i + _REACH + 1)) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
