"""Adjust the gates and the output scale of a trained adapter by hand, without training.

Training settles on a compromise between its samples. Write gates that are half open on facts leave half of the old
value when a fact changes; sharper gates replace it (training log, trial 65). So do erase gates, which training
gradually lowers (trials 74 to 79). Read gates that open less, combined with a larger output scale ("louder"), leave
unrelated prompts unchanged and still start replies from memory (trial 81).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError


def tuned_gates(
    config: AdapterConfig,
    weights: Mapping[str, Tensor],
    *,
    sharper: float = 1.0,
    write: float = 0.0,
    erase: float = 0.0,
    read: float = 0.0,
    louder: float = 1.0,
) -> dict[str, Tensor]:
    """An adapter's weights, by name and with their dtypes kept, with adjusted gates and output scale.

    `sharper`: factor on the distance of a write gate's logit from the logit of the gate floor (from 0 without a
    floor), so that open gates open further and closed ones close. `write`, `erase`, `read`: added to the logits of
    these gates. `louder`: factor on the correction of o and on the readout; the corrections of q, k and v stay.
    Raises ConfigError if a factor is not a finite number above 0, if a shift is not finite, if erase or read gates
    that the adapter lacks are shifted, and if `louder` is set for an adapter without a correction of o and a readout.
    """
    for name, factor in (("sharper", sharper), ("louder", louder)):
        if not (math.isfinite(factor) and factor > 0):
            raise ConfigError(f"{name} is {factor!r}, expected a finite number above 0; 1 changes nothing")
    if louder != 1 and not (config.readout or "o" in config.delta_heads):
        raise ConfigError(f"louder is {louder!r}, and the adapter neither corrects o nor has a readout; leave it at 1")
    for name, shift, there in (
        ("write", write, True),
        ("erase", erase, config.erase_gate),
        ("read", read, config.read_gate),
    ):
        if not math.isfinite(shift):
            raise ConfigError(f"{name} is {shift!r}, expected a finite number; 0 leaves {name} gates as they are")
        if shift and not there:
            raise ConfigError(f"{name} is {shift!r}, and the adapter has no {name} gates; leave it at 0")
    pivot = math.log(config.gate_floor / (1 - config.gate_floor)) if config.gate_floor else 0.0
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "beta_proj": lambda value: value * sharper,
        "beta_hidden_proj": lambda value: value * sharper,
        "beta_bias": lambda value: pivot + (value - pivot) * sharper + write,
        "erase_bias": lambda value: value + erase,
        "read_bias": lambda value: value + read,
        "delta_o_proj": lambda value: value * louder,
        "readout_proj": lambda value: value * louder,
    }
    tuned = dict(weights)
    for name, value in weights.items():
        change = changes.get(name.rsplit(".", 1)[-1])
        if change is not None:
            tuned[name] = change(value.to(torch.float32)).to(value.dtype)
    return tuned
