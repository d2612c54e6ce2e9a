"""Gates of a trained adapter set anew: how readily it writes, and how readily it speaks. Nothing is trained.

What training settles on is a compromise between what it was shown. Write gates that stand half open on what is told
leave half of an old value behind when a fact changes; sharper ones replace it (training log, trial 65).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError

_WRITE_WEIGHTS = ("beta_proj", "beta_hidden_proj")


def tuned_gates(
    config: AdapterConfig, weights: Mapping[str, Tensor], *, sharper: float = 1.0, write: float = 0.0, read: float = 0.0
) -> dict[str, Tensor]:
    """An adapter's weights, by name and of their own dtypes, with its gates set anew.

    `sharper`: factor on how far a write gate's logit is from that of the gate floor (from 0 without a floor), so that
    what is open opens further and what is shut shuts. `write`, `read`: added to the logits of write and read gates.
    Raises ConfigError when `sharper` is not a number above 0 or a shift is not finite, and for a shift of read gates
    that an adapter does not have.
    """
    if not (math.isfinite(sharper) and sharper > 0):
        raise ConfigError(f"sharper is {sharper!r}, expected a finite number above 0; 1 leaves write gates as they are")
    if not (math.isfinite(write) and math.isfinite(read)):
        raise ConfigError(f"write is {write!r} and read {read!r}, expected finite numbers; 0 leaves gates as they are")
    if read and not config.read_gate:
        raise ConfigError(f"read is {read!r}, and the adapter has no read gates; leave it at 0")
    pivot = math.log(config.gate_floor / (1 - config.gate_floor)) if config.gate_floor else 0.0
    return {name: _tuned(name, value, pivot, sharper, write, read) for name, value in weights.items()}


def _tuned(name: str, value: Tensor, pivot: float, sharper: float, write: float, read: float) -> Tensor:
    kind = name.rsplit(".", 1)[-1]
    exact = value.to(torch.float32)
    if kind in _WRITE_WEIGHTS:
        exact = exact * sharper
    elif kind == "beta_bias":
        exact = pivot + (exact - pivot) * sharper + write
    elif kind == "read_bias":
        exact = exact + read
    else:
        return value
    return exact.to(value.dtype)
