"""Pictures of a state and of a training run. Needs matplotlib, which is imported on first use."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    from deltamem_agents.memory.state import MemoryState

DPI = 160
SHOWN_SHARE = 99.5
"""Per cent of a state's numbers that fit the colour scale; the few beyond get its end colours."""

_REACH = 12
"""Steps to either side that the smoothed loss averages over."""

_INK, _FAINT, _GRID = "#222222", "#6f6f6f", "#e6e6e6"
# Both maps keep their order for readers of any colour vision.
_DIVERGING, _SEQUENTIAL = "RdBu_r", "viridis"
_LEFT, _TOP, _NARROWEST = 0.35, 1.02, 5.4
_STATE_NOTE = (
    "A tile is one layer's state, its heads side by side; above it, the layer and its norm.\n"
    "Layers count those that carry a state. Rows are value dimensions, columns key dimensions."
)
_HELD_OUT = re.compile(r"(\d+) facts, (whole answer|first token)")


def state_picture(state: MemoryState, path: Path, title: str) -> None:
    """Draw the first sequence of `state`: a heat map per layer, its heads side by side, on one colour scale.

    The ending of `path` decides the kind of file: .png, .svg, .pdf. Raises ConfigError without matplotlib and for an
    ending that cannot be drawn, OSError when the file cannot be written.
    """
    import_matplotlib()
    matrices = state.matrices[0].detach().cpu().double().numpy()
    layers, heads, rank = state.geometry
    layout = _Layout.of(layers, heads)
    figure = _figure(layout.width, layout.height)
    most = _scale(matrices)
    for layer in range(layers):
        axes = figure.add_axes(layout.tile(layer))
        image = axes.imshow(_side_by_side(matrices[layer]), cmap=_DIVERGING, vmin=-most, vmax=most, aspect="auto")
        _label_tile(axes, layer, float((matrices[layer] ** 2).sum() ** 0.5))
    clipped = float(abs(matrices).max()) > most
    bar = figure.colorbar(image, cax=figure.add_axes(layout.bar()), extend="both" if clipped else "neither")
    bar.ax.tick_params(labelsize=8, colors=_FAINT, length=2)
    bar.outline.set_linewidth(0)
    size = f"{_plural(layers, 'layer')} × {_plural(heads, 'head')} × {rank}×{rank}"
    _head(figure, title, f"{size} · {matrices.size * 4:,} bytes in float32 · ‖S‖ = {state[0].norm():.4g}")
    figure.text(_LEFT / layout.width, 0.3 / layout.height, _STATE_NOTE, fontsize=7.5, color=_FAINT, va="center")
    _save(figure, path)


def training_picture(log_lines: Iterable[str], path: Path) -> None:
    """Draw a training log (one JSON object a line): the loss, and recall of held-out values by number of facts.

    Of steps that were done again after an interruption the last counts; a last line cut short is left out.
    Raises as `state_picture` does, and ConfigError for a log without steps.
    """
    import_matplotlib()
    curves = _read_log(log_lines)
    figure = _figure(8.8, 6.2)
    upper, lower = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"left": 0.085, "right": 0.8, "top": 0.87, "bottom": 0.085, "hspace": 0.12}
    )
    _draw_loss(upper, curves)
    _draw_recall(lower, curves)
    lower.set_xlabel("step", color=_INK)
    last = max(curves.loss)
    smoothed = _smooth(list(curves.loss.values()))[-1]
    _head(figure, "Training", f"{last + 1:,} steps in {_duration(curves.seconds)} · smoothed loss {smoothed:.3f}")
    _save(figure, path)


def import_matplotlib() -> None:
    """Raises ConfigError, which says what to install, where matplotlib cannot be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"pictures need matplotlib, which cannot be imported ({error}); pip install 'deltamem-agents[plot]'"
        ) from None


@dataclass(frozen=True)
class _Curves:
    """What a log holds. `loss` and `facts`, the number of facts in an episode: by step. `recall`: by kind of answer
    and number of facts, the shares of right answers by step.
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
        return {facts: matplotlib.colormaps[_SEQUENTIAL](0.88 * at / spread) for at, facts in enumerate(counts)}


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
    axes.plot(steps, _smooth(values), color=_INK, linewidth=1.7)
    axes.set_ylabel("loss", color=_INK)
    axes.set_ylim(bottom=min(0.0, *values))
    _tidy(axes)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=4,
            color=_FAINT,
            alpha=0.6,
            label="each step,\ncoloured as below",
        ),
        Line2D([], [], color=_INK, linewidth=1.7, label="smoothed"),
    ]
    _legend(axes, handles)


