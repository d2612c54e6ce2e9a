"""Commands of `deltamem memory` on single statements. Listing and forgetting load no model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.options import (
    DEFAULT_MODEL,
    AdapterDir,
    Agent,
    At,
    Device,
    Json,
    Model,
    StoreUrl,
    open_engine,
    open_memory,
)
from deltamem_agents.cli.screen import emit, marked, moment, nbytes, plural, printable, short, stdout, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from deltamem_agents.snapshots import Statement, StatementReceipt
    from deltamem_agents.turns.migrating import Migration

StatementId = Annotated[
    str, typer.Argument(metavar="STATEMENT", help="Its id, or at least the first six digits of it.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def statements(
    agent: Agent,
    at: At = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Include earlier versions of corrected statements.")
    ] = False,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """List what an agent remembers, message by message, oldest first. No model is loaded.

    A statement is a message that was written to memory. Words that were written strongly are in « ». If the agent's
    policy bounds the number of statements, older ones are folded into the whole state; the list says how many.

    JSON: {"agent", "went", "statements": [{"id", "role", "text", "thread", "created", "origin", "supersedes",
    "superseded", "marked": [[piece of the text, write strength from 0 to 1]]}]}. "went" is the number of statements
    that are only in the whole state.

    Example: deltamem memory statements ada
    """
    from deltamem_agents.turns.listing import list_statements

    with open_memory(store) as opened:
        found = list_statements(opened, agent, at, superseded=superseded)
        went = opened.load(agent, at).snapshot.went
    earlier = {each.supersedes for each in found}
    if as_json:
        rows = [_fields(each, each.id in earlier) for each in found]
        emit({"agent": agent, "went": went, "statements": rows})
        return
    if went:
        stdout().print(f"{plural(went, 'statement')} went over the bound and exist only in the whole state")
    if not found:
        stdout().print(f"{printable(agent)} remembers no statement")
        return
    shown = table("statement", "said (UTC)", "role", "thread", "text")
    for each in found:
        shown.add_row(*_row(each), _marked(each, superseded=each.id in earlier))
    stdout().print(shown)


def search(
    agent: Agent,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, as you would ask the agent.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of results.")] = 4,
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    store: StoreUrl = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find the statements that a reply to a question would use, best first.

    JSON: {"agent", "query", "statements": [the keys of `statements`, and "score"]}.

    Example: deltamem memory search ada "Where do I live?"
    """
    with open_memory(store):
        pass
    with open_engine(model, adapter, store, device) as engine:
        found = engine.search_statements(agent, query, limit=limit)
    if as_json:
        rows = [{**_fields(each, False), "score": score} for each, score in found]
        emit({"agent": agent, "query": query, "statements": rows})
        return
    shown = table("score", "statement", "said (UTC)", "role", "thread", "text", right=("score",))
    for each, score in found:
        shown.add_row(f"{score:.3f}", *_row(each), _marked(each))
    stdout().print(shown)


