"""Continuous batching: sequences ("rows") that are decoded together, one token of each per forward pass.

A row joins with its own cache and gets it back when it leaves. In between, its keys and values are in buffers that all
rows share. All rows end at the same column, where the next token's keys and values go. So nothing is copied between
tokens, and a model's own masks, which count from the end, are right for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from deltamem_agents.inference.pointing import Pointing, pointed
from deltamem_agents.inference.scheduling import Step
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import KeyValueCache, cuts_anywhere, empty_cache, is_plain, last_place, with_cache
from deltamem_agents.memory.folding import FoldedCall, FoldedState
from deltamem_agents.memory.rows import FoldedRows, RowsCall

GROWTH = 256
"""Spare columns of newly allocated buffers."""

MISSED = 16
"""Passes a row may miss before it is removed; it joins again with its next token."""


class Row(Protocol):
    """A sequence that is decoded token by token. `cache`: its keys and values while it is not in the shared buffers."""

    model: PreTrainedModel
    cache: KeyValueCache

    def forward(self, ids: Sequence[int], call: MemoryCall | FoldedCall | None) -> Tensor:
        """The last position's logits (vocabulary,) float32 after more tokens, in a pass of this sequence alone."""
        ...


@dataclass
class OneToken(Step):
    """One token of a row and its memory call, which the pass fills in. `pointing`: what raises its logits."""

    row: Row
    token: int
    call: MemoryCall | FoldedCall | None
    pointing: Pointing | None = None

    def pointed(self, logits: Tensor | Exception) -> Tensor | Exception:
        """The result of the step, from the logits of its pass."""
        if isinstance(logits, Exception):
            return logits
        try:
            return pointed(logits, self.pointing, self.call, self.token)
        except Exception as error:
            return error


@dataclass
class _Place:
    """A row's columns in the buffers, `start` to `end`. `missed`: passes since the last one it took part in."""

    row: Row
    start: int
    end: int
    missed: int = 0
    folded: FoldedState | None = None


