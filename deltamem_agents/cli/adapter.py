"""`deltamem adapter`: look at adapter files and convert released ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deltamem_agents.cli.options import Json
from deltamem_agents.cli.screen import emit, nbytes, plural, printable, stdout
from deltamem_agents.errors import AlreadyExists

app = typer.Typer(no_args_is_help=True, help="Look at adapters and convert released ones; no model is loaded.")

Source = Annotated[str, typer.Argument(metavar="SRC", help="A folder or Hub id, of the released form or ours.")]


@app.command()
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", file_okay=False, help="The folder to write.")],
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="NAME", help="Note in it which model it was made for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a released adapter (.pt) into safetensors and JSON. Nothing in the source's files is executed.

    JSON: as for `show`, of what was written.

    Example: deltamem adapter convert ./released ./mine --base-model Qwen/Qwen3-4B-Instruct-2507
    """
    from deltamem_agents.loading import adapter_folder
    from deltamem_agents.memory.adapter_file import CONFIG_FILE, convert_adapter

    if (target / CONFIG_FILE).exists():
        raise AlreadyExists(f"{target} holds an adapter already and was left alone; choose another folder")
    convert_adapter(adapter_folder(source, ""), target, base_model=base_model)
    _print(target, as_json)


@app.command()
def show(source: Source, as_json: Json = False) -> None:
    """Show an adapter's geometry, update rule and size.

    JSON: {"folder", "config": {…}, "layers": [indices], "parameters", "nbytes", "dtypes", "state_bytes"}.

    Example: deltamem adapter show runs/first
    """
    from deltamem_agents.loading import adapter_folder

    _print(adapter_folder(source, ""), as_json)


def _print(folder: Path, as_json: bool) -> None:
    from deltamem_agents.memory.adapter_file import read_config, read_weights

    config = read_config(folder)
    weights = read_weights(folder, config)
    layers = sorted({int(name.split(".")[1]) for name in weights})
    parameters, stored = sum(w.numel() for w in weights.values()), sum(w.nbytes for w in weights.values())
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in weights.values()})
    state_bytes = 4 * len(layers) * config.num_state_heads * config.rank**2
    if as_json:
        sizes = {"parameters": parameters, "nbytes": stored, "dtypes": dtypes, "state_bytes": state_bytes}
        emit({"folder": str(folder), "config": asdict(config), "layers": layers, **sizes})
        return
    gates = f"{'one gate per row' if config.rankwise_gates else 'one gate per state'}"
    keep = "λ = 1 − β" if config.couple_lambda else "λ of its own"
    rows = {
        "folder": str(folder),
        "made for": printable(config.base_model or "not said"),
        "state": f"{plural(len(layers), 'layer')} × {plural(config.num_state_heads, 'head')} × "
        f"{config.rank}×{config.rank} float32, {nbytes(state_bytes)}",
        "layers": ", ".join(map(str, layers)),
        "corrects": f"{', '.join(config.delta_heads)} times α/r = {config.scale:g}",
        "writes": f"each {'token' if config.memory_write_granularity == 'token' else 'message'}, "
        f"mode {config.state_update_mode}, {gates}" + ("" if config.state_update_mode == "no_lambda" else f", {keep}"),
        "weights": f"{parameters:,} parameters, {nbytes(stored)}, {', '.join(dtypes)}",
    }
    for name, value in rows.items():
        stdout().print(f"{name:<10}{value}", soft_wrap=True)
