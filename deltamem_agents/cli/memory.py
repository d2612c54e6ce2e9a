"""`deltamem memory`: commands on a store. Only search, correct and migrate load a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli import statements, views
from deltamem_agents.cli.options import Agent, At, Json, StoreUrl, open_memory
from deltamem_agents.cli.screen import emit, moment, nbytes, plural, printable, short, stdout, table

if TYPE_CHECKING:
    from deltamem_agents.snapshots import Receipt

app = typer.Typer(
    no_args_is_help=True,
    help="Show, move and erase what agents remember. Only search, correct and migrate load a model.\n\n"
    "Name a snapshot by its id, by at least the first six digits of its id, or by a tag.",
)
app.command("list")(views.list_agents)
app.command()(views.log)
app.command()(views.show)
app.command()(views.diff)
app.command()(statements.statements)
app.command()(statements.search)
app.command("forget-statement")(statements.forget_statement)
app.command()(statements.correct)
app.command()(statements.migrate)


@app.command()
def fork(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The agent to start from; it is not changed.")],
    agent: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new agent.")],
    at: At = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Start a new agent at a snapshot of another one, with its whole history.

    JSON: {"source", "agent", "head"}.

    Example: deltamem memory fork ada ada-experiment
    """
    with open_memory(store) as opened:
        head = opened.fork(source, agent, at)
    if as_json:
        emit({"source": source, "agent": agent, "head": head})
    else:
        stdout().print(f"{printable(agent)} starts at snapshot {short(head)} of {printable(source)}")


@app.command()
def rewind(
    agent: Agent,
    to: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot to go back to.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Make an older snapshot the newest again, bit for bit. Nothing is deleted, so a rewind can be undone.

    JSON: {"agent", "head", "before"}.

    Example: deltamem memory rewind ada 3f9c01d2
    """
    with open_memory(store) as opened:
        before = opened.head(agent)
        head = opened.rewind(agent, to)
    if as_json:
        emit({"agent": agent, "head": head, "before": before})
    elif head == before:
        stdout().print(f"{printable(agent)} is already at snapshot {short(head)}")
    else:
        stdout().print(f"{printable(agent)} is back at snapshot {short(head)}; to undo, rewind to {short(before)}")


@app.command()
def tag(
    agent: Agent,
    name: Annotated[
        str | None, typer.Argument(metavar="[TAG]", help="The name to give. If left out, tags are listed.")
    ] = None,
    at: At = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Remove the tag; its snapshot stays.")] = False,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Name a snapshot so that `prune` keeps it, or list an agent's tags.

    JSON: {"agent", "tags": {name: snapshot}}, the tags after the command.

    Examples: deltamem memory tag ada before-the-move · deltamem memory tag ada
    """
    if name is None and (delete or at is not None):
        raise typer.BadParameter("--at and --delete need a TAG")
    with open_memory(store) as opened:
        if name is not None and delete:
            opened.untag(agent, name)
        elif name is not None:
            opened.tag(agent, name, at)
        tags = opened.tags(agent)
    if as_json:
        emit({"agent": agent, "tags": tags})
        return
    if not tags:
        stdout().print(f"{printable(agent)} has no tags")
        return
    shown = table("tag", "snapshot")
    for each, snapshot in sorted(tags.items()):
        shown.add_row(printable(each), short(snapshot))
    stdout().print(shown)


@app.command()
def forget(
    agent: Agent,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Erase an agent permanently and print a receipt. No byte of it stays in the store, except what its forks hold.

    JSON: {"agent", "at", "removed": [ids], "kept": [ids that forks hold], "tags", "nbytes"}.

    Example: deltamem memory forget ada --yes
    """
    with open_memory(store) as opened:
        if not yes and agent in opened.agents():
            typer.confirm(f"Permanently erase everything {printable(agent)} remembers?", abort=True, err=True)
        receipt = opened.forget(agent)
    _print_receipt("forgot", receipt, as_json)


@app.command()
def prune(
    agent: Agent,
    keep_last: Annotated[
        int, typer.Option("--keep-last", metavar="N", min=1, help="Number of newest snapshots to keep.")
    ],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Delete old snapshots. The newest N, tagged ones, those that forks need and each thread's newest are kept.

    JSON: as for `forget`.

    Example: deltamem memory prune ada --keep-last 50
    """
    with open_memory(store) as opened:
        receipt = opened.prune(agent, keep_last=keep_last)
    _print_receipt("pruned", receipt, as_json)


def _print_receipt(verb: str, receipt: Receipt, as_json: bool) -> None:
    if as_json:
        emit(asdict(receipt))
        return
    console = stdout()
    console.print(f"{verb} {printable(receipt.agent)} at {moment(receipt.at)} UTC")
    console.print(f"  removed  {plural(len(receipt.removed), 'snapshot')}, {nbytes(receipt.nbytes)}")
    if receipt.kept:
        console.print(f"  kept     {plural(len(receipt.kept), 'snapshot')} that other agents hold")
    if receipt.tags:
        console.print(f"  tags     {printable(', '.join(receipt.tags))}")


@app.command("export")
def export_agent(
    agent: Agent,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", dir_okay=False, help="Written atomically; an existing file is replaced.")
    ],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Write an agent's whole memory to one file.

    JSON: {"agent", "file", "nbytes"}.

    Example: deltamem memory export ada ada.deltamem
    """
    with open_memory(store) as opened:
        opened.export(agent, file)
    size = file.stat().st_size
    if as_json:
        emit({"agent": agent, "file": str(file), "nbytes": size})
    else:
        stdout().print(f"{printable(agent)} is in {file}, {nbytes(size)}")


@app.command("import")
def import_agent(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Written by `export`.")],
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="A name other than the exported one.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing agent of that name.")] = False,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Import an exported agent. Everything is verified before anything is written.

    JSON: {"agent", "head", "snapshots"}.

    Example: deltamem memory import ada.deltamem --agent ada-copy
    """
    with open_memory(store, make=True) as opened:
        name = opened.import_(file, agent, replace=replace)
        head, snapshots = opened.head(name), {move.snapshot for move in opened.moves(name)}
    if as_json:
        emit({"agent": name, "head": head, "snapshots": len(snapshots)})
    else:
        stdout().print(f"imported {printable(name)}, {plural(len(snapshots), 'snapshot')}, newest {short(head)}")