def forget_statement(
    agent: Agent,
    statement: StatementId,
    yes: Yes = False,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Erase one statement permanently and print a receipt. No model is loaded.

    No byte of its text or of its writes stays in the store, except where a fork holds it. The receipt lists other
    statements with the same words, such as the reply to it. They stay until you forget them too.

    JSON: {"agent", "at", "removed": [ids], "kept": [ids that forks hold], "forks": [agents], "alike": [the keys of
    `statements`], "nbytes"}.

    Example: deltamem memory forget-statement ada 3f9c01d2
    """
    from deltamem_agents.turns.listing import find_statement
    from deltamem_agents.turns.listing import forget_statement as forget

    with open_memory(store) as opened:
        if not yes:
            found = find_statement(opened, agent, statement)
            what = f'"{printable(found.text)}"' if found.text else short(found.id)
            typer.confirm(f"Permanently erase {what}?", abort=True, err=True)
        receipt = forget(opened, agent, statement)
    _print_receipt(receipt, as_json)


def _print_receipt(receipt: StatementReceipt, as_json: bool) -> None:
    if as_json:
        plain = {name: getattr(receipt, name) for name in ("agent", "at", "removed", "kept", "forks", "nbytes")}
        emit({**plain, "alike": [_fields(each, False) for each in receipt.alike]})
        return
    console = stdout()
    console.print(f"forgot a statement of {printable(receipt.agent)} at {moment(receipt.at)} UTC")
    console.print(f"  removed  {plural(len(receipt.removed), 'statement')}, {nbytes(receipt.nbytes)}")
    if receipt.forks:
        console.print(f"  kept     by {printable(', '.join(receipt.forks))}, which hold it too")
    if receipt.alike:
        console.print("  these statements have the same words and are still there:")
        shown = table("statement", "said (UTC)", "role", "thread", "text")
        for each in receipt.alike:
            shown.add_row(*_row(each), _marked(each))
        console.print(shown)


def correct(
    agent: Agent,
    statement: StatementId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The correct text.")],
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    store: StoreUrl = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Replace a statement with a corrected text. Replies read only the new one.

    The earlier version stays in the store until one of the two is forgotten. `statements --superseded` shows it.

    JSON: {"agent", "statement": {the keys of `statements`}}.

    Example: deltamem memory correct ada 3f9c01d2 "I live in Bergen."
    """
    with open_memory(store):
        pass
    with open_engine(model, adapter, store, device) as engine:
        made = engine.correct_statement(agent, statement, text)
    if as_json:
        emit({"agent": agent, "statement": _fields(made, False)})
        return
    stdout().print(f"{printable(agent)} now remembers, as statement {short(made.id)}:")
    stdout().print(_marked(made), soft_wrap=True)


def migrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The agent to move; it is not changed.")],
    to_model: Annotated[
        str, typer.Option("--to-model", metavar="NAME", help="The model to move the memory to.")
    ] = DEFAULT_MODEL,
    to_adapter: Annotated[
        str | None,
        typer.Option("--to-adapter", metavar="DIR", help="Its adapter. Default: the model's shipped adapter."),
    ] = None,
    to_store: Annotated[
        str | None, typer.Option("--to-store", metavar="URL", help="The store to move it to. Default: the same store.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The agent's new name. Default: the same name.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would move, without changing anything. No model is loaded.")
    ] = False,
    store: StoreUrl = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Move a memory to another model or adapter: the new model absorbs the statements' texts again, in order.

    Threads, roles and times are kept. The source agent and its snapshots are not changed. Statements without text, and
    what was written before statements were kept, cannot move; the report lists them.

    JSON: {"source", "agent", "statements", "without_text": [ids], "whole_state", "written", "snapshot"}; the last two
    are null in a dry run.

    Example: deltamem memory migrate ada --to-adapter small --as ada-small
    """
    from deltamem_agents.turns.migrating import survey

    with open_memory(store) as opened:
        if dry_run:
            done = survey(opened, source, name)
        else:
            with open_engine(to_model, to_adapter, store if to_store is None else to_store, device) as engine:
                done = engine.adopt(opened, source, name=name)
    if as_json:
        emit(asdict(done))
    else:
        _print_migration(done)


def _print_migration(done: Migration) -> None:
    console = stdout()
    count = plural(done.statements, "statement")
    if done.written is None:
        console.print(f"{count} of {printable(done.source)} would move; nothing was changed")
    else:
        console.print(
            f"{count} of {printable(done.source)} moved to {printable(done.agent)}, snapshot {short(done.snapshot)}; "
            f"{done.written:,} of them were written to memory"
        )
    if done.without_text:
        console.print(f"  cannot move: {plural(len(done.without_text), 'statement')} without text")
    if done.whole_state:
        console.print("  cannot move: what was written before statements were kept; it exists only in the state")


def _fields(statement: Statement, superseded: bool) -> dict[str, object]:
    names = ("id", "role", "text", "thread", "created", "origin", "supersedes")
    plain: dict[str, object] = {name: getattr(statement, name) for name in names}
    return {**plain, "superseded": superseded, "marked": [[piece, strength] for piece, strength in statement.marked]}


def _row(statement: Statement) -> Sequence[str]:
    return (
        short(statement.id),
        moment(statement.created),
        statement.role,
        printable(statement.thread) or "–",
    )


def _marked(statement: Statement, *, superseded: bool = False) -> Text:
    """The text with strongly written words marked."""
    from rich.text import Text

    from deltamem_agents.memory.matcher import STRONG

    if not statement.text:
        return Text("(no text kept)", style="dim")
    shown = marked((piece, strength >= STRONG) for piece, strength in statement.marked)
    return Text("superseded: ", style="dim") + shown if superseded else shown
