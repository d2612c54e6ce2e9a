"""`deltamem train`: trains an adapter by a recipe, or draws a run's progress."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from deltamem_agents.cli.screen import plural, printable, stderr, stdout, table
from deltamem_agents.errors import ConfigError

PICTURE_FILE = "training.png"
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A JSON file, or the name of a shipped recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", file_okay=False, help="The run's folder.")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="ADAPTER", exists=True, file_okay=False, help="An adapter to start from."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to train.")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads to use.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Only draw the run in DIR, finished or not.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
) -> None:
    """Train an adapter. DIR gets the adapter, a log with one line per step (log.jsonl) and a picture (training.png).

    The same command with the same recipe and DIR continues from the last checkpoint. With --from, training starts from
    an existing adapter's weights instead of a warm start. That adapter must have the recipe's geometry, except for
    hidden units and votes of write gates; a gate fit in the recipe still runs.

    Examples: deltamem train wide --out runs/wide · deltamem train more.json --from runs/wide --out runs/more ·
    deltamem train --plot --out runs/wide
    """
    if list_:
        _list_recipes()
        return
    if out is None:
        raise typer.BadParameter("--out DIR, the run's folder, is required", param_hint="--out")
    if plot:
        stdout().print(f"picture: {_draw(out)}")
        return
    if recipe is None:
        raise typer.BadParameter("a RECIPE is required; `deltamem train --list` lists the shipped ones")
    _train(recipe, out, start, device, threads)


def _train(name: str, out: Path, start: Path | None, device: str, threads: int | None) -> None:
    import torch

    from deltamem_agents.chat.template import ChatTemplate
    from deltamem_agents.lab.training.recipe import Recipe
    from deltamem_agents.lab.training.trainer import Trainer
    from deltamem_agents.loading import load_model
    from deltamem_agents.memory.adapter_file import load_adapter

    recipe = Recipe.load(name)
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model(recipe.model, device=device)
    console = stderr()
    for module, loss in (("numba", "steps are slower"), ("matplotlib", "no picture is drawn")):
        if find_spec(module) is None:
            console.print(printable(f"without {module}, {loss}; pip install 'deltamem-agents[lab]'"))
    begin = None if start is None else load_adapter(start, loaded.model, recipe.model)
    trainer = Trainer(
        loaded, ChatTemplate(loaded.tokenizer), recipe, out, lambda line: console.print(printable(line)), begin
    )
    if trainer.step:
        console.print(f"continuing at step {trainer.step} of {recipe.steps}")
    try:
        trainer.run()
    except KeyboardInterrupt:
        console.print(f"\nstopped at step {trainer.step}; the same command continues from the last checkpoint")
        raise typer.Exit(INTERRUPTED) from None
    try:
        stdout().print(f"adapter: {out}\npicture: {_draw(out)}")
    except ConfigError as error:
        stdout().print(f"adapter: {out}\nno picture: {error}")


def _draw(out: Path) -> Path:
    from deltamem_agents.lab.pictures import training_picture
    from deltamem_agents.lab.training.trainer import LOG_FILE

    log = out / LOG_FILE
    if not log.is_file():
        raise ConfigError(f"{out} holds no {LOG_FILE}; expected the folder of a `deltamem train` run")
    picture = out / PICTURE_FILE
    training_picture(log.read_text(encoding="utf-8").splitlines(), picture)
    return picture


def _list_recipes() -> None:
    from deltamem_agents.lab.training.recipe import RECIPES, Recipe

    shown = table("recipe", "model", "steps", "facts", right=("steps",))
    for path in sorted(RECIPES.glob("*.json")):
        recipe = Recipe.load(path)
        facts = sorted({count for stage in recipe.stages for count in stage.facts})
        shown.add_row(path.stem, recipe.model, f"{recipe.steps:,}", f"{facts[0]} to {plural(facts[-1], 'fact')}")
    stdout().print(shown)
