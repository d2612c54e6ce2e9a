"""Many sequences in one pass. A row is a sequence with its own memory; rows do not interact.

Of single tokens, rows with folded states are read in one batch, and so are rows whose state does not change during the
reply. Every other row is read and written separately, and so are the rows of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import Head
from deltamem_agents.errors import StateError
from deltamem_agents.memory.attention import LayerMemory, MemoryCall, read_and_write
from deltamem_agents.memory.folding import READOUT, FoldedCall, FoldedState
from deltamem_agents.memory.state import MemoryState


class FoldedRows:
    """The states of several rows that are folded when a row is alone, stacked into one tensor per layer.

    Zeros for a row without one. Together, rows are read by the state and then by the weights, which all rows share:
    the folded weights are different in each row, and take longer to read from memory.
    """

    def __init__(self, like: FoldedState, rows: int) -> None:
        self.like = like
        self._matrices = [layer.matrix.new_zeros(rows, *layer.matrix.shape) for layer in like.layers]

    def put(self, row: int, state: FoldedState | None) -> None:
        """Set the state that a row reads from now on; None for no state."""
        for slot, matrices in enumerate(self._matrices):
            if state is None:
                matrices[row].zero_()
            else:
                matrices[row] = state.layers[slot].matrix

    def read(self, slot: int, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`FoldedLayer.read` for inputs (rows, 1, hidden): queries (rows, r), and corrections (rows, width) by part.

        There are no corrections if every row's read gate is closed.
        """
        layer = self.like.layers[slot]
        query, opened = layer.asked(hidden[:, 0])
        if not bool(opened.any()):
            return query, {}
        reads = torch.bmm(self._matrices[slot][: len(query)], (query * opened)[..., None])[..., 0]
        found = F.linear(reads, layer.weights).split(list(layer.widths.values()), dim=-1)
        return query, dict(zip(layer.widths, found, strict=True))


@dataclass
class RowsCall:
    """The memory's argument of a forward pass over (rows, 1) tokens.

    `calls`: each row's own call, as for a pass of that row alone; None for a row without a memory. Each is filled in
    as if its row had run alone: for folded states and states that do not change, `finish` does it after the pass; for
    other rows each layer does it during the pass.
    `folded`: the folded states of these rows, if any row has one.
    """

    calls: Sequence[MemoryCall | FoldedCall | None]
    folded: FoldedRows | None
    _single: list[int] = field(init=False)
    _reading: list[int] = field(init=False)
    _read: MemoryCall | None = field(init=False, default=None)
    _hidden: dict[int, Tensor] = field(init=False, default_factory=dict)
    _queries: dict[int, Tensor] = field(init=False, default_factory=dict)
    _said: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        memories = [(row, call) for row, call in enumerate(self.calls) if isinstance(call, MemoryCall)]
        heard = [(row, call) for row, call in memories if not call.quiet]
        self._reading = [row for row, call in heard if call.later and call.write_mask is None]
        self._single = [row for row, _ in heard if row not in self._reading]
        if self._reading:
            states = [call.state.matrices for row, call in heard if row in self._reading]
            every = torch.ones(len(states), 1, dtype=torch.bool, device=states[0].device)
            self._read = MemoryCall(MemoryState(torch.cat(states)), every, replies=every, queries={}, later=True)

    def reading(self, memory: LayerMemory, slot: int, hidden: Tensor) -> RowsActive:
        """A layer's corrections for its attention inputs (rows, 1, hidden); a row's writes go into its own call."""
        self._hidden[slot] = hidden
        parts = {} if self.folded is None else self._read_folded(self.folded, slot, hidden)
        groups = [([row], call) for row in self._single if isinstance(call := self.calls[row], MemoryCall)]
        if self._read is not None:
            groups.append((self._reading, self._read))
        for rows, call in groups:
            reads = read_and_write(memory, call, slot, hidden[rows])
            _add_all(parts, memory, call, slot, reads, (rows, slice(None)), hidden.shape[:2])
        return RowsActive(
            parts,
            [
                (([row], slice(None)), call)
                for row in self._single
                if isinstance(call := self.calls[row], MemoryCall) and call.collect
            ],
        )

    def _read_folded(self, folded: FoldedRows, slot: int, hidden: Tensor) -> dict[str, Tensor]:
        self._queries[slot], parts = folded.read(slot, hidden)
        said = parts.pop(READOUT, None)
        if said is not None:
            self._said = said if self._said is None else self._said + said
        if slot + 1 == len(folded.like.layers) and self._said is not None:
            parts["o"] = self._said if "o" not in parts else parts["o"] + self._said
        return {head: delta[:, None] for head, delta in parts.items()}

    def finish(self) -> None:
        """Copy each row's results into its call. Raises StateError if the memory is not attached to the model."""
        layers = max(_layers(call) for call in self.calls)
        if len(self._hidden) != layers:
            raise StateError(
                f"{len(self._hidden)} of {layers} memory layers took part in the forward pass; "
                "is the adapter attached to this model?"
            )
        hidden = _stacked(self._hidden) if any(map(_collects, self.calls)) else None
        asked = _stacked(self._queries) if self._queries else None
        read = None if self._read is None or not self._read.queries else _stacked(self._read.queries)
        for row, call in enumerate(self.calls):
            if call is None or row in self._single:
                continue
            if hidden is not None and call.inputs is not None:
                call.inputs.update(enumerate(hidden[:, row : row + 1].clone()))
            if call.queries is None:
                continue
            if isinstance(call, FoldedCall) and asked is not None:
                call.queries.update(enumerate(asked[:, row : row + 1, None, None].clone()))
            elif row in self._reading and read is not None:
                place = self._reading.index(row)
                call.queries.update(enumerate(read[:, place : place + 1].clone()))


