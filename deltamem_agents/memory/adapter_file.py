"""Adapters on disk: this package's format (safetensors + JSON) and the published format (`.pt` + JSON).

Tensors in this package's format are named `layers.{model layer}.{weight}`, float32 or bfloat16, each used as
F.linear(x, W). The published file names them `model.layers.{i}.self_attn.{weight}`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import AdapterError
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import HEADS, AttentionWidths, LayerMemory
from deltamem_agents.memory.recall_file import load_recall

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"
PUBLISHED_CONFIG_FILE = "delta_mem_config.json"
PUBLISHED_WEIGHTS_FILE = "delta_mem_adapter.pt"

_NAME = re.compile(r"^layers\.(\d+)\.(\w+)$", re.ASCII)
_PUBLISHED_NAME = re.compile(r"^(?:model\.)?layers\.(\d+)\.self_attn\.(\w+)$", re.ASCII)
_DELTA_HEAD = re.compile(r"^delta_([qkvo])_proj$")


def save_adapter(adapter: Adapter, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write `adapter` into `folder` as JSON and safetensors, replacing each file atomically."""
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in adapter.state_dict().items()}
    write_adapter(folder, adapter.config, weights)


def load_adapter(folder: Path, model: nn.Module, base_model: str | None = None) -> Adapter:
    """The adapter in `folder`, float32, fitted to `model` and frozen.

    `base_model`: the name under which `model` was opened. If the adapter names its model too, the last path segments
    of both names must match, ignoring case: "Qwen/Qwen3-4B" matches "./models/qwen3-4b".
    Raises AdapterError if files are missing or damaged, if a weight is missing, unexpected or of another shape, or if
    the adapter was made for another model; ConfigError for an unsupported config and NewerFormatError for a config of
    a later version.
    """
    config = read_config(folder)
    if base_model and config.base_model and _last_part(base_model) != _last_part(config.base_model):
        raise AdapterError(
            f"adapter in {folder} was made for the model {config.base_model!r}, not for {base_model!r}; open that "
            "model, or load the adapter without base_model if the two are one"
        )
    adapter = Adapter.for_model(config, model)
    weights = read_weights(folder, config)
    _check_layers(config, adapter.indices, weights, folder)
    for index in adapter.indices:
        _check_layer(adapter.layers[str(index)], index, weights, folder)
    adapter.load_state_dict({name: value.float() for name, value in weights.items()})
    adapter.recall = load_recall(folder, *adapter.zero_state().geometry)
    device = next(model.parameters()).device
    return adapter.to(device).requires_grad_(False)


def convert_adapter(source: Path, target: Path, *, base_model: str | None = None) -> AdapterConfig:
    """Write the adapter in `source`, in either format, into `target` in this package's format; needs no model.

    The weights keep their values and dtype. `base_model`: the model's name in the new file. Returns the config that
    was written. Raises the errors of `load_adapter` for files that are damaged or contradict their own config.
    """
    config = read_config(source)
    weights = read_weights(source, config)
    layers = config.layers or 1 + max((*_layers_in(weights), *config.target_layers), default=0)
    indices = config.layer_indices(layers)
    _check_layers(config, indices, weights, source)
    for index in indices:
        widths = _widths_in(weights, index)
        _check_layer(LayerMemory(config, widths), index, weights, source)
        if config.hidden_size not in (None, widths.hidden):
            raise AdapterError(
                f"adapter in {source}: layer {index} is made for hidden_size={widths.hidden}, other layers or the "
                f"config say {config.hidden_size}; fetch it again"
            )
        config = replace(config, hidden_size=widths.hidden)
    # If only some layers have a memory, the weights do not tell how many layers the model has.
    known = config.layers if config.target_layers else layers
    config = replace(config, layers=known, base_model=base_model or config.base_model)
    write_adapter(target, config, {name: value.contiguous() for name, value in weights.items()})
    return config


def adapter_fingerprint(adapter: Adapter) -> str:
    """sha256 over the weights (float32) and the config fields that change what they compute.

    Fields at their defaults are left out, so that existing memories still match after a later version adds a field.
    """
    defaults = AdapterConfig().to_json()
    config = {key: value for key, value in adapter.config.to_json().items() if value != defaults[key]}
    config.pop("base_model", None)
    hashed = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(adapter.state_dict().items()):
        hashed.update(name.encode() + b"\0")
        hashed.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return hashed.hexdigest()


def read_config(folder: Path) -> AdapterConfig:
    """The configuration in `folder`, in either format."""
    for name in (CONFIG_FILE, PUBLISHED_CONFIG_FILE):
        path = folder / name
        if path.is_file():
            try:
                data = json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise AdapterError(f"{path} is not valid JSON ({error}); fetch or export the adapter again") from None
            if not isinstance(data, dict):
                raise AdapterError(f"{path} holds a {type(data).__name__}, expected a JSON object")
            return AdapterConfig.from_json(data)
    raise AdapterError(f"no {CONFIG_FILE} or {PUBLISHED_CONFIG_FILE} in {folder}; is this an adapter folder?")


