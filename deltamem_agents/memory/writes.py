"""Writes: the keys, values and gates that single tokens left in the memory, and the state computed from them.

A token whose write gates are all 0 leaves no write, so for an adapter with a gate floor the list is short. The state is
derived from it: scanning all writes in order gives the same state as the model's forward pass, and scanning some of
them gives the state as if only these tokens had been written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import StateError
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.delta_rule import Gates, delta_scan
from deltamem_agents.memory.state import MemoryState


@dataclass(frozen=True, eq=False)
class Writes:
    """The writes of N tokens, oldest first.

    `keys`, `values`: (N, layers, heads, r). `write`, `erase`: (N, layers, heads, r), or (…, 1) for one gate per
    state. All have one floating type: float32 as computed, float16 as stored.
    """

    keys: Tensor
    values: Tensor
    write: Tensor
    erase: Tensor

    def __post_init__(self) -> None:
        if self.keys.ndim != 4 or self.values.shape != self.keys.shape:
            raise StateError(
                f"writes have keys of shape {tuple(self.keys.shape)} and values of {tuple(self.values.shape)}, "
                "expected both (tokens, layers, heads, r)"
            )
        for name, gate in (("write", self.write), ("erase", self.erase)):
            if gate.shape[:-1] != self.keys.shape[:-1] or gate.shape[-1] not in (1, self.keys.shape[-1]):
                raise StateError(
                    f"writes have {name} gates of shape {tuple(gate.shape)}, expected that of the keys, "
                    f"{tuple(self.keys.shape)}, or 1 in the last place"
                )

    def __len__(self) -> int:
        return self.keys.shape[0]

    @property
    def geometry(self) -> tuple[int, int, int]:
        """(layers, heads, r)."""
        _, layers, heads, rank = self.keys.shape
        return layers, heads, rank

    @property
    def strengths(self) -> Tensor:
        """(N,) float32: each token's mean write gate over layers and heads, from 0 to 1."""
        return self.write.float().mean(dim=(1, 2, 3))

    @classmethod
    def none(cls, layers: int, heads: int, rank: int, gates: int = 1) -> Writes:
        """No writes."""
        empty, shut = torch.zeros(0, layers, heads, rank), torch.zeros(0, layers, heads, gates)
        return cls(empty, empty, shut, shut)

    @staticmethod
    def cat(parts: Sequence[Writes]) -> Writes:
        """The writes of all parts, concatenated. Raises StateError for no parts, or for parts of different sizes."""
        if len({(part.geometry, part.write.shape[-1]) for part in parts}) != 1:
            found = ", ".join(str(part.geometry) for part in parts) or "no writes"
            raise StateError(f"cannot join writes of geometries {found}; expected equal (layers, heads, r)")
        keys, values, write, erase = (torch.cat(each) for each in zip(*(p._parts() for p in parts), strict=True))
        return Writes(keys, values, write, erase)

    def key_steps(self, tokens: Tensor) -> Tensor:
        """The keys (n, layers, heads, r) of the tokens in the mask, as int8; see `StoredWrites`."""
        return _in_steps(self.keys[tokens])

    def select(self, tokens: Tensor | slice) -> Writes:
        """The writes of some tokens, by index, mask or slice."""
        return Writes(*(part[tokens] for part in self._parts()))

    def half(self) -> Writes:
        """The same writes in float16."""
        return Writes(*(part.half() for part in self._parts()))

    def rounded(self) -> Writes:
        """The same writes with the rounding of stored statements; see `StoredWrites`."""
        return StoredWrites.of(self).writes()

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.write, self.erase


KEY_STEPS = 127
"""Quantisation steps of a key's numbers from 0 to 1; keys have unit length, so none is larger than 1."""


def _in_steps(keys: Tensor) -> Tensor:
    return (keys.float() * KEY_STEPS).round().clamp(-KEY_STEPS, KEY_STEPS).to(torch.int8)


