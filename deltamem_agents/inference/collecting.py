"""What messages would write, and what a question asks for, found without any memory taking part.

Nothing is read, so the writes of a statement do not depend on what was told before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.errors import StateError
from deltamem_agents.inference.decode import PREFILL_CHUNK, Piece, Prompt, pieces_of
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import Errand, Seat
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
"""Of each layer, each (1, heads, tokens, size)."""


@dataclass(frozen=True, eq=False)
class Hearing:
    """A prompt as the frozen model takes it in, no memory taking part.

    `inputs`: by layer slot, the attention inputs (1, tokens, hidden) of its tokens from the place `start` on; the
    tokens before were known. `layers`: keys and values of all of its tokens; None where they cannot be cut shorter.
    `seconds`: how long that took.
    """

    prompt: Prompt
    start: int
    inputs: dict[int, Tensor]
    layers: KeysAndValues | None
    seconds: float = 0.0


def written_by(speaker: MemoryModel, prompt: Prompt) -> dict[int, Piece]:
    """By message of the prompt, what its tokens write; messages that write nothing are left out."""
    found: dict[int, Piece] = {}
    for start, call in _passes(speaker, prompt):
        ((places, writes),) = collected(call)
        for piece in pieces_of(places, writes, prompt, slice(start, start + PREFILL_CHUNK)):
            before = found.get(piece.position)
            found[piece.position] = piece if before is None else before.then(piece)
    return {position: piece for position, piece in sorted(found.items()) if piece.written}


def queries_of(speaker: MemoryModel, prompt: Prompt) -> Tensor:
    """(tokens, layers, heads, r) float32: the queries of the prompt's reading tokens; a reply begins at the last."""
    return queries_in(speaker, hear(speaker, prompt))


@torch.no_grad()
def queries_in(speaker: MemoryModel, heard: Hearing) -> Tensor:
    """`queries_of` a prompt that was heard. None of its tokens that read may have been known before."""
    reading = torch.tensor(heard.prompt.reads[heard.start :], device=speaker.model.device)
    asked = [speaker.adapter.layer(slot).queries(x[:, reading].float()) for slot, x in sorted(heard.inputs.items())]
    return torch.stack([each[0] for each in asked]).permute(2, 0, 1, 3)


def hear(
    speaker: MemoryModel, prompt: Prompt, known: KeysAndValues = (), seat: Seat[OneToken] | None = None
) -> Hearing:
    """Take in a prompt, whose first tokens' keys and values are `known`, and which has more tokens than these.

    Prompts that others have taken in at the same time, and that begin with the same ones, share a pass with it.
    Raises StateError where the memory was taken off the model.
    """
    seat = seat or speaker.scheduler.seat()
    start = known[0][0].shape[-2] if known else 0
    parts: list[dict[int, Tensor]] = []
    layers: KeysAndValues | None = known
    seconds = 0.0
    for begin in range(start, len(prompt), PREFILL_CHUNK):
        assert layers is not None
        taking = _Taking(speaker, prompt.ids[begin : begin + PREFILL_CHUNK], layers, begin)
        seat.see_to(taking)
        parts.append(taking.inputs)
        layers, seconds = taking.layers, seconds + taking.share
    inputs = {slot: torch.cat([part[slot] for part in parts], dim=1) for slot in parts[0]}
    return Hearing(prompt, start, inputs, layers if cuts_anywhere(speaker.model.config) else None, seconds)


class _Taking(Errand):
    """A stretch of a prompt that the frozen model takes in.

    `layers`: keys and values of the `start` tokens before it, and then of all. `inputs`: as in `Hearing`.
    """

    def __init__(self, speaker: MemoryModel, ids: Sequence[int], layers: KeysAndValues, start: int) -> None:
        # Rows of one tensor begin at one place. What others would change goes alone: places that depend on the longest
        # row, and so few tokens that the model computes otherwise than with theirs.
        alike = (id(speaker.model), start, layers[0][0].data_ptr() if layers else 0)
        alone = not cuts_anywhere(speaker.model.config) or len(ids) <= speaker.rounded_up_to
        super().__init__(len(ids), None if alone else alike)
        self.speaker, self.ids, self.layers, self.start = speaker, ids, layers, start
        self.inputs: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self, errands: Sequence[Errand]) -> None:
        rows = [each for each in errands if isinstance(each, _Taking)]
        model, device, count = self.speaker.model, self.speaker.model.device, len(rows)
        width = max(len(row.ids) for row in rows)
        before = [(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)) for keys, values in self.layers]
        cache = cache_of(before) if before else empty_cache()
        call = MemoryCall(self.speaker.adapter.zero_state(), inputs={}, quiet=True)
        # Padding stands behind the tokens, where a causal model's tokens do not see it.
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
    """One row's own keys and values, as copies: a part of a tensor holds all of it, and so what others said."""
    return [(keys[row, :, :tokens].clone(), values[row, :, :tokens].clone()) for keys, values in layers]


@torch.no_grad()
def _passes(speaker: MemoryModel, prompt: Prompt) -> list[tuple[int, MemoryCall]]:
    """The calls of the chunks of a prompt, each with the place of its first token."""
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
        # The shifted half of the next key goes on; the empty state stays.
        state = call.new_state()
        calls.append((start, call))
    return calls
