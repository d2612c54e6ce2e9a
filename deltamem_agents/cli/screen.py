"""Where every command's output goes and how things look there: results on stdout, all else on stderr."""

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
"""Digits of a snapshot's id that are shown; its verbs take six or more."""

# Wide enough that no table is folded where it is piped into another program.
_PIPED_COLUMNS = 200
_EIGHTHS = "▏▎▍▌▋▊▉█"


class OneLineErrors(TyperGroup):
    """The whole command line: what is wrong on purpose comes as one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (DeltaMemError, OSError) as error:
            complain(str(error))
            raise typer.Exit(1) from None


def replace_what_cannot_be_shown() -> None:
    """Let a terminal of few characters show a question mark rather than end the command."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def complain(text: str) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(" ".join(printable(text, keep="\n").split()), err=True)


def emit(value: object) -> None:
    """One JSON value on stdout, in ASCII so that it is valid whatever the terminal's encoding."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def stdout() -> Console:
    return _console(err=False)


def stderr() -> Console:
    return _console(err=True)


def _console(*, err: bool) -> Console:
    from rich.console import Console

    piped = not (sys.stderr if err else sys.stdout).isatty()
    # Names and replies are other people's text: none of it is markup.
    return Console(stderr=err, width=_PIPED_COLUMNS if piped else None, markup=False, highlight=False, emoji=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; columns named in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def printable(text: str, *, keep: str = "") -> str:
    """The text with what could steer a terminal written out: escapes, line breaks, reversed writing."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def marked(pieces: Iterable[tuple[str, bool]]) -> Text:
    """A text in pieces, those that are marked bold and in « »."""
    from rich.text import Text

    shown, inside = Text(), False
    for text, strong in (*pieces, ("", False)):
        piece, wanted = text, strong
        if wanted and not inside:
            # Tokens begin with the space before their word.
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
    """An ISO 8601 UTC time, to the second."""
    return stamp[:19].replace("T", " ")


def nbytes(count: int) -> str:
    return f"{count:,} bytes"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def bar(value: float, most: float, columns: int = 30) -> str:
    """A bar of up to `columns` characters, to the eighth of one."""
    eighths = round(8 * columns * value / most) if most > 0 else 0
    full, rest = divmod(min(eighths, 8 * columns), 8)
    return "█" * full + (_EIGHTHS[rest - 1] if rest else "")
