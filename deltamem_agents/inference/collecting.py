"""What messages would write, and what a question asks for, found without any memory taking part.

Nothing is read, so the writes of a statement do not depend on what was told before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem_agents.inference.decode import PREFILL_CHUNK, Piece, Prompt, pieces_of
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import empty_cache, last_place, with_cache
from deltamem_agents.memory.writes import collected


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
    found = []
    for start, call in _passes(speaker, prompt):
        assert call.queries is not None
        reading = torch.tensor(prompt.reads[start : start + PREFILL_CHUNK])
        stacked = torch.stack([call.queries[slot][0] for slot in sorted(call.queries)])
        found.append(stacked.permute(2, 0, 1, 3)[reading])
    return torch.cat(found)


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
            queries={},
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
