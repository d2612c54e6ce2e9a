"""Reading a state that stays, one token at a time: the same numbers as `attention`, from far fewer products.

While a reply is decoded its state does not change, and everything that follows on a read is linear in it. So the
state is multiplied into these weights once, and a token needs two products a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig, Head
from deltamem_agents.memory.attention import LayerMemory
from deltamem_agents.memory.state import MemoryState

READOUT = "readout"


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One layer's reads of a fixed state.

    `asks`: (r + 1, hidden), the query's weights and the read gate's; `gate_bias` of the latter, `floor` of the gate.
    `answers`: (sum of `widths`, r), all that is done with a read, times the state. `widths`: of each part of it.
    """

    asks: Tensor
    gate_bias: float
    floor: float
    answers: Tensor
    widths: dict[str, int]

    def read(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The query (r,) of one token's attention input x (hidden,), and each part's correction; none where its read
        gate is shut."""
        # NumPy, because what PyTorch spends on a call is more than what these small products take.
        asked = self.asks.numpy() @ x.float().numpy()
        raw = np.tanh(asked[:-1])
        query = raw / max(math.sqrt(raw @ raw), 1e-6)
        gate = 1 / (1 + math.exp(-max(-80.0, float(asked[-1]) + self.gate_bias)))
        opened = (gate - self.floor) / (1 - self.floor)
        if opened <= 0:
            return torch.from_numpy(query), {}
        found = torch.from_numpy(self.answers.numpy() @ (query * np.float32(opened))).split(list(self.widths.values()))
        return torch.from_numpy(query), dict(zip(self.widths, found, strict=True))


@dataclass(frozen=True, eq=False)
class FoldedState:
    """A state folded into an adapter's layers, by their slots."""

    layers: tuple[FoldedLayer, ...]

    @classmethod
    def of(cls, config: AdapterConfig, layers: Sequence[LayerMemory], state: MemoryState) -> FoldedState | None:
        """None for an adapter that does more with a read than these layers know."""
        simple = config.num_state_heads == 1 and config.read_gate and not config.gate_on_reads
        if not simple or config.delta_o_rmsnorm or config.trainable_delta_scale or state.batch != 1:
            return None
        if state.matrices.device.type != "cpu":
            # A gate that is looked at makes other devices wait.
            return None
        with torch.no_grad():
            pairs = zip(layers, state.matrices[0, :, 0], strict=True)
            return cls(tuple(_folded(config, layer, matrix) for layer, matrix in pairs))


def _folded(config: AdapterConfig, layer: LayerMemory, matrix: Tensor) -> FoldedLayer:
    parts: dict[str, Tensor] = {head: getattr(layer, f"delta_{head}_proj") for head in config.delta_heads}
    if config.readout:
        parts[READOUT] = layer.readout_proj
    return FoldedLayer(
        asks=torch.cat([layer.memory_q_proj, layer.read_proj]),
        gate_bias=float(layer.read_bias),
        floor=config.gate_floor,
        answers=torch.cat(list(parts.values())) @ matrix * config.scale,
        widths={name: len(weights) for name, weights in parts.items()},
    )


@dataclass
class FoldedCall:
    """What travels through the forward pass of one token that reads a folded state.

    `inputs`, when given, collects each layer slot's attention input, and `queries` each slot's query (1, 1, 1, r).
    """

    state: FoldedState
    inputs: dict[int, Tensor] | None = None
    queries: dict[int, Tensor] | None = None
    said: Tensor | None = None

    def read(self, slot: int, hidden: Tensor) -> dict[str, Tensor]:
        """The corrections of a layer for its attention input (1, 1, hidden).

        The last layer's o has what all of them have to say.
        """
        if self.inputs is not None:
            self.inputs[slot] = hidden
        query, parts = self.state.layers[slot].read(hidden[0, 0])
        if self.queries is not None:
            self.queries[slot] = query[None, None, None]
        said = parts.pop(READOUT, None)
        if said is not None:
            self.said = said if self.said is None else self.said + said
        if slot + 1 == len(self.state.layers) and self.said is not None:
            own: Head = "o"
            parts[own] = self.said if own not in parts else parts[own] + self.said
        return {head: delta[None, None] for head, delta in parts.items()}
