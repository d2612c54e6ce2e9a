"""A training run on disk: recipe, log, adapter and checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.training.recipe import Recipe
from deltamem_agents.memory.adapter_file import save_adapter
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.snapshots.durable import replacing
from deltamem_agents.types import Message

LOG_FILE = "log.jsonl"
PROGRESS_FILE = "progress.json"
OPTIMISER_FILE = "optimiser.safetensors"
RECIPE_FILE = "recipe.json"
LOCK_FILE = "run.lock"
NEUTRAL_FILE = "neutral.jsonl"
STATEMENTS_FILE = "statements.jsonl"

_WEIGHT = "weight"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps. `weights`: the adapter's, by name. `moments`: optimiser state, by kind and name."""

    step: int
    seconds: float
    weights: Mapping[str, Tensor]
    moments: Mapping[tuple[str, str], Tensor]


class RunFolder:
    """One run's folder.

    The optimiser's file holds the whole checkpoint and is replaced atomically, so a run killed at any moment resumes
    from a complete checkpoint. The adapter beside it is for use.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Raises ConfigError when the folder holds a run of another recipe."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._keep(recipe)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Locks the folder against other training processes. Raises ConfigError when one holds it."""
        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is training in {self.path}; wait for it, stop it, or choose another folder"
            ) from None
        try:
            for abandoned in self.path.glob("*.tmp"):
                abandoned.unlink()
            yield
        finally:
            lock.release()

    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, None if there is none. Raises ConfigError when it is damaged."""
        path = self.path / OPTIMISER_FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                noted = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}); restore it from a backup, or start again in another folder"
            ) from None
        named = {(kind, name): value for text, value in tensors.items() for kind, _, name in [text.partition(":")]}
        weights = {name: value for (kind, name), value in named.items() if kind == _WEIGHT}
        if not weights or not {"step", "seconds"} <= noted.keys():
            raise ConfigError(
                f"{path} holds no complete checkpoint; restore it from a backup, or start again in another folder"
            )
        moments = {key: value for key, value in named.items() if key[0] != _WEIGHT}
        return Checkpoint(int(noted["step"]), float(noted["seconds"]), weights, moments)

    def save(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        """Saves `checkpoint`, and `adapter` for use. Each file is replaced atomically."""
        noted = {"step": checkpoint.step, "seconds": checkpoint.seconds}
        tensors = {f"{kind}:{name}": value for (kind, name), value in checkpoint.moments.items()}
        tensors |= {f"{_WEIGHT}:{name}": value for name, value in checkpoint.weights.items()}
        packed = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        self._replace(OPTIMISER_FILE, save(packed, {key: repr(value) for key, value in noted.items()}))
        save_adapter(adapter, self.path)
        self._replace(PROGRESS_FILE, json.dumps(noted).encode())

    def own_replies(self, name: str) -> list[tuple[Message, Message]] | None:
        """The prompts and replies that `keep_own_replies` saved in the file `name`, None if there are none."""
        path = self.path / name
        if not path.exists():
            return None
        pairs = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        return [(Message("user", prompt), Message("assistant", reply)) for prompt, reply in pairs]

    def keep_own_replies(self, name: str, texts: Sequence[tuple[Message, Message]]) -> None:
        lines = [json.dumps([prompt.content, reply.content]) + "\n" for prompt, reply in texts]
        self._replace(name, "".join(lines).encode())

    def log(self, line: Mapping[str, Any]) -> None:
        with (self.path / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def cut_log(self, step: int) -> None:
        """Removes what was logged after the checkpoint at `step`, including an incomplete last line."""
        path = self.path / LOG_FILE
        if not path.exists():
            return
        kept: dict[tuple[bool, int], str] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                number, trains = int(row["step"]), "loss" in row
            except (ValueError, TypeError, KeyError):
                continue
            # A training step's line has the number of steps before it, an evaluation's the number of steps done.
            if number + trains <= step:
                kept[trains, number] = line + "\n"
        self._replace(LOG_FILE, "".join(kept.values()).encode())

    def _keep(self, recipe: Recipe) -> None:
        path = self.path / RECIPE_FILE
        begun = (self.path / OPTIMISER_FILE).exists()
        if begun and path.exists() and Recipe.load(path) != recipe:
            raise ConfigError(
                f"{self.path} holds a run of another recipe; continue it with its own {RECIPE_FILE}, "
                "or choose another folder"
            )
        if not begun or not path.exists():
            self._replace(RECIPE_FILE, (json.dumps(recipe.to_json(), indent=2) + "\n").encode())

    def _replace(self, name: str, data: bytes) -> None:
        with replacing(self.path / name) as file:
            file.write(data)
