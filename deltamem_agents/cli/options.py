"""Options shared by several commands, and the engine or store that they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.errors import StoreError

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.snapshots import Store

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The embedded model's name. Repeated here so that --help does not import the module that defines it."""

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="The agent whose memory it is.")]
At = Annotated[str | None, typer.Option("--at", metavar="SNAPSHOT", help="A snapshot other than the newest.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout instead of text.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where memories live: a SQLite file, sqlite:///PATH, folder:///PATH or memory:. "
        "Default: memory.sqlite in $DELTAMEM_HOME or in your data folder.",
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="The embedded model, a local folder, a .gguf file or a Hub id."),
]
AdapterDir = Annotated[
    str | None,
    typer.Option(
        "--adapter", metavar="DIR", help="A folder, a Hub id, or 'small'. Default: the model's shipped adapter."
    ),
]
Save = Annotated[Path | None, typer.Option("--save", metavar="FILE", dir_okay=False, help="Save the figures as JSON.")]
Device = Annotated[str, typer.Option("--device", metavar="cpu|cuda|mps", help="Where the model runs.")]


def open_engine(model: str, adapter: str | None, store: str | None, device: str) -> DeltaMemEngine:
    """Opens a command's engine. Loading progress goes to stderr."""
    from deltamem_agents.engine import DeltaMemEngine

    return DeltaMemEngine.from_pretrained(model, adapter=adapter, store=store, device=device)


def watch(text: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Shows the progress of a named piece of work on stderr. Yields a callback that takes (done, total)."""
    from deltamem_agents.loading.progress import step

    return step(text, True)


def store_exists(path: Path) -> bool:
    """Whether the store exists. Raises StoreError when that cannot be determined."""
    from deltamem_agents.snapshots.durable import named_faults

    with named_faults(f"look for the store {str(path)!r}"):
        return path.exists()


@contextmanager
def open_memory(url: str | None, *, make: bool = False) -> Iterator[Store]:
    """Opens the store. Raises StoreError if it does not exist, unless `make`: a typing error must not create a file."""
    from deltamem_agents.snapshots import open_store, store_path

    path = store_path(url)
    if not make and path is not None and not store_exists(path):
        raise StoreError(
            f"there is no store at {str(path)!r}; `deltamem chat` creates one on its first turn, or name another with "
            "--store"
        )
    with open_store(url) as store:
        yield store
