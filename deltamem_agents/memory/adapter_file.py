"""Adapters on disk: this package's safetensors + JSON, and the released `.pt` + JSON.

Tensor names in our file are `layers.{model layer}.{weight}`, float32 or bfloat16, every one used as
F.linear(x, W). The released file names them `model.layers.{i}.self_attn.{weight}`.
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
    """Write `adapter` into `folder` as JSON and safetensors, replacing each file whole."""
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in adapter.state_dict().items()}
    write_adapter(folder, adapter.config, weights)


def load_adapter(folder: Path, model: nn.Module, base_model: str | None = None) -> Adapter:
    """The adapter in `folder`, float32, fitted to `model` and frozen.

    `base_model`: the name `model` was opened by. Where the adapter names its model too, the last parts of
    the two names have to agree, in any case: "Qwen/Qwen3-4B" is "./models/qwen3-4b".
    Raises AdapterError when files are missing or damaged, when a weight is missing, surplus or of another
    shape, or when the adapter was made for another model; ConfigError for an unsupported config and
    NewerFormatError for one of a later version.
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
    """Write the adapter in `source`, of either form, into `target` in this package's form; no model is needed.

    The weights keep their values and dtype. `base_model` names the model in the new file. Returns the config
    written. Raises what `load_adapter` does for files that are damaged or contradict their own config.
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
    # Where only some layers carry a memory, their number does not tell how many the model has.
    known = config.layers if config.target_layers else layers
    config = replace(config, layers=known, base_model=base_model or config.base_model)
    write_adapter(target, config, {name: value.contiguous() for name, value in weights.items()})
    return config


def adapter_fingerprint(adapter: Adapter) -> str:
    """sha256 over the weights (float32) and the part of the config that changes what they compute.

    Settings at their defaults are left out, so that one which a later version adds makes no memory foreign.
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
    """The configuration in `folder`, of either form."""
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
    """The tensors in `folder` under this package's names, of either form, on the CPU.

    Raises AdapterError when there are none or they cannot be read; nothing in the files is ever executed.
    """
    ours, published = folder / WEIGHTS_FILE, folder / PUBLISHED_WEIGHTS_FILE
    # A config of ours beside a released weight file is a conversion that was cut short.
    if (folder / CONFIG_FILE).is_file():
        if ours.is_file():
            return _plain(_read_safetensors(ours), ours)
        raise AdapterError(f"{CONFIG_FILE} in {folder} has no {WEIGHTS_FILE} beside it; fetch or convert it again")
    if published.is_file():
        return _rename_published(_plain(_read_published(published), published), config, published)
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
    # A damaged or hostile pickle makes the reader fail in any way there is.
    except Exception as error:
        raise AdapterError(
            f"{path} is damaged or holds something other than tensors ({type(error).__name__}); "
            "nothing in it was executed; fetch it again from a source you trust"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise AdapterError(f"{path} holds a {type(held).__name__}, expected a dictionary of tensors by name")
    return held


def _plain(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`weights`, all of which are dense floating-point numbers that are really there."""
    for name, value in weights.items():
        if value.layout is not torch.strided or value.is_meta or not value.is_floating_point():
            kind = "without values" if value.is_meta else f"{value.dtype}, {value.layout}"
            raise AdapterError(f"{path}: {name} is {kind}; expected dense floating-point numbers")
    return weights


def _rename_published(tensors: Mapping[str, Tensor], config: AdapterConfig, path: Path) -> dict[str, Tensor]:
    """Published names to ours. All-zero corrections of heads the config leaves out are dropped."""
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
    """Write `weights` under this package's names into `folder` with their `config`, replacing each file whole."""
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
    """The sizes a layer's weights have by themselves; a head without a correction gets the hidden size."""
    query = weights.get(f"layers.{index}.memory_q_proj")
    hidden = query.shape[-1] if query is not None and query.ndim == 2 else 1
    corrections = (weights.get(f"layers.{index}.delta_{head}_proj") for head in HEADS)
    return AttentionWidths(hidden, *(hidden if x is None or x.ndim == 0 else x.shape[0] for x in corrections))


def _check_layers(config: AdapterConfig, indices: tuple[int, ...], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuses weights of other layers than `indices`, and names that belong to no layer."""
    strange = sorted(name for name in weights if _NAME.match(name) is None)
    if strange:
        raise AdapterError(f"adapter in {folder} holds {_some(strange)}, expected only names like layers.0.beta_proj")
    found = _layers_in(weights)
    if found != set(indices):
        asked = "its target_layers name" if config.target_layers else "one for each layer of the model would be"
        raise AdapterError(
            f"adapter in {folder} has weights for {len(found)} layers, {asked} {len(indices)}: "
            f"missing {_some([str(i) for i in sorted(set(indices) - found)])}, "
            f"not expected {_some([str(i) for i in sorted(found - set(indices))])}; is it for another base model?"
        )


def _check_layer(memory: nn.Module, index: int, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuses a layer whose weights differ from those of `memory` in name or shape, or are not finite."""
    prefix = f"layers.{index}."
    expected = {prefix + name: value for name, value in memory.state_dict().items()}
    given = {name: value for name, value in weights.items() if name.startswith(prefix)}
    missing, surplus = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or surplus:
        raise AdapterError(
            f"adapter in {folder} does not fit its own config: missing {_some(missing)}, not expected {_some(surplus)}"
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
    """Which of an adapter's sizes is the reason for a shape other than the expected."""
    weight = name.rsplit(".", 1)[-1]
    if weight == "delta_scale_raw":
        return "the scale granularities"
    by_rank, by_model = found[:1] != shape[:1], found[1:] != shape[1:]
    if weight.startswith("delta_"):
        by_rank, by_model = by_model, by_rank
    causes = (("the ranks or numbers of state heads", by_rank), ("the sizes of the base models", by_model))
    return " and ".join(text for text, applies in causes if applies)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "nothing"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
