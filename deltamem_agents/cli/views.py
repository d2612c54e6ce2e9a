"""Commands of `deltamem memory` that only read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.options import Agent, At, Json, StoreUrl, open_memory, store_exists
from deltamem_agents.cli.screen import bar, emit, moment, nbytes, plural, printable, short, stdout, table
from deltamem_agents.errors import DeltaMemError

if TYPE_CHECKING:
    from torch import Tensor

    from deltamem_agents.snapshots import Entry, StateDiff, Store

TITLE_LENGTH = 30
"""Number of characters of an agent's name that fit above the narrowest picture."""

COUNTERS = ("turns", "messages", "tokens")


def list_agents(store: StoreUrl = None, as_json: Json = False) -> None:
    """List the agents of a store.

    JSON: {"store", "agents": [{"agent", "head", "turns", "messages", "tokens", "state_bytes", "snapshots", "tags",
    "updated"}]}. An agent whose newest snapshot is damaged has "error" instead of the figures.

    Example: deltamem memory list --store team.sqlite
    """
    from deltamem_agents.snapshots import store_path

    path, rows = store_path(store), []
    if path is None or store_exists(path):
        with open_memory(store) as opened:
            rows = [_agent_row(opened, agent) for agent in opened.agents()]
    if as_json:
        emit({"store": str(path or store), "agents": rows})
        return
    if not rows:
        stdout().print(f"no agents in {path or store}; `deltamem chat --agent NAME` creates one")
        return
    numbers = (*COUNTERS, "snapshots", "tags")
    shown = table("agent", "newest", *numbers, "updated (UTC)", right=numbers)
    for row in rows:
        name = printable(str(row["agent"]))
        if "error" in row:
            shown.add_row(name, "damaged", *["–"] * len(numbers), "see `deltamem memory show`")
        else:
            shown.add_row(name, short(str(row["head"])), *(f"{row[n]:,}" for n in numbers), moment(str(row["updated"])))
    stdout().print(shown)


def _agent_row(store: Store, agent: str) -> dict[str, object]:
    try:
        head, moves = store.load(agent), store.moves(agent)
        return {
            "agent": agent,
            "head": head.id,
            **asdict(head.snapshot.counters),
            "state_bytes": head.snapshot.state.nbytes,
            "snapshots": len({move.snapshot for move in moves}),
            "tags": len(store.tags(agent)),
            "updated": moves[0].at,
        }
    except DeltaMemError as error:
        return {"agent": agent, "error": str(error)}


