"""Shared by all pictures: colours, a new figure, its heading, and saving."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DPI = 160
INK, FAINT, GRID = "#222222", "#6f6f6f", "#e6e6e6"
# Both colour maps are readable with any colour vision.
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"


def import_matplotlib() -> None:
    """Raises ConfigError, saying what to install, if matplotlib cannot be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"pictures need matplotlib, which cannot be imported ({error}); pip install 'deltamem-agents[plot]'"
        ) from None


def tidy(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=9)


def new_figure(width: float, height: float) -> Figure:
    # Not pyplot, which would choose a window system and keep a reference to the figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white")


def heading(figure: Figure, title: str, below: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        0.35 / width,
        1 - 0.32 / height,
        title,
        fontsize=13,
        fontweight="bold",
        color=INK,
        va="center",
        parse_math=False,
    )
    figure.text(0.35 / width, 1 - 0.56 / height, below, fontsize=9, color=FAINT, va="center")


def save(figure: Figure, path: Path) -> None:
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise ConfigError(f"picture {str(path)!r} ends in {path.suffix!r}, expected .png, .svg or .pdf")
    with warnings.catch_warnings():
        # Characters that the font lacks, for instance in an agent's name, are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=DPI)


def legend(axes: Axes, handles: Sequence[Line2D]) -> None:
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
