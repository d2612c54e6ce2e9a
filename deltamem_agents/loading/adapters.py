"""Finds an adapter's files: in a folder, on the Hub, or among the adapters that ship with this package."""

from __future__ import annotations

import os
from pathlib import Path

from deltamem_agents.errors import AdapterError, DownloadError
from deltamem_agents.loading.models import HUB_ID, first_line

SHIPPED = Path(__file__).parents[1] / "adapters"

# Only these files are downloaded, because an adapter's repository may contain large leftovers of training.
_WANTED = (
    "adapter_config.json",
    "adapter.safetensors",
    "recall.safetensors",
    "delta_mem_config.json",
    "delta_mem_adapter.pt",
    "README.md",
)


def adapter_folder(adapter: str | os.PathLike[str] | None, model_name: str, *, token: str | bool | None = None) -> Path:
    """The local folder of an adapter. A Hub id is downloaded first.

    `adapter`: a folder or Hub id. None is the default adapter that ships for the model `model_name`. A single word,
    such as "small", is another adapter that ships for it, unless a folder of that name exists. `token`: for the Hub.
    Raises AdapterError if there is no such adapter, DownloadError if the download fails.
    """
    if adapter is None:
        return _shipped_for(model_name)
    asked = os.fspath(adapter)
    if asked and Path(asked).expanduser().is_dir():
        return Path(asked).expanduser()
    presets = shipped_presets(model_name)
    if asked in presets:
        return presets[asked]
    if not HUB_ID.fullmatch(asked):
        own = f"one of those that ship for this model ({', '.join(presets)}), " if presets else ""
        raise AdapterError(
            f"adapter {asked!r} is no folder; expected a folder with adapter_config.json and adapter.safetensors, {own}"
            "or a Hub id of the form 'organisation/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(asked, allow_patterns=list(_WANTED), token=token))
    except (OSError, ValueError, RuntimeError) as error:
        raise DownloadError(
            f"adapter {asked!r} is no local folder and could not be fetched from the Hub: {first_line(error)}; "
            "check the spelling, the network and the access rights"
        ) from error


def shipped_adapters() -> tuple[str, ...]:
    """Names of the models for which an adapter ships. In Hub ids the slash is written as --."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/adapter_config.json")))


def shipped_presets(model_name: str) -> dict[str, Path]:
    """The folders of the other adapters that ship for a model, by their names."""
    found = sorted(SHIPPED.glob("*/*/adapter_config.json"))
    return {path.parent.name: path.parent for path in found if path.parents[1].name == _folder_name(model_name)}


def _folder_name(model_name: str) -> str:
    return model_name.lower().replace("/", "--")


def _shipped_for(model_name: str) -> Path:
    name = _folder_name(model_name)
    if name not in shipped_adapters():
        known = ", ".join(shipped_adapters()) or "none"
        raise AdapterError(
            f"no adapter ships for model {model_name!r} (shipped: {known}); pass adapter= a folder or Hub id, "
            "or train one with `deltamem train`"
        )
    return SHIPPED / name
