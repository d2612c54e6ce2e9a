"""The keys that statements wrote, matched with a question's query."""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem_agents.memory.writes import KEY_STEPS

KEYS_AT_ONCE = 4096
"""Keys per matrix product, which bounds the temporary memory."""


class KeyIndex:
    """Keys (layers · heads · r) of statements that are added in ascending order, in int8 steps of 1 / `KEY_STEPS`."""

    def __init__(self) -> None:
        self._keys = torch.zeros(0, 0, dtype=torch.int8)
        self._statements = torch.zeros(0, dtype=torch.long)
        self._count = 0

    def add(self, statement: int, keys: Tensor) -> None:
        """Add the keys (n, layers · heads · r) int8 of a statement. The buffer doubles when it is full."""
        if not len(keys):
            return
        end = self._count + len(keys)
        if end > len(self._statements):
            room = max(2 * end, 64)
            old, of_old = self._all()
            self._keys = torch.zeros(room, keys.shape[1], dtype=torch.int8)
            self._statements = torch.zeros(room, dtype=torch.long)
            self._keys[: len(old)], self._statements[: len(old)] = old.view(-1, keys.shape[1]), of_old
        self._keys[self._count : end], self._statements[self._count : end] = keys, statement
        self._count = end

    def best(self, query: Tensor, count: int, without: float) -> Tensor:
        """(count,): each statement's highest q·k for a query (layers · heads · r); `without` if it has no key."""
        asked = query.float() / KEY_STEPS
        best = torch.full((count,), without)
        keys, statements = self._all()
        for part, of_part in zip(keys.split(KEYS_AT_ONCE), statements.split(KEYS_AT_ONCE), strict=True):
            if len(of_part):
                best = best.scatter_reduce(0, of_part, part.float() @ asked, "amax")
        return best

    def similarity(self, one: int, other: int) -> float:
        """The highest k·k of two statements, summed over layers and heads; −∞ if one has no key."""
        keys = [self._of(statement) for statement in (one, other)]
        return float((keys[0] @ keys[1].T).max()) if all(map(len, keys)) else float("-inf")

    def statements(self) -> list[int]:
        """The statements with a key, ascending."""
        found: list[int] = self._all()[1].unique().tolist()
        return found

    def _of(self, statement: int) -> Tensor:
        """One statement's keys (n, layers · heads · r) float32."""
        keys, statements = self._all()
        begin, end = torch.searchsorted(statements, torch.tensor([statement, statement + 1])).tolist()
        return keys[begin:end].float() / KEY_STEPS

    def _all(self) -> tuple[Tensor, Tensor]:
        """All keys (N, layers · heads · r) int8, and the statement (N,) of each, ascending."""
        return self._keys[: self._count], self._statements[: self._count]
