"""What an adapter is: the geometry of its memory and the rules it updates by."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from deltamem_agents.errors import ConfigError, NewerFormatError

Head: TypeAlias = Literal["q", "k", "v", "o"]
UpdateMode: TypeAlias = Literal["standard", "lambda_outside", "no_lambda"]
Granularity: TypeAlias = Literal["token", "message_mean"]
ScaleGranularity: TypeAlias = Literal["layer", "head"]
ReadScope: TypeAlias = Literal["all", "replies"]

ADAPTER_FORMAT = 1

PRESETS: Mapping[str, Mapping[str, object]] = {
    "published": {},
    "shipped": {
        "state_update_mode": "no_lambda",
        "rankwise_gates": False,
        "key_shift": True,
        "read_gate": True,
        "gate_floor": 0.25,
        "read_scope": "replies",
        "erase_gate": True,
        "readout": True,
    },
}
"""Settings that belong together: "published" has the defaults, "shipped" what both adapters that ship share."""

# Keys of the published configuration that switch on mechanisms outside the method described in the
# paper. Each maps to the value at which it does nothing; any other value would change the result.
_INERT_PUBLISHED_KEYS: Mapping[str, object] = {
    "normalize_qk": True,
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_reader_layers": [],
    "latent_memory_layers": [],
    "slot_read_top_k": 0,
    "delta_scale_parameterization": "alpha_over_rank",
    "target_modules": ["self_attn"],
}


@dataclass(frozen=True)
class AdapterConfig:
    """Geometry and update rule of a δ-mem adapter. Defaults are the published preset.

    `target_layers` empty means every layer. `key_shift` adds a projection of the previous token's hidden state to the
    memory key. `read_gate` scales what a token reads by a gate of its own, one a state. `gate_floor`: a write or read
    gate whose sigmoid is below it is shut, and what is above is stretched to reach from 0 to 1; 0 shuts none.
    `read_scope`: "replies" lets only those tokens read from which a token of an assistant's message is predicted, so
    that what others say is read as by the frozen model. `erase_gate`: a token takes only as much of what its key finds
    out of the state as a gate of its own says. `readout`: what every layer reads is also added, through a projection of
    its own, to the output of the last layer with a state, past all layers between. `gate_hidden`: write gates also see
    the attention input through so many hidden units of a small network; 0 for linear gates. `gate_on_reads`: a read
    gate also sees what its own layer and those before it read, so that what was never told can be told from what was.
    `gate_votes`: a write gate is opened by the mean of what its own layer and those before it make of a token. The
    published method has none of these nine. `layers`, `hidden_size` and `base_model` name the model the adapter
    was made for; None means unknown (the published files do not say).

    Only adapters of the published method need the following, which are here to compute what its reference does (tests
    compare); no adapter or recipe that ships uses them: `num_state_heads` above 1, the heads k and v,
    `state_update_mode` other than "no_lambda", `couple_lambda`, `rankwise_gates`, `memory_write_granularity`
    "message_mean", `delta_o_rmsnorm` and its eps, `trainable_delta_scale` and all `delta_scale_` settings.
    """

    rank: int = 8
    alpha: float = 16.0
    num_state_heads: int = 1
    delta_heads: tuple[Head, ...] = ("q", "o")
    target_layers: tuple[int, ...] = ()
    state_update_mode: UpdateMode = "standard"
    couple_lambda: bool = True
    rankwise_gates: bool = True
    memory_write_granularity: Granularity = "token"
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6
    trainable_delta_scale: bool = False
    delta_scale_init: float = 1.0
    delta_scale_max: float = 2.0
    delta_scale_granularity: ScaleGranularity = "layer"
    key_shift: bool = False
    read_gate: bool = False
    erase_gate: bool = False
    readout: bool = False
    gate_hidden: int = 0
    gate_on_reads: bool = False
    gate_votes: bool = False
    gate_floor: float = 0.0
    read_scope: ReadScope = "all"
    layers: int | None = None
    hidden_size: int | None = None
    base_model: str | None = None

    def __post_init__(self) -> None:
        for name in ("delta_heads", "target_layers"):
            if isinstance(getattr(self, name), Iterable):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for names, accepts, expected in _ACCEPTED:
            for name in names:
                if not accepts(getattr(self, name)):
                    raise ConfigError(f"adapter config: {name} is {getattr(self, name)!r}, expected {expected}")
        for name in ("key_shift", "gate_votes"):
            if getattr(self, name) and self.memory_write_granularity == "message_mean":
                raise ConfigError(
                    f"adapter config: {name} follows single tokens, memory_write_granularity='message_mean' writes "
                    "whole messages; choose one of them"
                )
        if self.gate_on_reads and not self.read_gate:
            raise ConfigError("adapter config: gate_on_reads is about read gates, and read_gate is false; set it too")

    @classmethod
    def of_preset(cls, preset: str, **settings: Any) -> AdapterConfig:
        """A preset of PRESETS with other settings beside it. Raises ConfigError for a name that is not there."""
        if preset not in PRESETS:
            raise ConfigError(f"adapter config: preset is {preset!r}, expected one of {', '.join(PRESETS)}")
        return cls.from_json({"format": ADAPTER_FORMAT, **PRESETS[preset], **settings})

    @property
    def scale(self) -> float:
        """α/r, the factor on every correction."""
        return self.alpha / self.rank

    @property
    def width(self) -> int:
        """Numbers read per token and layer: state heads times rank."""
        return self.num_state_heads * self.rank

    @property
    def gate_width(self) -> int:
        return self.width if self.rankwise_gates else self.num_state_heads

    @property
    def learns_lambda(self) -> bool:
        return not self.couple_lambda and self.state_update_mode != "no_lambda"

    @property
    def keeps_writes(self) -> bool:
        """Whether the state is what its few writes make of it: most tokens leave it alone, bit for bit.

        So it is with gates that shut, one write a token, and no gate by which the state fades in between.
        """
        return self.gate_floor > 0 and self.memory_write_granularity == "token" and not self.learns_lambda

    def half_life(self, beta: float | None) -> float | None:
        """Tokens after which half of a state is gone, were every token written with gate `beta`.

        None where β is unknown, zero, or does not set the decay.
        """
        if beta is None or not 0 < beta < 1 or self.state_update_mode == "no_lambda" or not self.couple_lambda:
            return None
        return math.log(0.5) / math.log1p(-beta)

    def layer_indices(self, model_layers: int) -> tuple[int, ...]:
        """The layers that carry a state, in order, for a model of `model_layers` layers."""
        beyond = [i for i in self.target_layers if i >= model_layers]
        if beyond:
            raise ConfigError(f"adapter targets layers {beyond}, but the model has {model_layers} layers (0-based)")
        return tuple(sorted(self.target_layers)) or tuple(range(model_layers))

    def to_json(self) -> dict[str, object]:
        """A JSON-ready mapping that `from_json` turns back into an equal config."""
        return {"format": ADAPTER_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AdapterConfig:
        """From this package's own file or the published `delta_mem_config.json`.

        Missing keys take the published defaults. Keys known to do nothing at their present value are
        ignored; a key never heard of is ignored with a warning in a published file and refused in our own,
        which names its format. Raises ConfigError for those, for a value of a wrong kind and for a key that
        asks for a mechanism that is not implemented, NewerFormatError for a file of a later version.
        """
        version = data.get("format", ADAPTER_FORMAT)
        if not _is_whole(version):
            raise ConfigError(f"adapter config: format is {version!r}, expected a whole number of at least 1")
        if version > ADAPTER_FORMAT:
            raise NewerFormatError(
                f"adapter config has format {version}, this version reads up to {ADAPTER_FORMAT}; upgrade the package"
            )
        for key, inert in _INERT_PUBLISHED_KEYS.items():
            if key in data and data[key] != inert:
                raise ConfigError(f"adapter config: {key}={data[key]!r} is not supported, only {inert!r} is")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known - set(_INERT_PUBLISHED_KEYS) - {"format"} - _ARCHIVED_KEYS)
        if unknown and "format" in data:
            raise ConfigError(
                f"adapter config: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        if unknown:
            warnings.warn(f"adapter config: ignoring unknown keys {', '.join(unknown)}", stacklevel=2)
        return cls(**{key: value for key, value in data.items() if key in known})


def _is_whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_distinct(value: object) -> bool:
    return isinstance(value, tuple) and len(set(map(str, value))) == len(value)


def _one_of(allowed: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in allowed, f"one of {', '.join(allowed)}"


# For each group of settings: which values are accepted, and how a message names them.
_ACCEPTED: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("rank", "num_state_heads"), _is_whole, "a whole number of at least 1"),
    (
        ("layers", "hidden_size"),
        lambda value: value is None or _is_whole(value),
        "a whole number of at least 1 or null",
    ),
    (("gate_hidden",), lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    (("alpha", "delta_scale_init"), _is_number, "a finite number"),
    (
        ("delta_o_rmsnorm_eps", "delta_scale_max"),
        lambda value: _is_number(value) and value > 0,
        "a finite number above 0",
    ),
    (("gate_floor",), lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    (
        (
            "couple_lambda",
            "rankwise_gates",
            "delta_o_rmsnorm",
            "trainable_delta_scale",
            "key_shift",
            "read_gate",
            "erase_gate",
            "readout",
            "gate_on_reads",
            "gate_votes",
        ),
        lambda value: isinstance(value, bool),
        "true or false",
    ),
    (("base_model",), lambda value: value is None or isinstance(value, str), "a name or null"),
    (("state_update_mode",), *_one_of(get_args(UpdateMode))),
    (("read_scope",), *_one_of(get_args(ReadScope))),
    (("memory_write_granularity",), *_one_of(get_args(Granularity))),
    (("delta_scale_granularity",), *_one_of(get_args(ScaleGranularity))),
    (
        ("delta_heads",),
        lambda value: _is_distinct(value) and value and all(head in get_args(Head) for head in value),
        "a list of distinct heads out of q, k, v, o",
    ),
    (
        ("target_layers",),
        lambda value: _is_distinct(value) and all(_is_whole(index, 0) for index in value),
        "a list of distinct layer indices, counted from 0",
    ),
)

# Settings of the published file that only matter at initialisation, or tune mechanisms refused above.
_ARCHIVED_KEYS = frozenset(
    {
        "beta_bias_init",
        "output_init",
        "base_slice_ref_width",
        "online_gain",
        "memory_partition_routing",
        "memory_partition_basis",
        "tie_memory_partition_read_write",
        "memory_partition_read_mode",
        "memory_partition_sigmoid_gate_bias_init",
        "global_memory_mode",
        "global_memory_read_top_k",
        "global_memory_merge_mode",
        "global_memory_gate_bias_init",
        "global_memory_read_logit_bias",
        "memory_reader_hidden_size",
        "memory_reader_residual_scale",
        "memory_reader_read_only",
        "memory_write_proposals_per_message",
        "synthetic_memory_slots",
        "latent_memory_hidden_size",
        "latent_memory_residual_scale",
        "latent_memory_slots",
        "latent_memory_init_std",
        "latent_gate_init",
    }
)
