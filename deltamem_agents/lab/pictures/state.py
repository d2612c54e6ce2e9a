"""A picture of a state: one heat map per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.lab.pictures.canvas import (
    DIVERGING,
    FAINT,
    GRID,
    INK,
    heading,
    import_matplotlib,
    new_figure,
    plural,
    save,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from deltamem_agents.memory.state import MemoryState

SHOWN_SHARE = 99.5
"""Percentage of a state's numbers inside the colour scale. The rest get its end colours."""

_LEFT, _TOP, _NARROWEST = 0.35, 1.02, 5.4
_STATE_NOTE = (
    "Each tile is one layer's state, its heads side by side; above it are the layer's number and norm.\n"
    "Only layers with a state are counted. Rows are value dimensions, columns key dimensions."
)


def state_picture(state: MemoryState, path: Path, title: str) -> None:
    """Draws the first sequence of `state`: one heat map per layer, heads side by side, on one colour scale.

    The extension of `path` sets the file type: .png, .svg, .pdf. Raises ConfigError without matplotlib or for an
    unknown extension, OSError when the file cannot be written.
    """
    import_matplotlib()
    matrices = state.matrices[0].detach().cpu().double().numpy()
    layers, heads, rank = state.geometry
    layout = _Layout.of(layers, heads)
    figure = new_figure(layout.width, layout.height)
    most = _scale(matrices)
    for layer in range(layers):
        axes = figure.add_axes(layout.tile(layer))
        image = axes.imshow(_side_by_side(matrices[layer]), cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto")
        _label_tile(axes, layer, float((matrices[layer] ** 2).sum() ** 0.5))
    clipped = float(abs(matrices).max()) > most
    bar = figure.colorbar(image, cax=figure.add_axes(layout.bar()), extend="both" if clipped else "neither")
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=2)
    bar.outline.set_linewidth(0)
    size = f"{plural(layers, 'layer')} × {plural(heads, 'head')} × {rank}×{rank}"
    heading(figure, title, f"{size} · {matrices.size * 4:,} bytes in float32 · ‖S‖ = {state[0].norm():.4g}")
    figure.text(_LEFT / layout.width, 0.3 / layout.height, _STATE_NOTE, fontsize=7.5, color=FAINT, va="center")
    save(figure, path)


@dataclass(frozen=True)
class _Layout:
    """Positions of the tiles, in inches. `tile` and `bar` return rectangles as shares of the figure."""

    rows: int
    columns: int
    tile_width: float
    tile_height: float

    @classmethod
    def of(cls, layers: int, heads: int) -> _Layout:
        """The number of columns that leaves few empty tiles and is closest to an aspect ratio of 1.4."""
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
        """The colour bar: right of the tiles, at most three rows tall."""
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
    """(heads, r, r) as one (r, heads·r + gaps) image. A gap is one empty column."""
    import numpy as np

    gap = np.full((heads.shape[1], 1), np.nan)
    pieces = [piece for head in heads for piece in (gap, head)]
    return np.concatenate(pieces[1:], axis=1)


def _label_tile(axes: Axes, layer: int, norm: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.set_title(f"{layer}", fontsize=9, color=INK, loc="left", pad=3, fontweight="bold")
    axes.set_title(f"{norm:#.2g}".rstrip("."), fontsize=8, color=FAINT, loc="right", pad=3)