@dataclass
class PromptsCall:
    """The memory's argument of a forward pass over the prompts of several rows, padded on the right.

    `calls`: each row's own call, which each layer fills in as if its row had run alone; None for a row without a
    memory. `lengths`: each row's number of tokens.
    """

    calls: Sequence[MemoryCall | None]
    lengths: Sequence[int]

    @classmethod
    def of(cls, calls: Sequence[MemoryCall | None], lengths: Sequence[int]) -> PromptsCall | None:
        """None if no row has a memory."""
        return cls(calls, lengths) if any(call is not None for call in calls) else None

    def reading(self, memory: LayerMemory, slot: int, hidden: Tensor) -> RowsActive:
        """A layer's corrections for its attention inputs (rows, tokens, hidden)."""
        parts: dict[str, Tensor] = {}
        collecting: list[tuple[_Place, MemoryCall]] = []
        for row, (call, length) in enumerate(zip(self.calls, self.lengths, strict=True)):
            if call is None:
                continue
            x = hidden[row : row + 1, :length]
            if call.inputs is not None:
                # A view would keep the other rows alive.
                x = x.to(x.device, copy=True)
            if call.quiet:
                if call.inputs is not None:
                    call.inputs[slot] = x
                continue
            reads = read_and_write(memory, call, slot, x)
            if reads.shape[1]:
                place = (slice(row, row + 1), slice(length - reads.shape[1], length))
                _add_all(parts, memory, call, slot, reads, place, hidden.shape[:2])
            if call.collect and reads.shape[1]:
                collecting.append(((slice(row, row + 1), slice(0, length)), call))
            elif call.collect:
                call.ratios.append(reads.new_zeros(()))
        return RowsActive(parts, collecting)


_Place: TypeAlias = tuple[slice | Sequence[int], slice]
"""Rows and tokens."""


@dataclass(frozen=True)
class RowsActive:
    """One layer's corrections (rows, tokens, width), for its projections' hooks. `collecting`: where measures are
    kept."""

    parts: Mapping[str, Tensor]
    collecting: Sequence[tuple[_Place, MemoryCall]]

    def correction(self, head: Head) -> Tensor | None:
        return self.parts.get(head)

    def output_correction(self, slot: int) -> Tensor | None:
        return self.parts.get("o")

    def measured(self, delta: Tensor, attended: Tensor) -> None:
        for place, call in self.collecting:
            call.measured(delta[place], attended[place])


def _add_all(
    parts: dict[str, Tensor],
    memory: LayerMemory,
    call: MemoryCall,
    slot: int,
    reads: Tensor,
    place: _Place,
    shape: Sequence[int],
) -> None:
    """Store all corrections that follow from some rows' reads in the tensors of all rows and tokens, of this shape."""
    found: dict[str, Tensor] = {
        head: memory.correction(head, reads) for head in memory.config.delta_heads if head != "o"
    }
    if (said := memory.output_correction(call, slot, reads)) is not None:
        found["o"] = said
    for head, delta in found.items():
        if head not in parts:
            parts[head] = delta.new_zeros(*shape, delta.shape[-1])
        # Assignment is enough: no place is written twice.
        parts[head][place] = delta


def _collects(call: MemoryCall | FoldedCall | None) -> bool:
    return call is not None and call.inputs is not None


def _layers(call: MemoryCall | FoldedCall | None) -> int:
    """Number of memory layers that take part in a call."""
    if isinstance(call, FoldedCall):
        return len(call.state.layers)
    return 0 if call is None else call.state.geometry[0]


def _stacked(by_slot: Mapping[int, Tensor]) -> Tensor:
    return torch.stack([by_slot[slot] for slot in sorted(by_slot)])
