"""The memory as a value: one r×r matrix per layer and state head, for a batch of sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.errors import StateError


@dataclass(frozen=True, eq=False)
class OpenMessages:
    """Running sums between the chunks of one prompt, for an adapter that writes once per message.

    All tokens of a prompt read the state before it, and a message's single write needs the mean over all its tokens.
    So each further chunk goes back to `start` (batch, layers, heads, r, r) and rewrites every message so far. It uses
    `sums` (batch, layers, messages, hidden) of the attention inputs of each message's tokens, and their counts
    `sizes` (batch, messages).
    """

    start: Tensor
    sums: Tensor
    sizes: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> OpenMessages:
        return OpenMessages(change(self.start), change(self.sums), change(self.sizes))


@dataclass(frozen=True, eq=False)
class MemoryState:
    """The state of one or more sequences. Never modified in place; each call returns a new one.

    `matrices`: (batch, layers, heads, r, r) float32. Row i of a matrix is a value dimension,
    column j a key dimension.
    `carry`: (batch, layers, heads·r) float32 or None: the part of the next token's key that the last token determines
    (key shift).
    `open`: the messages of a prompt whose later chunks are still to come, or None.
    `carry` and `open` continue a forward pass that was split, as a KV cache does. They are not part of the memory:
    saving drops them. `matrices` is always the state as it would be if no further chunk came.
    """

    matrices: Tensor
    carry: Tensor | None = None
    open: OpenMessages | None = None

    def __post_init__(self) -> None:
        m = self.matrices
        if m.ndim != 5 or m.shape[-1] != m.shape[-2]:
            raise StateError(f"state has shape {tuple(m.shape)}, expected (batch, layers, heads, r, r)")
        if m.dtype != torch.float32 and m.dtype != torch.float64:
            raise StateError(f"state is {m.dtype}, expected float32; half precision loses small writes")

    @classmethod
    def zeros(cls, batch: int, layers: int, heads: int, rank: int, device: str | torch.device = "cpu") -> MemoryState:
        return cls(torch.zeros(batch, layers, heads, rank, rank, device=device))

    @staticmethod
    def zeros_like(state: MemoryState) -> MemoryState:
        return MemoryState(torch.zeros_like(state.matrices))

    def random_like(self, generator: torch.Generator | None = None) -> MemoryState:
        """A random state with the norm of this one in every layer and head of every sequence."""
        noise = torch.randn(self.matrices.shape, generator=generator, dtype=self.matrices.dtype)
        noise = noise.to(self.matrices.device)
        wanted = self.matrices.flatten(-2).norm(dim=-1)
        found = noise.flatten(-2).norm(dim=-1).clamp_min(torch.finfo(noise.dtype).tiny)
        return MemoryState(noise * (wanted / found)[..., None, None])

    @property
    def batch(self) -> int:
        return self.matrices.shape[0]

    @property
    def geometry(self) -> tuple[int, int, int]:
        """(layers, heads, r)."""
        _, layers, heads, rank, _ = self.matrices.shape
        return layers, heads, rank

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices of all sequences."""
        return self.matrices.numel() * self.matrices.element_size()

    def norm(self) -> float:
        """Frobenius norm over everything, as a float."""
        return float(self.matrices.double().norm())

    def settled(self) -> MemoryState:
        """This state without `carry` and `open`: what is kept once a forward pass is over."""
        return MemoryState(self.matrices)

    def to(self, device: str | torch.device) -> MemoryState:
        return self._map(lambda tensor: tensor.to(device))

    def detach(self) -> MemoryState:
        return self._map(Tensor.detach)

    def __getitem__(self, index: int | slice) -> MemoryState:
        """The state of some sequences; an int keeps the batch dimension."""
        rows = slice(index, index + 1) if isinstance(index, int) and index >= 0 else index
        rows = slice(-1, None) if rows == -1 else rows
        return self._map(lambda tensor: tensor[rows])

    def _map(self, change: Callable[[Tensor], Tensor]) -> MemoryState:
        carry = None if self.carry is None else change(self.carry)
        return MemoryState(change(self.matrices), carry, None if self.open is None else self.open.map(change))

    @staticmethod
    def cat(states: Sequence[MemoryState]) -> MemoryState:
        """One batch from several states of the same geometry."""
        if len({state.geometry for state in states}) != 1:
            found = ", ".join(str(state.geometry) for state in states) or "no states"
            raise StateError(f"cannot batch states of geometries {found}; expected equal (layers, heads, r)")
        carries = [state.carry for state in states if state.carry is not None]
        if (carries and len(carries) != len(states)) or any(state.open is not None for state in states):
            raise StateError("cannot batch states that are in the middle of a forward pass; settle them first")
        return MemoryState(torch.cat([state.matrices for state in states]), torch.cat(carries) if carries else None)
