"""Shows the progress of long work on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Report: TypeAlias = Callable[[int, int], None]


@contextmanager
def step(text: str, shown: bool, *, long: bool = True) -> Iterator[Report]:
    """Shows one step until the block ends. Yields a function that takes (done, total).

    On a terminal it is a progress bar that disappears. Elsewhere it is one line, and nothing if the step is not `long`.
    """
    if not shown:
        yield lambda done, total: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        if long:
            console.print(f"deltamem: {text}", markup=False, highlight=False, soft_wrap=True)
        yield lambda done, total: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
