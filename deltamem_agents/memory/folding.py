"""Fast reads of a constant state, one token at a time: the results of `attention` from far fewer matrix products.

While a reply is decoded its state does not change, and everything after the read is linear in the state. So the
state is multiplied into the output weights once ("folded"), and each token then needs two products per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltamem_agents.config import AdapterConfig, Head
from deltamem_agents.memory.attention import LayerMemory
from deltamem_agents.memory.state import MemoryState

READOUT = "readout"


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One layer's reads of a fixed state.

    `asks`: (r + 1, hidden), the weights of the query and of the read gate. `gate_bias`: the gate's bias; `floor`: its
    floor, see `floored_gate`. `weights`: (sum of `widths`, r), the correction and readout weights. `matrix`: (r, r),
    the state. `answers`: (sum of `widths`, r), their product. `widths`: rows of each part of `weights`.
    """

    asks: Tensor
    gate_bias: float
    floor: float
    weights: Tensor
    matrix: Tensor
    answers: Tensor
    widths: dict[str, int]

    def read(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The query (r,) of one token's attention input x (hidden,), and its corrections (rows of `answers`,).

        The latter is None if the read gate is closed.
        """
        # NumPy, because for products this small PyTorch's overhead per call exceeds the computation.
        asks, answers = self._arrays
        asked = asks @ x
        query = np.tanh(asked[:-1])
        query *= np.float32(1 / max(math.sqrt(query @ query), 1e-6))
        gate = 1 / (1 + math.exp(-max(-80.0, float(asked[-1]) + self.gate_bias)))
        opened = (gate - self.floor) / (1 - self.floor)
        if opened <= 0:
            return query, None
        return query, answers @ (query * np.float32(opened))

    def asked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The queries (rows, r) of attention inputs x (rows, hidden), and how far the read gate opens (rows, 1)."""
        asked = F.linear(x.float(), self.asks)
        raw = asked[:, :-1].tanh()
        query = raw / raw.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        gate = torch.sigmoid(asked[:, -1:] + self.gate_bias)
        return query, ((gate - self.floor) / (1 - self.floor)).clamp_min(0)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.asks.numpy(), self.answers.numpy()

    @cached_property
    def places(self) -> tuple[tuple[str, slice], ...]:
        """Each part's rows of `answers`."""
        ends = accumulate(self.widths.values())
        return tuple((name, slice(end - self.widths[name], end)) for name, end in zip(self.widths, ends, strict=True))


@dataclass(frozen=True, eq=False)
class FoldedState:
    """A state folded into an adapter's layers; one entry per slot (a layer's index in the state)."""

    layers: tuple[FoldedLayer, ...]

    @classmethod
    def of(cls, config: AdapterConfig, layers: Sequence[LayerMemory], state: MemoryState) -> FoldedState | None:
        """Fold `state`; None if the config does more with a read than `FoldedLayer` supports, and off the CPU."""
        simple = config.num_state_heads == 1 and config.read_gate and not config.gate_on_reads
        if not simple or config.delta_o_rmsnorm or config.trainable_delta_scale or state.batch != 1:
            return None
        if state.matrices.device.type != "cpu":
            # Checking the gate's value would synchronise other devices.
            return None
        with torch.no_grad():
            pairs = zip(layers, state.matrices[0, :, 0], strict=True)
            return cls(tuple(_folded(config, layer, matrix) for layer, matrix in pairs))


def _folded(config: AdapterConfig, layer: LayerMemory, matrix: Tensor) -> FoldedLayer:
    parts: dict[str, Tensor] = {head: getattr(layer, f"delta_{head}_proj") for head in config.delta_heads}
    if config.readout:
        parts[READOUT] = layer.readout_proj
    weights = torch.cat(list(parts.values())) * config.scale
    return FoldedLayer(
        asks=torch.cat([layer.memory_q_proj, layer.read_proj]),
        gate_bias=float(layer.read_bias),
        floor=config.gate_floor,
        weights=weights,
        matrix=matrix,
        answers=weights @ matrix,
        widths={name: len(weights) for name, weights in parts.items()},
    )


@dataclass
class FoldedCall:
    """The memory's argument of a forward pass over one token that reads a folded state.

    `inputs`: if given, collects each slot's attention input. `queries`: if given, collects each slot's query
    (1, 1, 1, r). `said`: sum of the layers' readouts so far; `traced`: the same in a compiled pass.
    """

    state: FoldedState
    inputs: dict[int, Tensor] | None = None
    queries: dict[int, Tensor] | None = None
    said: NDArray[np.float32] | None = None
    traced: Tensor | None = None

    def read(self, slot: int, hidden: Tensor) -> dict[str, Tensor]:
        """A layer's corrections for its attention input (1, 1, hidden).

        The last layer's correction of o includes the readouts of all layers.
        """
        if self.inputs is not None:
            self.inputs[slot] = hidden
        if torch.compiler.is_compiling():
            return self._traced(slot, hidden)
        layer = self.state.layers[slot]
        query, found = layer.read(hidden.float().numpy()[0, 0])
        if self.queries is not None:
            self.queries[slot] = torch.from_numpy(query)[None, None, None]
        parts = {} if found is None else {name: found[place] for name, place in layer.places}
        said = parts.pop(READOUT, None)
        if said is not None:
            self.said = said if self.said is None else self.said + said
        if slot + 1 == len(self.state.layers) and self.said is not None:
            own: Head = "o"
            parts[own] = self.said if own not in parts else parts[own] + self.said
        return {head: torch.from_numpy(delta)[None, None] for head, delta in parts.items()}

    def _traced(self, slot: int, hidden: Tensor) -> dict[str, Tensor]:
        """The same as a fixed sequence of tensor operations, for torch.compile."""
        layer = self.state.layers[slot]
        query, opened = layer.asked(hidden[0])
        if self.queries is not None:
            self.queries[slot] = query[None, None]
        found = F.linear(query * opened, layer.answers).split(list(layer.widths.values()), dim=-1)
        parts = {name: part[None] for name, part in zip(layer.widths, found, strict=True)}
        said = parts.pop(READOUT, None)
        if said is not None:
            self.traced = said if self.traced is None else self.traced + said
        if slot + 1 == len(self.state.layers) and self.traced is not None:
            parts["o"] = self.traced if "o" not in parts else parts["o"] + self.traced
        return parts
