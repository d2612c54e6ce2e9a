"""A random two-layer model and a random adapter, saved as folders for commands to open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.config import AdapterConfig
from deltamem_agents.memory.adapter_file import save_adapter
from tiny_engine import byte_tokenizer, random_adapter, tiny_llama


@dataclass(frozen=True)
class Tiny:
    """The folders of the model and the adapter."""

    model: Path
    adapter: Path

    @property
    def options(self) -> list[str]:
        return ["--model", str(self.model), "--adapter", str(self.adapter)]


def save_tiny(folder: Path, config: AdapterConfig | None = None) -> Tiny:
    folders = Tiny(folder / "model", folder / "adapter")
    model = tiny_llama()
    model.save_pretrained(folders.model)
    byte_tokenizer().save_pretrained(folders.model)
    save_adapter(random_adapter(model, config), folders.adapter)
    return folders
