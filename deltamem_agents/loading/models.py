"""Loads a frozen model by name, with a device, a dtype and options."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from safetensors import SafetensorError
from torch import nn

from deltamem_agents.errors import ConfigError, DownloadError, ModelFilesError
from deltamem_agents.loading.dense_copy import dense_copy, one_load_at_a_time, quiet_transformers, sha256_of
from deltamem_agents.loading.embedded import EMBEDDED_MODEL, embedded_copy
from deltamem_agents.loading.fingerprints import model_fingerprint, tokenizer_fingerprint
from deltamem_agents.loading.int8 import can_decode_in_int8, decode_in_int8
from deltamem_agents.loading.precision import multiplies_bfloat16, precisions
from deltamem_agents.loading.progress import step
from deltamem_agents.processes import begin_computing, require_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelObject: TypeAlias = "PreTrainedModel"
TokenizerObject: TypeAlias = "PreTrainedTokenizerBase"
DecodeWeights: TypeAlias = Literal["int8", "auto"]
_Kind: TypeAlias = Literal["embedded", "gguf", "folder", "hub"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A frozen model in evaluation mode, its tokenizer, and their fingerprints.

    `name`: the requested name; the embedded model's alias in lower case. The fingerprints are those of
    `model_fingerprint` and `tokenizer_fingerprint`, computed before anything is attached to the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    model_fingerprint: str
    tokenizer_fingerprint: str

    @property
    def context_tokens(self) -> int:
        """The model's maximum sequence length, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LoadedModel:
        """Freezes a model that is already in memory. The model object is changed, not copied.

        Raises ConfigError for weights on the meta device, ForkedProcessError in a fork that cannot compute.
        """
        require_threads(needed=torch.get_num_threads() > 1)
        begin_computing()
        model.eval().requires_grad_(False)
        return cls(model, tokenizer, name, model_fingerprint(model), tokenizer_fingerprint(tokenizer))


@dataclass(frozen=True)
class ModelOptions:
    """Options passed unchanged to transformers' `from_pretrained`, under the same names. None is not passed."""

    revision: str | None = None
    token: str | bool | None = None
    device_map: Any = None
    attn_implementation: str | None = None
    quantization_config: Any = None


def load_model(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    decode_weights: DecodeWeights | None = None,
    progress: bool = True,
    options: ModelOptions = ModelOptions(),
) -> LoadedModel:
    """Loads a model by name, in evaluation mode, with its weights frozen.

    `name`: `"smollm2-135m-instruct"` in upper or lower case, a folder with config.json and safetensors, a folder with
    one .gguf, a .gguf file, or a Hub id such as "Qwen/Qwen3-0.6B". The alias takes precedence over a folder of that
    name; write "./smollm2-135m-instruct" for the folder.
    `device`: None is the CPU, or the device of `options.device_map`.
    `dtype`: a torch dtype or its name. "auto" is the dtype of the files, None is `default_dtype(device)`.
    `decode_weights`: "int8" decodes with rounded weights, on a CPU; see `int8.py`. "auto" does so if it is faster here
    and possible. None uses the model's own weights.
    `progress`: show long work on stderr, as progress bars on a terminal and as one line per step elsewhere.

    Raises ConfigError for an unknown name, device or dtype, or an option that this model does not support,
    DownloadError if the model cannot be downloaded or has the wrong checksum, ModelFilesError if files are missing or
    damaged or the cache cannot be written.
    """
    asked = os.fspath(name)
    kind = _kind_of(asked)
    if decode_weights not in (None, "int8", "auto"):
        raise ConfigError(f"decode_weights is {decode_weights!r}; expected 'int8', 'auto', or None for the model's own")
    if decode_weights == "int8" and options.quantization_config is not None:
        raise ConfigError("decode_weights and quantization_config were given, and each rounds the weights; give one")
    _check_options(asked, kind, device, options)
    place = _require_device(_first_device(options.device_map) if device is None else device)
    require_threads(needed=torch.get_num_threads() > 1)
    precision = default_dtype(place) if dtype is None else _as_dtype(dtype)
    source = asked if kind == "hub" else str(_local_folder(asked, kind, progress))
    model, tokenizer = _open(source, asked, precision, progress, place, options, from_hub=kind == "hub")
    _require_one_device(asked, model)
    if options.device_map is None and model.device != place:
        cast(nn.Module, model).to(place)
    if decode_weights == "int8" or (decode_weights and can_decode_in_int8(model) and _int8_pays(model)):
        decode_in_int8(model)
    return LoadedModel.of(model, tokenizer, EMBEDDED_MODEL if kind == "embedded" else asked)


def default_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 if the hardware multiplies it and, on a CPU, turns are measured to be faster in it; else float32.

    It is measured once for each machine; see `precision.py`.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return precisions().dtype if kind == "cpu" and multiplies_bfloat16() else torch.float32


