"""The picture of `cost.py`: what a turn costs as a conversation grows, and what many agents give at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltamem_agents.lab.pictures.canvas import INK, heading, import_matplotlib, new_figure, save, tidy

# Okabe and Ito's colours, apart for readers of any colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
WIDTH, HEIGHT = 10.6, 3.9


def cost_picture(result: Mapping[str, Any], path: Path) -> None:
    """Three panels: seconds to a first token and bytes of keys and values by turn, tokens a second by agents.

    Raises ConfigError without matplotlib and for an ending that cannot be drawn.
    """
    import_matplotlib()
    figure = new_figure(WIDTH, HEIGHT)
    panels = (
        ("turns", "turn", "first_token_seconds", "Seconds to the first token", "turn of the conversation", 1),
        ("turns", "turn", "cache_bytes", "Keys and values, MB", "turn of the conversation", 1e-6),
        ("agents", "agents", "tokens_a_second", "Tokens a second, all agents", "agents at once", 1),
    )
    for number, panel in enumerate(panels):
        axes = figure.add_axes(((0.75 + number * 3.35) / WIDTH, 1.15 / HEIGHT, 2.6 / WIDTH, 1.75 / HEIGHT))
        _draw(axes, result, *panel)
    about = result["machine"]
    below = (
        f"{about['model']}, {about['dtype']} · window of {result['window_tokens']:,} tokens · medians of "
        f"{result['rounds']} rounds · {about['threads']} of {about['cores']} cores, load {about['load']}"
    )
    heading(figure, "What a turn costs", below)
    save(figure, path)


def _draw(
    axes: Any, result: Mapping[str, Any], section: str, across: str, up: str, title: str, label: str, scale: float
) -> None:
    rows: Sequence[Mapping[str, Any]] = result[section]
    places = sorted({row[across] for row in rows})
    at = {place: step for step, place in enumerate(places)}
    for who, colour in zip(dict.fromkeys(row["who"] for row in rows), COLOURS, strict=False):
        own = [row for row in rows if row["who"] == who]
        axes.plot(
            [at[row[across]] for row in own],
            [scale * row[up] for row in own],
            color=colour,
            lw=1.8,
            marker="o",
            label=who,
        )
    axes.set_xticks(range(len(places)), [f"{place:,}" for place in places])
    axes.set_ylim(bottom=0)
    axes.set_title(title, color=INK, fontsize=10.5, loc="left", pad=6)
    axes.set_xlabel(label, color=INK, fontsize=9)
    tidy(axes)
    if rows:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.28), frameon=False, fontsize=8)
