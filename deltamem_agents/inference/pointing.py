"""Raising the logits of recalled tokens after a forward pass."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.folding import FoldedCall


class Pointing(Protocol):
    """Raises the logits of tokens of the recalled statements. The better a query matches a key, the more it adds."""

    def added(self, logits: Tensor, queries: Tensor, token: int) -> Tensor:
        """The changed logits (vocabulary,) of the token after `token`; `queries` (layers, heads, r) are `token`'s."""
        ...


def newest_queries(call: MemoryCall | FoldedCall) -> Tensor:
    """The queries (batch, layers, heads, r) of a pass's last token; its call must have been made with `queries={}`."""
    assert call.queries is not None
    return torch.stack([call.queries[slot][:, :, -1] for slot in sorted(call.queries)], dim=1)


def pointed(logits: Tensor, pointing: Pointing | None, call: MemoryCall | FoldedCall | None, token: int) -> Tensor:
    """The logits (vocabulary,) of the token after `token` with what `pointing` adds, after the pass of `call`."""
    if pointing is None or call is None:
        return logits
    return pointing.added(logits, newest_queries(call)[0], token)