def _int8_pays(model: PreTrainedModel) -> bool:
    return precisions().int8_pays(model.dtype)


def _kind_of(name: str) -> _Kind:
    path = Path(name).expanduser()
    if name.lower() == EMBEDDED_MODEL:
        return "embedded"
    if name and path.is_dir():
        return "folder" if (path / "config.json").is_file() else "gguf"
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    if HUB_ID.fullmatch(name) and path.suffix.lower() != ".gguf" and not path.exists():
        return "hub"
    found = "a file, but not a .gguf" if path.is_file() else "neither a local file or folder nor a known name"
    raise ConfigError(
        f"model {name!r} is {found}; expected the embedded {EMBEDDED_MODEL!r}, a folder with config.json "
        "and safetensors, a .gguf file, or a Hub id of the form 'organisation/name'"
    )


def _local_folder(name: str, kind: _Kind, progress: bool) -> Path:
    """The folder with the model's config.json. The model is converted or downloaded first if needed."""
    if kind == "embedded":
        return embedded_copy(progress)
    path = Path(name).expanduser()
    if kind == "folder":
        return path
    gguf = _single_gguf(path)
    with step(f"reading {gguf.name}", progress, long=False):
        digest = sha256_of(gguf)
    return dense_copy(digest, lambda scratch: gguf, progress)


def _single_gguf(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "neither config.json nor a .gguf"
        expected = "the path of one of them" if found else "config.json with safetensors, or one .gguf"
        raise ConfigError(f"model folder {path} holds {listed}; expected {expected}")
    return found[0]


def _require_device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r} is unknown; use 'cpu', 'cuda', 'cuda:N' or 'mps'") from None
    absent = (place.type == "cuda" and not torch.cuda.is_available()) or (
        place.type == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise ConfigError(
            f"device {str(place)!r} was asked for, but torch {torch.__version__} finds none here; "
            "use device='cpu', or install a torch build and a driver for it"
        )
    return place


def _check_options(name: str, kind: _Kind, device: str | torch.device | None, options: ModelOptions) -> None:
    if options.revision is not None and kind != "hub":
        raise ConfigError(
            f"revision {options.revision!r} was asked for, but {name!r} is no model on the Hub; "
            "leave revision out, or name the model 'organisation/name'"
        )
    if device is not None and options.device_map is not None:
        raise ConfigError(f"device is {str(device)!r} and device_map {options.device_map!r}; give one of them")


def _first_device(device_map: object) -> str | torch.device:
    """A device named in the map, "cpu" if there is none. The default dtype is chosen for it."""
    named = next(iter(device_map.values()), "cpu") if isinstance(device_map, Mapping) else device_map
    if isinstance(named, int):
        return f"cuda:{named}"
    if named in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return named if isinstance(named, (str, torch.device)) and named != "disk" else "cpu"


def _require_one_device(name: str, model: nn.Module) -> None:
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) > 1 or places == ["meta"]:
        raise ConfigError(
            f"device_map spread {name!r} over {', '.join(places)}, but model and memory must be on one device; "
            "give device_map={'': 'cuda:0'} or device='cuda:0', or a smaller model or a quantization_config"
        )


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype {dtype!r} is not a floating-point type; use 'float32', 'bfloat16' or 'float16'")
    return found


def _open(
    source: str,
    name: str,
    dtype: torch.dtype | str,
    progress: bool,
    place: torch.device,
    options: ModelOptions,
    *,
    from_hub: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Opens a folder or a Hub id. A Hub download shows transformers' progress bars, not this package's."""
    given = {key: value for key, value in vars(options).items() if value is not None}
    if options.quantization_config is not None:
        # Quantised weights cannot be moved later.
        given.setdefault("device_map", {"": place})
    fetched = {key: given[key] for key in ("revision", "token") if key in given}
    bars_are_theirs = from_hub and progress
    with step(f"opening {name}", progress and not from_hub, long=False), one_load_at_a_time:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            with nullcontext() if bars_are_theirs else quiet_transformers():
                model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **given)
                tokenizer = AutoTokenizer.from_pretrained(source, **fetched)
        except ImportError as error:
            raise ConfigError(
                f"model {name!r} needs a package that is not installed: {first_line(error)}; "
                "install it, or leave out the option that asks for it"
            ) from error
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            if from_hub:
                raise DownloadError(
                    f"model {name!r} is no local folder and could not be opened from the Hub: {first_line(error)}; "
                    "check the spelling, the network and the access rights"
                ) from error
            raise ModelFilesError(
                f"model folder {source} could not be opened: {first_line(error)}; expected config.json, "
                "*.safetensors and a tokenizer of a causal language model"
            ) from error
    return model, tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error message, without the long advice that model libraries add."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
