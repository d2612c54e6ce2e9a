"""The command line: `deltamem`. Each command imports heavy modules itself, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from deltamem_agents import __version__
from deltamem_agents.cli import adapter, evaluation, memory
from deltamem_agents.cli.chat import chat
from deltamem_agents.cli.doctor import doctor
from deltamem_agents.cli.screen import OneLineErrors, replace_what_cannot_be_shown
from deltamem_agents.cli.train import train

app = typer.Typer(
    name="deltamem",
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit codes: 0 success · 1 error, with the reason on stderr · 2 wrong usage · 130 interrupted. "
    "With --json, stdout is one JSON value and nothing else.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deltamem-agents {__version__}")
        raise typer.Exit


@app.callback()
def _deltamem(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Agents whose memory is inside the model: a few kilobytes of state beside a frozen language model.

    Start with `deltamem doctor`, then `deltamem chat --agent NAME`.
    """
    replace_what_cannot_be_shown()


app.command()(chat)
app.add_typer(memory.app, name="memory")
app.command()(train)
app.add_typer(evaluation.app, name="eval")
app.add_typer(adapter.app, name="adapter")
app.command()(doctor)

__all__ = ["app"]