@dataclass(frozen=True, eq=False)
class StoredWrites:
    """Writes of N tokens as they are stored, quantised to int8.

    `keys`: (N, layers, heads, r) int8, in steps of 1/127, since keys have unit length. `values`: the same shape, int8,
    in steps of `scales` (N, layers, heads) float32. `write`, `erase`: as in `Writes`, float16.
    """

    keys: Tensor
    values: Tensor
    scales: Tensor
    write: Tensor
    erase: Tensor

    @classmethod
    def of(cls, writes: Writes) -> StoredWrites:
        values = writes.values.float()
        scales = values.abs().amax(dim=3) / 127
        steps = values / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        parts = (
            _in_steps(writes.keys),
            steps.round().clamp(-127, 127).to(torch.int8),
            scales,
            writes.write.half(),
            writes.erase.half(),
        )
        return cls(*(part.cpu() for part in parts))

    @property
    def geometry(self) -> tuple[int, int, int]:
        """(layers, heads, r)."""
        _, layers, heads, rank = self.keys.shape
        return layers, heads, rank

    @property
    def strengths(self) -> Tensor:
        """(N,) float32: see `Writes.strengths`."""
        return self.write.float().mean(dim=(1, 2, 3))

    def key_steps(self, tokens: Tensor) -> Tensor:
        """The keys (n, layers, heads, r) int8 of the tokens in the mask."""
        return self.keys[tokens]

    def writes(self) -> Writes:
        """The dequantised writes, in float32."""
        values = self.values.float() * self.scales[..., None]
        return Writes(self.keys.float() / KEY_STEPS, values, self.write.float(), self.erase.float())


def collected(call: MemoryCall) -> list[tuple[Tensor, Writes]]:
    """For each sequence of a forward pass: the positions (N,) int of the tokens that wrote, and their writes.

    `call` must have been made with `written={}`. Raises StateError if a memory layer took no part in the pass.
    """
    assert call.written is not None
    layers = [call.written[slot] for slot in sorted(call.written)]
    if len(layers) != call.state.geometry[0]:
        raise StateError(
            f"{len(layers)} of {call.state.geometry[0]} memory layers took part in the forward pass; "
            "is the adapter attached to this model?"
        )
    # (batch, layers, heads, tokens, gates)
    gates = torch.stack([layer.write for layer in layers], dim=1)
    opened = (gates > 0).any(dim=4).any(dim=2).any(dim=1)
    rows = []
    for row, tokens in enumerate(opened):
        places = tokens.nonzero()[:, 0]
        parts = (
            torch.stack([getattr(layer, name)[row][:, places] for layer in layers]).permute(2, 0, 1, 3)
            for name in ("keys", "values", "write", "erase")
        )
        rows.append((places, Writes(*(part.detach().float().contiguous() for part in parts))))
    return rows


def scan_writes(config: AdapterConfig, writes: Writes, start: MemoryState | None = None) -> MemoryState:
    """The state after these writes in order, batch 1, float32, starting from `start` or from zero.

    Raises StateError for an adapter without a gate floor, with a separate keep gate, or with one write per message.
    """
    if not config.keeps_writes:
        raise StateError(
            "the state cannot be computed from this adapter's writes: that needs a gate floor, one write per token and "
            "no separate keep gate; use the full state, or another adapter"
        )
    return scanned(writes, start, fades=config.state_update_mode != "no_lambda")


def scanned(writes: Writes, start: MemoryState | None = None, *, fades: bool) -> MemoryState:
    """`scan_writes` without a config. `fades`: whether a write also decays the state, λ = 1 - β."""
    layers, heads, rank = writes.geometry
    state = MemoryState.zeros(1, layers, heads, rank, writes.keys.device) if start is None else start
    parts = (writes.keys, writes.values, writes.write, writes.erase)
    keys, values, write, erase = (part.float().permute(1, 2, 0, 3).flatten(0, 1) for part in parts)
    keep = torch.log1p(-write.clamp_max(1 - 1e-7)) if fades else torch.zeros_like(write)
    _, new = delta_scan(state.matrices[0].flatten(0, 1), keys, keys, values, Gates(write, erase, keep))
    return MemoryState(new.unflatten(0, (layers, heads))[None])


class ScannedState(MemoryState):
    """A lazy state, batch 1: it is scanned from writes when `matrices` is first used.

    `base`: the state before the writes. `scan`: returns the state after them.
    """

    def __init__(self, base: MemoryState, scan: Callable[[], MemoryState]) -> None:
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "scan", scan)
        object.__setattr__(self, "carry", None)
        object.__setattr__(self, "open", None)

    base: MemoryState
    scan: Callable[[], MemoryState]

    @cached_property
    def matrices(self) -> Tensor:
        return self.scan().matrices

    @property
    def batch(self) -> int:
        return 1

    @property
    def geometry(self) -> tuple[int, int, int]:
        return self.base.geometry

    @property
    def nbytes(self) -> int:
        return self.base.nbytes
