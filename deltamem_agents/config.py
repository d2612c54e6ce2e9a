"""The configuration of an adapter: the size of its memory and its update rule."""

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
"""Named groups of settings. "published" is the defaults; "shipped" is what both adapters in the package share."""

# Keys of the published configuration that switch on mechanisms outside the method of the paper. Each maps to the value
# at which it has no effect. Any other value would change the result.
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

    `target_layers`: layers with a state; empty means every layer. `layers`, `hidden_size`, `base_model`: the model that
    the adapter was made for; None means unknown, because the published files do not say.

    The published method has none of the following nine settings. `key_shift`: adds a projection of the previous token's
    hidden state to the memory key. `read_gate`: scales what a token reads by a learned gate, one per state.
    `gate_floor`: a write or read gate whose sigmoid is below this value is closed (0), and the rest is rescaled to
    0…1; 0 closes none. `read_scope`: "replies" lets only those tokens read that predict a token of an assistant
    message, so all other messages are processed exactly as by the frozen model. `erase_gate`: a learned gate per token
    that scales how much of the value found under its key is removed from the state. `readout`: adds what every layer
    reads, through a separate projection, to the output of the last layer with a state, skipping the layers between.
    `gate_hidden`: number of hidden units of a small network through which write gates also see the attention input; 0
    for linear gates. `gate_on_reads`: read gates also see what their own and the earlier layers read, so that they can
    tell known from unknown subjects. `gate_votes`: a write gate uses the mean of the gate logits of its own and the
    earlier layers.

    The following are only for adapters of the published method: they reproduce its reference implementation (tests
    compare), and no adapter or recipe in the package uses them. `num_state_heads` above 1, the heads k and v,
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
                    f"adapter config: {name} works on single tokens, but memory_write_granularity='message_mean' "
                    "writes whole messages; choose one of them"
                )
        if self.gate_on_reads and not self.read_gate:
            raise ConfigError("adapter config: gate_on_reads needs read gates, but read_gate is false; set it to true")

    @classmethod
    def of_preset(cls, preset: str, **settings: Any) -> AdapterConfig:
        """The config of a preset in PRESETS, with `settings` changed. Raises ConfigError for an unknown preset."""
        if preset not in PRESETS:
            raise ConfigError(f"adapter config: preset is {preset!r}, expected one of {', '.join(PRESETS)}")
        return cls.from_json({"format": ADAPTER_FORMAT, **PRESETS[preset], **settings})

    @property
    def scale(self) -> float:
        """α/r, the factor by which every correction is multiplied."""
        return self.alpha / self.rank

    @property
    def width(self) -> int:
        """How many numbers a token reads per layer: state heads times rank."""
        return self.num_state_heads * self.rank

    @property
    def gate_width(self) -> int:
        return self.width if self.rankwise_gates else self.num_state_heads

    @property
    def learns_lambda(self) -> bool:
        return not self.couple_lambda and self.state_update_mode != "no_lambda"

    @property
    def keeps_writes(self) -> bool:
        """Whether the state can be computed from a few stored writes, because most tokens do not change it at all.

        That needs gates that close completely, one write per token, and no separate gate that decays the state.
        """
        return self.gate_floor > 0 and self.memory_write_granularity == "token" and not self.learns_lambda

    def half_life(self, beta: float | None) -> float | None:
        """Number of tokens after which half of a state has decayed, if every token were written with gate `beta`.

        None if β is unknown, zero, or does not control the decay.
        """
        if beta is None or not 0 < beta < 1 or self.state_update_mode == "no_lambda" or not self.couple_lambda:
            return None
        return math.log(0.5) / math.log1p(-beta)

    def layer_indices(self, model_layers: int) -> tuple[int, ...]:
        """The layers with a state, in order. Raises ConfigError if the model, of `model_layers` layers, lacks one."""
        beyond = [i for i in self.target_layers if i >= model_layers]
        if beyond:
            raise ConfigError(f"adapter targets layers {beyond}, but the model has {model_layers} layers (0-based)")
        return tuple(sorted(self.target_layers)) or tuple(range(model_layers))

    def to_json(self) -> dict[str, object]:
        """A JSON mapping. `from_json` turns it back into an equal config."""
        return {"format": ADAPTER_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AdapterConfig:
        """Reads this package's own config or the published `delta_mem_config.json`.

        Missing keys take the published defaults. Known keys that have no effect at their value are ignored. An unknown
        key is ignored with a warning in a published file. In this package's own file, which has a "format" key, it is
        an error. Raises ConfigError for such a key, for a value of a wrong type and for a mechanism that is not
        implemented; NewerFormatError for a file of a later version.
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


# For each group of settings: a check of the value, and the text for the error message.
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

# Keys of the published file that matter only at initialisation, or that tune mechanisms refused above.
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