def log(
    agent: Agent,
    at: At = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of rows.")] = 20,
    moves: Annotated[bool, typer.Option("--moves", help="Show when which snapshot became the newest.")] = False,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Show a snapshot and its ancestors, newest first.

    With --moves, show instead every change of the agent's newest snapshot, including snapshots that a rewind left.

    JSON: {"agent", "snapshots": [{"id", "parent", "created", "origin", "thread", "note", "turns", "messages",
    "tokens", "norm", "tags"}]}, or {"agent", "moves": [{"verb", "snapshot", "at"}]}.

    Example: deltamem memory log ada -n 5
    """
    with open_memory(store) as opened:
        if moves:
            _log_moves(opened, agent, limit, as_json)
            return
        names = _tag_names(opened, agent)
        entries = list(islice(opened.log(agent, at), limit))
        # Computing a state from statements needs the open store.
        facts = [_entry_facts(entry, names) for entry in entries]
    if as_json:
        emit({"agent": agent, "snapshots": facts})
        return
    numbers = (*COUNTERS, "‖S‖")
    shown = table("snapshot", "created (UTC)", "by", "thread", *numbers, "tags", right=numbers)
    for entry, found in zip(entries, facts, strict=True):
        snapshot = entry.snapshot
        shown.add_row(
            short(entry.id),
            moment(snapshot.created),
            snapshot.origin,
            printable(snapshot.thread) or "–",
            *(f"{count:,}" for count in asdict(snapshot.counters).values()),
            f"{found['norm']:.3f}",
            printable(", ".join(names.get(entry.id, ()))),
        )
    stdout().print(shown)


def _log_moves(store: Store, agent: str, limit: int, as_json: bool) -> None:
    found = store.moves(agent)[:limit]
    if as_json:
        emit({"agent": agent, "moves": [asdict(move) for move in found]})
        return
    shown = table("at (UTC)", "verb", "to snapshot")
    for move in found:
        shown.add_row(moment(move.at), move.verb, short(move.snapshot))
    stdout().print(shown)


def _tag_names(store: Store, agent: str) -> dict[str, list[str]]:
    """The tags by snapshot."""
    names: dict[str, list[str]] = {}
    for name, snapshot in sorted(store.tags(agent).items()):
        names.setdefault(snapshot, []).append(name)
    return names


def _entry_facts(entry: Entry, names: Mapping[str, list[str]]) -> dict[str, object]:
    snapshot = entry.snapshot
    return {
        "id": entry.id,
        "parent": snapshot.parent,
        "created": snapshot.created,
        "origin": snapshot.origin,
        "thread": snapshot.thread,
        "note": snapshot.note,
        **asdict(snapshot.counters),
        "norm": snapshot.state.norm(),
        "tags": names.get(entry.id, []),
    }


def show(
    agent: Agent,
    at: At = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE", dir_okay=False, help="Draw the state as heat maps: .png, .svg, .pdf."
        ),
    ] = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Show one snapshot: its size, content and origin, and the norm of each layer's state.

    Layers are numbered from 0; only those with a state are counted.

    JSON: the keys of one snapshot of `log`, and "agent", "geometry": {"layers", "heads", "rank"}, "state_bytes",
    "layer_norms", "threads": {name: newest snapshot}, "fingerprint": {"model", "tokenizer", "adapter", "format"} and
    "picture".

    Example: deltamem memory show ada --picture ada.png
    """
    with open_memory(store) as opened:
        entry = opened.load(agent, at)
        names = _tag_names(opened, agent)
        state = entry.snapshot.state
        norms = _layer_norms(state.matrices)
    if picture is not None:
        from deltamem_agents.lab.pictures import state_picture

        name = printable(agent)
        title = name if len(name) <= TITLE_LENGTH else f"{name[:TITLE_LENGTH]}…"
        state_picture(state, picture, f"{title} · snapshot {short(entry.id)}")
    if as_json:
        facts = _entry_facts(entry, names)
        layers, heads, rank = state.geometry
        facts |= {
            "agent": agent,
            "geometry": {"layers": layers, "heads": heads, "rank": rank},
            "state_bytes": state.nbytes,
            "layer_norms": norms,
            "threads": entry.threads(),
            "fingerprint": asdict(entry.snapshot.fingerprint),
            "picture": None if picture is None else str(picture),
        }
        emit(facts)
        return
    _print_entry(agent, entry, names)
    _print_layers(norms)
    if picture is not None:
        stdout().print(f"picture: {picture}")


def _layer_norms(matrices: Tensor) -> list[float]:
    """The Frobenius norm of each layer, over all heads. `matrices`: (1, layers, heads, r, r)."""
    norms: list[float] = matrices[0].double().flatten(1).norm(dim=1).tolist()
    return norms


def _print_entry(agent: str, entry: Entry, names: Mapping[str, list[str]]) -> None:
    snapshot = entry.snapshot
    (layers, heads, rank), made_by = snapshot.state.geometry, snapshot.fingerprint
    rows = {
        "agent": printable(agent),
        "snapshot": entry.id,
        "parent": snapshot.parent or "none; this is the first",
        "tags": printable(", ".join(names.get(entry.id, ()))) or "none",
        "created": f"{moment(snapshot.created)} UTC by {snapshot.origin}",
        "thread": (printable(snapshot.thread) or "the default one")
        + f", {plural(len(entry.threads()), 'thread')} in all",
        "absorbed": ", ".join(plural(count, name[:-1]) for name, count in asdict(snapshot.counters).items()),
        "state": f"{plural(layers, 'layer')} × {plural(heads, 'head')} × {rank}×{rank} float32, "
        f"{nbytes(snapshot.state.nbytes)}, ‖S‖ {snapshot.state.norm():.4f}",
        "made by": f"model {printable(made_by.model)[:16]} · tokenizer {printable(made_by.tokenizer)[:16]} · "
        f"adapter {printable(made_by.adapter)[:16]}",
        "note": printable(snapshot.note),
    }
    console = stdout()
    for name, value in rows.items():
        if value:
            console.print(f"{name:<10}{value}", soft_wrap=True)


def _print_layers(norms: list[float]) -> None:
    shown = table("layer", "‖S‖", "", right=("layer", "‖S‖"))
    for layer, norm in enumerate(norms):
        shown.add_row(str(layer), f"{norm:.4f}", bar(norm, max(norms)))
    stdout().print(shown)


def diff(
    agent: Agent,
    a: Annotated[str, typer.Argument(metavar="A", help="The snapshot to start from.")],
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The snapshot to compare it with. Default: the newest.")
    ] = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Show how the state changed between two snapshots, layer by layer.

    JSON: {"agent", "a", "b", "distance": [per layer], "cosine": [per layer, null where a state is zero], "counters":
    {"turns", "messages", "tokens"}}.

    Example: deltamem memory diff ada 3f9c01d2
    """
    with open_memory(store) as opened:
        change = opened.diff(agent, a, b)
    if as_json:
        emit({"agent": agent, **asdict(change)})
        return
    stdout().print(f"{printable(agent)}: {short(change.a)} → {short(change.b)}, {_counted(change)}")
    shown = table("layer", "‖B − A‖", "cosine", "", right=("layer", "‖B − A‖", "cosine"))
    for layer, (distance, cosine) in enumerate(zip(change.distance, change.cosine, strict=True)):
        angle = "–" if cosine is None else f"{cosine:+.3f}"
        shown.add_row(str(layer), f"{distance:.4f}", angle, bar(distance, max(change.distance)))
    stdout().print(shown)


def _counted(change: StateDiff) -> str:
    return ", ".join(f"{count:+,} {name}" for name, count in asdict(change.counters).items())
