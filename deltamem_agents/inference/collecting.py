"""Compute the writes of messages and the queries of a question with the frozen model, without reading a memory.

No token reads the memory, so a statement's writes do not depend on what was told before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.errors import StateError
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.passes import PREFILL_CHUNK, Piece, Prompt, pieces_of
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import PromptJob, Seat
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import (
    cache_of,
    cuts_anywhere,
    empty_cache,
    last_place,
    layers_of,
    no_place,
    with_cache,
)
from deltamem_agents.memory.writes import collected

KeysAndValues = Sequence[tuple[Tensor, Tensor]]
"""Each layer's keys and values, each (1, heads, tokens, size)."""


@dataclass(frozen=True, eq=False)
class Hearing:
    """The result of running a prompt through the frozen model without a memory ("hearing" it).

    `inputs`: by slot (a layer's index in the state), the attention inputs (1, tokens, hidden) of its tokens from
    position `start` on; the tokens before were cached. `layers`: keys and values of all its tokens; None if they
    cannot be truncated. `seconds`: this prompt's share of the passes' time.
    """

    prompt: Prompt
    start: int
    inputs: dict[int, Tensor]
    layers: KeysAndValues | None
    seconds: float = 0.0


def written_by(speaker: MemoryModel, prompt: Prompt) -> dict[int, Piece]:
    """The writes of each message of the prompt, by its position; messages that write nothing are left out."""
    found: dict[int, Piece] = {}
    for start, call in _passes(speaker, prompt):
        ((places, writes),) = collected(call)
        for piece in pieces_of(places, writes, prompt, slice(start, start + PREFILL_CHUNK)):
            before = found.get(piece.position)
            found[piece.position] = piece if before is None else before.then(piece)
    return {position: piece for position, piece in sorted(found.items()) if piece.written}


def queries_of(speaker: MemoryModel, prompt: Prompt) -> Tensor:
    """(tokens, layers, heads, r) float32: queries of the prompt's reading tokens; the last predicts the reply."""
    return queries_in(speaker, hear(speaker, prompt))


@torch.no_grad()
def queries_in(speaker: MemoryModel, heard: Hearing) -> Tensor:
    """`queries_of` for a prompt that was already run by `hear`. None of its reading tokens may have been cached."""
    reading = torch.tensor(heard.prompt.reads[heard.start :], device=speaker.model.device)
    asked = [speaker.adapter.layer(slot).queries(x[:, reading].float()) for slot, x in sorted(heard.inputs.items())]
    return torch.stack([each[0] for each in asked]).permute(2, 0, 1, 3)


def hear(
    speaker: MemoryModel, prompt: Prompt, known: KeysAndValues = (), seat: Seat[OneToken] | None = None
) -> Hearing:
    """Run a prompt through the frozen model. `known`: keys and values of its first tokens, but not of all.

    Prompts that other threads run at the same time share its forward passes if they start with the same known tokens.
    Raises StateError if the adapter is not attached to the model.
    """
    seat = seat or speaker.scheduler.seat()
    start = known[0][0].shape[-2] if known else 0
    parts: list[dict[int, Tensor]] = []
    layers: KeysAndValues | None = known
    seconds = 0.0
    for begin in range(start, len(prompt), PREFILL_CHUNK):
        assert layers is not None
        taking = _PromptChunk(speaker, prompt.ids[begin : begin + PREFILL_CHUNK], layers, begin)
        seat.run_job(taking)
        parts.append(taking.inputs)
        layers, seconds = taking.layers, seconds + taking.share
    inputs = {slot: torch.cat([part[slot] for part in parts], dim=1) for slot in parts[0]}
    return Hearing(prompt, start, inputs, layers if cuts_anywhere(speaker.model.config) else None, seconds)


class _PromptChunk(PromptJob):
    """A chunk of a prompt to run through the frozen model.

    `layers`: keys and values of the `start` tokens before it; after `run`, of all tokens up to its end. `inputs`: as
    in `Hearing`, for this chunk.
    """

    def __init__(self, speaker: MemoryModel, ids: Sequence[int], layers: KeysAndValues, start: int) -> None:
        # All rows of one batch start at the same position. A chunk runs alone if a batch would change its result: if
        # position embeddings depend on the longest row, or if the model uses rounded weights for so few tokens.
        alike = (id(speaker.model), start, layers[0][0].data_ptr() if layers else 0)
        alone = not cuts_anywhere(speaker.model.config) or len(ids) <= speaker.rounded_up_to
        super().__init__(len(ids), None if alone else alike)
        self.speaker, self.ids, self.layers, self.start = speaker, ids, layers, start
        self.inputs: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self, jobs: Sequence[PromptJob]) -> None:
        rows = [each for each in jobs if isinstance(each, _PromptChunk)]
        model, device, count = self.speaker.model, self.speaker.model.device, len(rows)
        width = max(len(row.ids) for row in rows)
        before = [(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)) for keys, values in self.layers]
        cache = cache_of(before) if before else empty_cache()
        call = MemoryCall(self.speaker.adapter.zero_state(), inputs={}, quiet=True)
        # Right padding: in a causal model the tokens do not see what comes after them.
        model(
            input_ids=torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows], device=device),
            logits_to_keep=no_place(device),
            **with_cache(model, cache),
            **{CALL_KEYWORD: call},
        )
        assert call.inputs is not None
        if len(call.inputs) != len(self.speaker.adapter.indices):
            raise StateError(
                f"{len(call.inputs)} of {len(self.speaker.adapter.indices)} memory layers took part in the forward "
                "pass; is the adapter attached to this model?"
            )
        held = layers_of(cache)
        assert held is not None
        for number, row in enumerate(rows):
            own, tokens = slice(number, number + 1), len(row.ids)
            row.inputs = {slot: x[own, :tokens].to(device, copy=True) for slot, x in call.inputs.items()}
            row.layers = _row_of(held, own, self.start + tokens)


def _row_of(layers: KeysAndValues, row: slice, tokens: int) -> KeysAndValues:
    """Copies of one row's keys and values. A view would keep the whole batch alive, and so other agents' prompts."""
    return [(keys[row, :, :tokens].clone(), values[row, :, :tokens].clone()) for keys, values in layers]


@torch.no_grad()
def _passes(speaker: MemoryModel, prompt: Prompt) -> list[tuple[int, MemoryCall]]:
    """The memory call of each chunk of a prompt, with the position of its first token."""
    device, cache, state = speaker.model.device, empty_cache(), speaker.adapter.zero_state()
    calls = []
    for start in range(0, len(prompt), PREFILL_CHUNK):
        part = slice(start, start + PREFILL_CHUNK)
        call = MemoryCall(
            state,
            write_mask=torch.tensor([prompt.writes[part]], device=device),
            message_ids=torch.tensor([prompt.message_ids[part]], device=device),
            written={},
            applies=False,
        )
        with speaker.scheduler.exclusively():
            speaker.model(
                input_ids=torch.tensor([prompt.ids[part]], device=device),
                logits_to_keep=last_place(device),
                **with_cache(speaker.model, cache),
                **{CALL_KEYWORD: call},
            )
        # Only the carry (for the next token's key) goes on to the next chunk; the state stays empty.
        state = call.new_state()
        calls.append((start, call))
    return calls