def read_weights(folder: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors in `folder`, in either format, on the CPU and under this package's names.

    Raises AdapterError if there are none or they cannot be read. Nothing in the files is ever executed.
    """
    ours, published = folder / WEIGHTS_FILE, folder / PUBLISHED_WEIGHTS_FILE
    # This package's config beside a published weight file: a conversion was interrupted.
    if (folder / CONFIG_FILE).is_file():
        if ours.is_file():
            return _checked_dense(_read_safetensors(ours), ours)
        raise AdapterError(f"{CONFIG_FILE} in {folder} has no {WEIGHTS_FILE} beside it; fetch or convert it again")
    if published.is_file():
        return _rename_published(_checked_dense(_read_published(published), published), config, published)
    raise AdapterError(f"no {WEIGHTS_FILE} or {PUBLISHED_WEIGHTS_FILE} in {folder}; is this an adapter folder?")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged or cannot be read ({error}); fetch it again") from None
    if written is not None and written != _digest(weights):
        raise AdapterError(f"{path} is damaged: its weights are not those it was written with; fetch it again")
    return weights


def _read_published(path: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile pickle can raise any exception.
    except Exception as error:
        raise AdapterError(
            f"{path} is damaged or holds something other than tensors ({type(error).__name__}); "
            "nothing in it was executed; fetch it again from a source you trust"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise AdapterError(f"{path} holds a {type(held).__name__}, expected a dictionary of tensors by name")
    return held


def _checked_dense(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`weights` unchanged; raises AdapterError if one is sparse, without values (meta) or not floating-point."""
    for name, value in weights.items():
        if value.layout is not torch.strided or value.is_meta or not value.is_floating_point():
            kind = "without values" if value.is_meta else f"{value.dtype}, {value.layout}"
            raise AdapterError(f"{path}: {name} is {kind}; expected dense floating-point numbers")
    return weights


def _rename_published(tensors: Mapping[str, Tensor], config: AdapterConfig, path: Path) -> dict[str, Tensor]:
    """Rename published tensors. All-zero corrections of heads that `delta_heads` leaves out are dropped."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = _PUBLISHED_NAME.match(str(name))
        if match is None:
            raise AdapterError(f"{path} holds {name!r}, expected only names like model.layers.0.self_attn.beta_proj")
        layer, weight = int(match[1]), match[2]
        head = _DELTA_HEAD.match(weight)
        if head and head[1] not in config.delta_heads:
            if bool(value.any()):
                raise AdapterError(f"{path}: {name} is not zero, but the config's delta_heads leave {head[1]!r} out")
            continue
        renamed[f"layers.{layer}.{weight}"] = value
    return renamed


def write_adapter(folder: Path, config: AdapterConfig, weights: Mapping[str, Tensor]) -> None:
    """Write `weights`, under this package's names, and their `config` into `folder`; replaces each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (WEIGHTS_FILE + ".part")
    save_file(dict(weights), partial, metadata={"sha256": _digest(weights)})
    partial.replace(folder / WEIGHTS_FILE)
    partial = folder / (CONFIG_FILE + ".part")
    partial.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG_FILE)


def _digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    hashed = hashlib.sha256()
    for name, value in sorted(weights.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hashed.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].casefold()


def _layers_in(weights: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in weights if (match := _NAME.match(name))}


def _widths_in(weights: Mapping[str, Tensor], index: int) -> AttentionWidths:
    """A layer's sizes, read off its weights; a head without a correction gets the hidden size."""
    query = weights.get(f"layers.{index}.memory_q_proj")
    hidden = query.shape[-1] if query is not None and query.ndim == 2 else 1
    corrections = (weights.get(f"layers.{index}.delta_{head}_proj") for head in HEADS)
    return AttentionWidths(hidden, *(hidden if x is None or x.ndim == 0 else x.shape[0] for x in corrections))


def _check_layers(config: AdapterConfig, indices: tuple[int, ...], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raise AdapterError for weights of layers other than `indices`, and for names that belong to no layer."""
    strange = sorted(name for name in weights if _NAME.match(name) is None)
    if strange:
        raise AdapterError(f"adapter in {folder} holds {_listed(strange)}, expected only names like layers.0.beta_proj")
    found = _layers_in(weights)
    if found != set(indices):
        asked = "its target_layers name" if config.target_layers else "one for each layer of the model would be"
        raise AdapterError(
            f"adapter in {folder} has weights for {len(found)} layers, {asked} {len(indices)}: "
            f"missing {_listed([str(i) for i in sorted(set(indices) - found)])}, "
            f"not expected {_listed([str(i) for i in sorted(found - set(indices))])}; is it for another base model?"
        )


def _check_layer(memory: nn.Module, index: int, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raise AdapterError if a layer's weights differ from `memory`'s in name or shape, or are not finite."""
    prefix = f"layers.{index}."
    expected = {prefix + name: value for name, value in memory.state_dict().items()}
    given = {name: value for name, value in weights.items() if name.startswith(prefix)}
    missing, surplus = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or surplus:
        raise AdapterError(
            f"adapter in {folder} does not fit its own config: missing {_listed(missing)}, "
            f"not expected {_listed(surplus)}"
        )
    for name, value in expected.items():
        _check_weight(name, given[name], tuple(value.shape), folder)


def _check_weight(name: str, value: Tensor, shape: tuple[int, ...], folder: Path) -> None:
    found = tuple(value.shape)
    if found != shape:
        raise AdapterError(
            f"adapter in {folder}: {name} has shape {found}, expected {shape}; {_cause(name, found, shape)} differ"
        )
    if not bool(torch.isfinite(value.float()).all()):
        raise AdapterError(f"adapter in {folder}: {name} holds values that are not finite; fetch it again")


def _cause(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The adapter sizes that explain an unexpected shape, in words."""
    weight = name.rsplit(".", 1)[-1]
    if weight == "delta_scale_raw":
        return "the scale granularities"
    by_rank, by_model = found[:1] != shape[:1], found[1:] != shape[1:]
    if weight.startswith("delta_"):
        by_rank, by_model = by_model, by_rank
    causes = (("the ranks or numbers of state heads", by_rank), ("the sizes of the base models", by_model))
    return " and ".join(text for text, applies in causes if applies)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "nothing"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