def _draw_recall(axes: Axes, curves: _Curves) -> None:
    from matplotlib.lines import Line2D

    colours = curves.colours()
    styles: dict[str, Any] = {"whole answer": "-", "first token": (0, (2.5, 1.8))}
    for (kind, facts), shares in sorted(curves.recall.items()):
        steps = sorted(shares)
        axes.plot(steps, [shares[s] for s in steps], ls=styles[kind], color=colours[facts], lw=1.6, marker="o", ms=3)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("recall of held-out values", color=_INK)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _tidy(axes)
    handles = [Line2D([], [], color=colour, lw=4, label=_plural(facts, "fact")) for facts, colour in colours.items()]
    handles += [Line2D([], [], color=_FAINT, ls=style, lw=1.6, label=kind) for kind, style in styles.items()]
    _legend(axes, handles)


def _legend(axes: Axes, handles: Sequence[Line2D]) -> None:
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9)


def _smooth(values: Sequence[float]) -> list[float]:
    """At each value the mean of those up to _REACH to either side, as far as there are any."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = ((max(0, i - _REACH), min(len(values), i + _REACH + 1)) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@dataclass(frozen=True)
class _Layout:
    """Where the tiles of a state stand. All in inches but the rectangles, which are shares of the figure."""

    rows: int
    columns: int
    tile_width: float
    tile_height: float

    @classmethod
    def of(cls, layers: int, heads: int) -> _Layout:
        """Of all numbers of columns, the one with few empty places whose picture has a pleasant shape."""
        side = 0.95 if heads == 1 else 0.72
        choices = [
            cls(math.ceil(layers / columns), columns, side * heads + 0.06 * (heads - 1), side)
            for columns in range(1, layers + 1)
        ]
        return min(
            choices, key=lambda c: 3 * (c.rows * c.columns / layers - 1) + abs(math.log(c.width / c.height / 1.4))
        )

    @property
    def width(self) -> float:
        return max(_NARROWEST, _LEFT + self.columns * (self.tile_width + 0.26) + 0.75)

    @property
    def height(self) -> float:
        return _TOP + self.rows * (self.tile_height + 0.34) + 0.36

    def tile(self, place: int) -> tuple[float, float, float, float]:
        row, column = divmod(place, self.columns)
        left = _LEFT + column * (self.tile_width + 0.26)
        top = _TOP + row * (self.tile_height + 0.34)
        return self._shares(left, top, self.tile_width, self.tile_height)

    def bar(self) -> tuple[float, float, float, float]:
        """The colour bar's place, right of the first row and as tall as at most three."""
        tall = min(self.rows, 3) * (self.tile_height + 0.34) - 0.34
        return self._shares(_LEFT + self.columns * (self.tile_width + 0.26), _TOP, 0.13, tall)

    def _shares(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        bottom = self.height - top - height
        return left / self.width, bottom / self.height, width / self.width, height / self.height


def _scale(matrices: NDArray[np.float64]) -> float:
    """Half the width of the symmetric colour scale."""
    import numpy as np

    most = float(np.percentile(np.abs(matrices), SHOWN_SHARE))
    return most or float(np.abs(matrices).max()) or 1.0


def _side_by_side(heads: NDArray[np.float64]) -> NDArray[np.float64]:
    """(heads, r, r) as one (r, heads·r + gaps) image; a gap is one empty column."""
    import numpy as np

    gap = np.full((heads.shape[1], 1), np.nan)
    pieces = [piece for head in heads for piece in (gap, head)]
    return np.concatenate(pieces[1:], axis=1)


def _label_tile(axes: Axes, layer: int, norm: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    axes.set_title(f"{layer}", fontsize=9, color=_INK, loc="left", pad=3, fontweight="bold")
    axes.set_title(f"{norm:#.2g}".rstrip("."), fontsize=8, color=_FAINT, loc="right", pad=3)


def _tidy(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=9)


def _figure(width: float, height: float) -> Figure:
    # Not through pyplot, which would choose a window system and keep the figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white")


def _head(figure: Figure, title: str, below: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        0.35 / width,
        1 - 0.32 / height,
        title,
        fontsize=13,
        fontweight="bold",
        color=_INK,
        va="center",
        parse_math=False,
    )
    figure.text(0.35 / width, 1 - 0.56 / height, below, fontsize=9, color=_FAINT, va="center")


def _save(figure: Figure, path: Path) -> None:
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise ConfigError(f"picture {str(path)!r} ends in {path.suffix!r}, expected .png, .svg or .pdf")
    with warnings.catch_warnings():
        # An agent's name may hold characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=DPI)
