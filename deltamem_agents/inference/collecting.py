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
from deltamem_agents.inference.prompt_rows import PromptChunk
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import Seat
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import KeysAndValues, cuts_anywhere, empty_cache, last_place, with_cache
from deltamem_agents.memory.writes import collected


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

    Prompts that other threads run at the same time share its forward passes.
    Raises StateError if the adapter is not attached to the model.
    """
    seat = seat or speaker.scheduler.seat()
    start = known[0][0].shape[-2] if known else 0
    parts: list[dict[int, Tensor]] = []
    layers, seconds = known, 0.0
    for begin in range(start, len(prompt), PREFILL_CHUNK):
        chunk = heard_chunk(speaker, prompt.ids[begin : begin + PREFILL_CHUNK], layers)
        seat.run_job(chunk)
        assert chunk.call is not None and chunk.call.inputs is not None
        parts.append(chunk.call.inputs)
        layers, seconds = chunk.layers, seconds + chunk.share
    if len(parts[0]) != len(speaker.adapter.indices):
        raise StateError(
            f"{len(parts[0])} of {len(speaker.adapter.indices)} memory layers took part in the forward pass; "
            "is the adapter attached to this model?"
        )
    inputs = {slot: torch.cat([part[slot] for part in parts], dim=1) for slot in parts[0]}
    return Hearing(prompt, start, inputs, layers if cuts_anywhere(speaker.model.config) else None, seconds)


def heard_chunk(speaker: MemoryModel, ids: Sequence[int], past: KeysAndValues) -> PromptChunk:
    """Tokens to run through the frozen model after those of `past`. Its call collects their attention inputs."""
    call = MemoryCall(speaker.adapter.zero_state(), inputs={}, quiet=True)
    return PromptChunk(speaker.model, ids, past, call, speaks=False, rounded_up_to=speaker.rounded_up_to)


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