class _Layer(DynamicLayer):
    """A layer's keys and values of all rows (rows, heads, columns, width); a pass uses only some of the columns."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Rows) -> None:
        super().__init__()
        self.all_keys, self.all_values, self._rows = keys, values, rows
        self.keys, self.values = keys, values
        self.device, self.is_initialized = keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        count, first, at = key_states.shape[0], self._rows.first, self._rows.at
        self.all_keys[:count, :, at] = key_states[:, :, 0]
        self.all_values[:count, :, at] = value_states[:, :, 0]
        return self.all_keys[:count, :, first : at + 1], self.all_values[:count, :, first : at + 1]

    def get_seq_length(self) -> int:
        return self._rows.at - self._rows.first


class Rows:
    """The rows that are decoded together. Not thread-safe.

    `first`: the column where the longest row starts. `at`: the column of the next token's keys and values.
    """

    def __init__(self) -> None:
        self.first = self.at = 0
        self._places: list[_Place] = []
        self._cache = empty_cache()
        self._folded: FoldedRows | None = None

    def __len__(self) -> int:
        return len(self._places)

    @torch.no_grad()
    def run(self, steps: Sequence[OneToken]) -> list[Tensor | Exception]:
        """The next-token logits (vocabulary,) float32 of each step's row, or the exception it raised.

        If a shared pass fails, each row is run alone, so that only the row that caused the error fails. Logits are
        raised here, by the thread of the pass: as many threads at once would be slower.
        """
        found = self._found(steps)
        return [step.pointed(logits) for step, logits in zip(steps, found, strict=True)]

    def _found(self, steps: Sequence[OneToken]) -> list[Tensor | Exception]:
        if len(steps) == 1 and not self._places:
            return [self._alone(steps[0])]
        able = [step for step in steps if self._place(step.row) or joinable(step.row)]
        found: dict[int, Tensor] = {}
        if len(able) > 1 or any(place.row is not step.row for place in self._places for step in able):
            found = self._tried(able)
        else:
            self._release_all()
        return [found[id(step)] if id(step) in found else self._alone(step) for step in steps]

    def _tried(self, steps: Sequence[OneToken]) -> dict[int, Tensor]:
        """The logits of a pass with all these steps, by `id` of the step; empty if the pass failed."""
        try:
            return {id(step): logits for step, logits in zip(steps, self._together(steps), strict=True)}
        except BaseException as error:
            self._release_all()
            for call in (step.call for step in steps if isinstance(step.call, MemoryCall)):
                call.betas.clear()
                call.ratios.clear()
            if isinstance(error, Exception):
                return {}
            raise

    @torch.no_grad()
    def release(self, row: object) -> None:
        """Take a row out of the buffers and give it its own cache back. Does nothing for a row that is not in them."""
        place = self._place(row)
        if place is None:
            return
        place.row.cache = empty_cache()
        for slot, (keys, values) in enumerate(self._held(place)):
            place.row.cache.update(keys, values, slot)
        number, last = self._places.index(place), len(self._places) - 1
        moved = self._places.pop()
        if number != last:
            self._places[number] = moved
            for layer in self._layers:
                for kept in (layer.all_keys, layer.all_values):
                    kept[number, :, moved.start : moved.end] = kept[last, :, moved.start : moved.end]
            if self._folded is not None:
                self._folded.put(number, moved.folded)
        if not self._places:
            self._cache, self._folded = empty_cache(), None

    def _release_all(self) -> None:
        for place in list(self._places):
            self.release(place.row)

    def _alone(self, step: OneToken) -> Tensor | Exception:
        self.release(step.row)
        try:
            return step.row.forward((step.token,), step.call)
        except Exception as error:
            return error

    def _together(self, steps: Sequence[OneToken]) -> list[Tensor]:
        self._join(steps)
        by_row = {id(step.row): step for step in steps}
        taken = [by_row.get(id(place.row)) for place in self._places]
        model, device = steps[0].row.model, self._layers[0].all_keys.device
        self.first = min(place.start for place, step in zip(self._places, taken, strict=True) if step is not None)
        call = self._call(taken)
        columns = torch.arange(self.first, self.at + 1, device=device)
        bounds = torch.tensor([(place.start, place.end) for place in self._places], device=device)
        # A row that skips this pass gets a dummy token and attends only to it.
        attended = ((columns >= bounds[:, :1]) & (columns < bounds[:, 1:])) | (columns == self.at)
        out = model(
            input_ids=torch.tensor([[0 if step is None else step.token] for step in taken], device=device),
            attention_mask=attended.long(),
            position_ids=bounds[:, 1:] - bounds[:, :1],
            logits_to_keep=last_place(device),
            **with_cache(model, self._cache),
            **({} if call is None else {CALL_KEYWORD: call}),
        )
        if call is not None:
            call.finish()
        logits = out.logits[:, -1].float()
        self._after_pass(taken)
        numbers = {id(step): number for number, step in enumerate(taken) if step is not None}
        return [logits[numbers[id(step)]].clone() for step in steps]

    def _call(self, taken: Sequence[OneToken | None]) -> RowsCall | None:
        """The memory call of a pass; None if no row has a memory."""
        calls = [None if step is None else step.call for step in taken]
        if not any(call is not None for call in calls):
            return None
        like = next((call.state for call in calls if isinstance(call, FoldedCall)), None)
        if like is not None and self._folded is None:
            self._folded = FoldedRows(like, len(self._layers[0].all_keys))
            for place in self._places:
                place.folded = None
        for number, (place, step) in enumerate(zip(self._places, taken, strict=True)):
            reads = step.call.state if step is not None and isinstance(step.call, FoldedCall) else None
            if step is not None and self._folded is not None and place.folded is not reads:
                self._folded.put(number, reads)
                place.folded = reads
        return RowsCall(calls, None if like is None else self._folded)

    def _after_pass(self, taken: Sequence[OneToken | None]) -> None:
        """After a pass: rows that took part are a token longer; rows that missed too many passes are removed."""
        self.at += 1
        for place, step in zip(list(self._places), taken, strict=True):
            if step is not None:
                place.end, place.missed = self.at, 0
                continue
            place.missed += 1
            if place.missed > MISSED:
                self.release(place.row)

    def _join(self, steps: Sequence[OneToken]) -> None:
        """Put each step's row into the buffers, so that it ends at column `at`."""
        new = [step.row for step in steps if self._place(step.row) is None]
        lengths = [row.cache.get_seq_length() for row in new]
        count = len(self._places) + len(new)
        if not self._places or count > len(self._layers[0].all_keys) or max(lengths, default=0) > self.at or self._full:
            return self._rebuild(new)
        for step in steps:
            place = self._place(step.row)
            if place is not None and place.end < self.at:
                self._put(self._places.index(place), self._held(place), place.end - place.start)
                place.start, place.end = self.at - (place.end - place.start), self.at
        for row, length in zip(new, lengths, strict=True):
            self._put(len(self._places), _kept(row.cache), length)
            if self._folded is not None:
                # The state of the row that had this place before is still there.
                self._folded.put(len(self._places), None)
            self._places.append(_Place(row, self.at - length, self.at))
            row.cache = empty_cache()

    def _rebuild(self, new: Sequence[Row]) -> None:
        """Allocate new buffers with all rows in them and room for more tokens."""
        sources = [(place.end - place.start, self._held(place)) for place in self._places]
        sources += [(row.cache.get_seq_length(), _kept(row.cache)) for row in new]
        rows, at = 1 << (len(sources) - 1).bit_length(), max(length for length, _ in sources)
        layers: list[_Layer] = []
        for parts in zip(*(held for _, held in sources), strict=True):
            buffers = []
            for kind in range(2):
                _, heads, _, width = parts[0][kind].shape
                # Masked columns are multiplied by zero, so they must be finite.
                buffer = parts[0][kind].new_zeros(rows, heads, at + GROWTH, width)
                for number, part in enumerate(parts):
                    buffer[number, :, at - part[kind].shape[2] : at] = part[kind][0]
                buffers.append(buffer)
            layers.append(_Layer(buffers[0], buffers[1], self))
        self._cache = empty_cache()
        self._cache.layers[:] = layers
        self.at, self._folded = at, None
        self._places += [_Place(row, 0, 0) for row in new]
        for place, (length, _) in zip(self._places, sources, strict=True):
            place.start, place.end = at - length, at
        for row in new:
            row.cache = empty_cache()

    @property
    def _layers(self) -> list[_Layer]:
        return self._cache.layers  # type: ignore[return-value]

    @property
    def _full(self) -> bool:
        return self.at >= self._layers[0].all_keys.shape[2]

    def _place(self, row: object) -> _Place | None:
        return next((place for place in self._places if place.row is row), None)

    def _held(self, place: _Place) -> list[tuple[Tensor, Tensor]]:
        """A row's keys and values (1, heads, tokens, width) in each layer."""
        row, span = self._places.index(place), slice(place.start, place.end)
        return [
            (each.all_keys[row : row + 1, :, span], each.all_values[row : row + 1, :, span]) for each in self._layers
        ]

    def _put(self, number: int, held: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Copy a row's keys and values into the buffers, ending at column `at`."""
        span = slice(self.at - length, self.at)
        for layer, (keys, values) in zip(self._layers, held, strict=True):
            layer.all_keys[number, :, span] = keys[0].clone()
            layer.all_values[number, :, span] = values[0].clone()


def joinable(row: Row) -> bool:
    """Whether a sequence can be decoded together with others.

    Its cache must be a plain one and not empty, and position embeddings must not depend on the longest row.
    """
    if not cuts_anywhere(row.model.config):
        return False
    layers = row.cache.layers
    plain = all(is_plain(layer) and layer.is_initialized for layer in layers)
    return plain and bool(layers) and row.cache.get_seq_length() > 0


def _kept(cache: KeyValueCache) -> list[tuple[Tensor, Tensor]]:
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        found.append((layer.keys, layer.values))
    return found
