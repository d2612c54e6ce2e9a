"""Gates of a trained adapter set anew: how readily it writes, and how readily it speaks. Nothing is trained.

What training settles on is a compromise between what it was shown. Write gates that stand half open on what is told
leave half of an old value behind when a fact changes; sharper ones replace it (training log, trial 65), and so do erase
gates, which training lowers bit by bit (trials 74 to 79).
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
) -> dict[str, Tensor]:
    """An adapter's weights, by name and of their own dtypes, with its gates set anew.

    `sharper`: factor on how far a write gate's logit is from that of the gate floor (from 0 without a floor), so that
    what is open opens further and what is shut shuts. `write`, `erase`, `read`: added to the logits of such gates.
    Raises ConfigError when `sharper` is not a number above 0 or a shift is not finite, and for a shift of erase or read
    gates that an adapter does not have.
    """
    if not (math.isfinite(sharper) and sharper > 0):
        raise ConfigError(f"sharper is {sharper!r}, expected a finite number above 0; 1 leaves write gates as they are")
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
    }
    tuned = dict(weights)
    for name, value in weights.items():
        change = changes.get(name.rsplit(".", 1)[-1])
        if change is not None:
            tuned[name] = change(value.to(torch.float32)).to(value.dtype)
    return tuned
