"""Prompt chunks of several sequences ("rows") in one forward pass, each with its own cache and memory.

Each row's cached tokens end at the same column, where its new tokens begin. So a model's own masks, which count from
there, are right for every row. New tokens are padded on the right: in a causal model nothing before them sees padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deltamem_agents.inference.scheduling import PromptJob
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import (
    KeysAndValues,
    cache_of,
    cuts_anywhere,
    layers_of,
    no_place,
    with_cache,
)
from deltamem_agents.memory.rows import PromptsCall

ALIKE = 256
"""Rows whose numbers of cached tokens differ by less than this, or by less than a factor of two, may share a pass."""


class PromptChunk(PromptJob):
    """Consecutive tokens `ids` of one sequence. After `run`, `layers`, `logits` and `call` are as if it had run alone.

    `past`: keys and values of the tokens before them. `call`: the memory call, None for the base model. `speaks`:
    whether `logits` (vocabulary,) float32 of the last token are wanted. `layers`: keys and values of all tokens so far.
    `rounded_up_to`: maximum number of tokens for which the model uses rounded weights, 0 if it has none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Sequence[int],
        past: KeysAndValues,
        call: MemoryCall | None,
        *,
        speaks: bool,
        rounded_up_to: int = 0,
    ) -> None:
        self.model, self.ids, self.past, self.call, self.speaks = model, ids, past, call, speaks
        self.start = past[0][0].shape[-2] if past else 0
        # A chunk runs alone if a batch would change its result: if position embeddings depend on the longest row, or if
        # the model uses rounded weights for so few tokens.
        alone = not cuts_anywhere(model.config) or len(ids) <= rounded_up_to
        super().__init__(len(ids), None if alone else (id(model), (self.start // ALIKE).bit_length()))
        self.layers: KeysAndValues = ()
        self.logits: Tensor | None = None

    @torch.no_grad()
    def run(self, jobs: Sequence[PromptJob]) -> None:
        rows = [each for each in jobs if isinstance(each, PromptChunk)]
        try:
            self._run(rows)
        except BaseException:
            # Each row may be run again alone.
            for call in (row.call for row in rows if row.call is not None):
                call.betas.clear()
                call.ratios.clear()
            raise

    def _run(self, rows: Sequence[PromptChunk]) -> None:
        device, alone = self.model.device, len(rows) == 1
        start, width = max(row.start for row in rows), max(len(row.ids) for row in rows)
        places = sorted({len(row.ids) - 1 for row in rows if row.speaks})
        cache = cache_of(self.past if alone else _stacked(rows, start))
        call = self.call if alone else PromptsCall.of([row.call for row in rows], [len(row.ids) for row in rows])
        out = self.model(
            input_ids=torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows], device=device),
            logits_to_keep=torch.tensor(places, device=device) if places else no_place(device),
            **({} if alone else _placed(rows, start, width, device)),
            **with_cache(self.model, cache),
            **({} if call is None else {CALL_KEYWORD: call}),
        )
        held = layers_of(cache)
        assert held is not None
        for number, row in enumerate(rows):
            own = slice(start - row.start, start + len(row.ids))
            row.layers = (
                held if alone else [(_own(keys, number, own), _own(values, number, own)) for keys, values in held]
            )
            if row.speaks:
                row.logits = out.logits[number, places.index(len(row.ids) - 1)].float().clone()


def _own(part: Tensor, row: int, columns: slice) -> Tensor:
    """A copy of one row's columns. A view would keep the whole batch alive, and so other agents' prompts."""
    return part[row : row + 1, :, columns].clone()


def _placed(rows: Sequence[PromptChunk], start: int, width: int, device: torch.device) -> dict[str, Tensor]:
    """The model's arguments that say where each row's tokens are."""
    columns = torch.arange(start + width, device=device)
    bounds = torch.tensor([(start - row.start, start + len(row.ids)) for row in rows], device=device)
    attended = (columns >= bounds[:, :1]) & (columns < bounds[:, 1:])
    first = torch.tensor([[row.start] for row in rows], device=device)
    return {"attention_mask": attended.long(), "position_ids": first + columns[:width]}


def _stacked(rows: Sequence[PromptChunk], start: int) -> KeysAndValues:
    """Keys and values of the rows' cached tokens, padded on the left to `start` tokens; () if no row has any."""
    if not start:
        return ()
    like = next(row.past for row in rows if row.past)
    if all(row.past and row.past[0][0].data_ptr() == like[0][0].data_ptr() and row.start == start for row in rows):
        return [(k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1)) for k, v in like]
    stacked = []
    for number, layer in enumerate(like):
        both = []
        for kind, part in enumerate(layer):
            # Masked columns are multiplied by zero, so they must be finite.
            whole = part.new_zeros(len(rows), part.shape[1], start, part.shape[3])
            for row, each in enumerate(rows):
                if each.past:
                    whole[row, :, start - each.start :] = each.past[number][kind][0]
            both.append(whole)
        stacked.append((both[0], both[1]))
    return stacked
