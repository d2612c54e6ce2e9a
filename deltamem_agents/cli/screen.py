"""Output of all commands: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from deltamem_agents.errors import DeltaMemError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SHORT_ID = 12
"""Number of digits of a snapshot's id that are shown. Commands accept six or more."""

# Wide enough that tables are not folded when piped into another program.
_PIPED_COLUMNS = 200
_EIGHTHS = "▏▎▍▌▋▊▉█"


class OneLineErrors(TyperGroup):
    """The root command group. Expected errors become one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (DeltaMemError, OSError) as error:
            print_error(str(error))
            raise typer.Exit(1) from None


def replace_what_cannot_be_shown() -> None:
    """Prints "?" for characters that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def print_error(text: str) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(" ".join(printable(text, keep="\n").split()), err=True)


def emit(value: object) -> None:
    """Prints one JSON value to stdout, in ASCII so that it is valid in any encoding."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def stdout() -> Console:
    return _console(err=False)


def stderr() -> Console:
    return _console(err=True)


def _console(*, err: bool) -> Console:
    from rich.console import Console

    piped = not (sys.stderr if err else sys.stdout).isatty()
    # Names and replies are untrusted text, so markup is off.
    return Console(stderr=err, width=_PIPED_COLUMNS if piped else None, markup=False, highlight=False, emoji=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table. `right`: columns of numbers, aligned right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def printable(text: str, *, keep: str = "") -> str:
    """The text with everything that could control a terminal escaped: escape codes, line breaks, text direction."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def marked(pieces: Iterable[tuple[str, bool]]) -> Text:
    """A text from (piece, marked) pairs, marked pieces in bold and in « »."""
    from rich.text import Text

    shown, inside = Text(), False
    for text, strong in (*pieces, ("", False)):
        piece, wanted = text, strong
        if wanted and not inside:
            # A token begins with the space before its word; keep the space outside of the mark.
            word = piece.lstrip(" ")
            shown.append(" " * (len(piece) - len(word)))
            piece, wanted = word, bool(word)
        if wanted != inside:
            shown.append("«" if wanted else "»")
            inside = wanted
        shown.append(printable(piece), style="bold" if wanted else "")
    return shown


def short(snapshot: str | None) -> str:
    return "–" if snapshot is None else snapshot[:SHORT_ID]


def moment(stamp: str) -> str:
    """Formats an ISO 8601 UTC time, to the second."""
    return stamp[:19].replace("T", " ")


def nbytes(count: int) -> str:
    return f"{count:,} bytes"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def bar(value: float, most: float, columns: int = 30) -> str:
    """A bar of up to `columns` characters, in steps of an eighth of a character."""
    eighths = round(8 * columns * value / most) if most > 0 else 0
    full, rest = divmod(min(eighths, 8 * columns), 8)
    return "█" * full + (_EIGHTHS[rest - 1] if rest else "")
