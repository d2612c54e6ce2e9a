"""`deltamem adapter`: show adapter files, convert released ones, and adjust their gates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deltamem_agents.cli.options import Json
from deltamem_agents.cli.screen import emit, nbytes, plural, printable, stdout
from deltamem_agents.errors import AlreadyExistsError

app = typer.Typer(no_args_is_help=True, help="Show, convert and tune adapters. No model is loaded.")

Source = Annotated[str, typer.Argument(metavar="SRC", help="A folder or Hub id, in the released format or ours.")]

Target = Annotated[Path, typer.Argument(metavar="DST", file_okay=False, help="The folder to write to.")]


@app.command()
def convert(
    source: Source,
    target: Target,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="NAME", help="Name of the model it was made for, to be noted in it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a released adapter (.pt) to safetensors and JSON. No code in the source's files is executed.

    JSON: as for `show`, of the new adapter.

    Example: deltamem adapter convert ./released ./mine --base-model Qwen/Qwen3-4B-Instruct-2507
    """
    from deltamem_agents.loading import adapter_folder
    from deltamem_agents.memory.adapter_file import convert_adapter

    _check_free(target)
    convert_adapter(adapter_folder(source, ""), target, base_model=base_model)
    _print(target, as_json)


@app.command()
def gates(
    source: Source,
    target: Target,
    sharper: Annotated[
        float,
        typer.Option(
            "--sharper", metavar="FACTOR", help="Factor on write gates' logits: open ones open further, others close."
        ),
    ] = 1.0,
    write: Annotated[float, typer.Option("--write", metavar="SHIFT", help="Added to write gates' logits.")] = 0.0,
    erase: Annotated[float, typer.Option("--erase", metavar="SHIFT", help="Added to erase gates' logits.")] = 0.0,
    read: Annotated[float, typer.Option("--read", metavar="SHIFT", help="Added to read gates' logits.")] = 0.0,
    louder: Annotated[
        float, typer.Option("--louder", metavar="FACTOR", help="Factor on the o correction and the readout.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Adjust a trained adapter's gates and output scale, without training.

    Sharper write gates replace changed facts better and hold few facts better, but many facts worse. Higher erase gates
    leave less of an old value. Lower read gates keep the memory silent more often, also when it has the answer. A
    louder output makes replies begin from memory more often. Measure the result with `deltamem eval recall`. Memories
    made with SRC cannot be used with DST.

    JSON: as for `show`, of the new adapter.

    Example: deltamem adapter gates runs/mine runs/sharp --sharper 2.5 --write -0.3 --read -0.5
    """
    from deltamem_agents.loading import adapter_folder
    from deltamem_agents.memory.adapter_file import read_config, read_weights, write_adapter
    from deltamem_agents.memory.gate_tuning import tuned_gates

    _check_free(target)
    folder = adapter_folder(source, "")
    config = read_config(folder)
    weights = read_weights(folder, config)
    tuned = tuned_gates(config, weights, sharper=sharper, write=write, erase=erase, read=read, louder=louder)
    write_adapter(target, config, tuned)
    _print(target, as_json)


@app.command()
def show(source: Source, as_json: Json = False) -> None:
    """Show an adapter's geometry, update rule and size.

    JSON: {"folder", "config": {…}, "layers": [indices], "parameters", "nbytes", "dtypes", "state_bytes"}.

    Example: deltamem adapter show runs/first
    """
    from deltamem_agents.loading import adapter_folder

    _print(adapter_folder(source, ""), as_json)


def _check_free(target: Path) -> None:
    from deltamem_agents.memory.adapter_file import CONFIG_FILE

    if (target / CONFIG_FILE).exists():
        raise AlreadyExistsError(f"{target} already holds an adapter and was not changed; choose another folder")


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
    keep = "λ = 1 − β" if config.couple_lambda else "independent λ"
    rows = {
        "folder": str(folder),
        "made for": printable(config.base_model or "not stated"),
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
