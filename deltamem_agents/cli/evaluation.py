"""`deltamem eval`: measures a memory, with controls."""

from __future__ import annotations

import typer

from deltamem_agents.cli.long_tasks import conflict, label_learning, locomo
from deltamem_agents.cli.recall import recall

app = typer.Typer(no_args_is_help=True, help="Measure what a memory holds, with controls.")


@app.callback()
def _group() -> None:
    """Measure what a memory holds, with controls."""


app.command()(recall)
app.command()(locomo)
app.command()(conflict)
app.command("label-learning")(label_learning)
