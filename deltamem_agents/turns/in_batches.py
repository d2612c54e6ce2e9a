"""Batches of memories without agents or stores: writing conversations, recalling and replying. For evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltamem_agents.inference.batching import collect_batch, greedy_batch
from deltamem_agents.inference.reply_text import as_text
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.turns.recalling import Recollection, pointing, recollect
from deltamem_agents.turns.running import TurnRunner
from deltamem_agents.types import Message, Recall


def remember_batch(
    turns: TurnRunner,
    memories: Sequence[AgentMemory],
    conversations: Sequence[Sequence[Message]],
    advance: Callable[[int], None],
) -> list[AgentMemory]:
    """Each memory after its conversation, which becomes a new thread. Nothing is saved."""
    speaker = turns.speaker
    empty = speaker.adapter.zero_state()
    written = collect_batch(speaker.model, speaker.prompts, empty, conversations, advance)
    found = []
    for memory, messages, pieces in zip(memories, conversations, written, strict=True):
        thread = str(len({each.thread for each in memory.statements}))
        recorder = turns.recorder(messages, thread, "absorb")
        may = [place for place, message in enumerate(messages) if message.role in turns.policy.roles]
        recorder.add(pieces, {position: place for place, position in enumerate(may)})
        found.append(memory.changed(None, "", recorder.statements, most=turns.policy.statements).memory)
    return found


def recollect_batch(
    turns: TurnRunner, memories: Sequence[AgentMemory], conversations: Sequence[Sequence[Message]], recall: Recall
) -> list[Recollection]:
    """The statements that the reply to each conversation reads from its memory."""
    pairs = zip(memories, conversations, strict=True)
    return [
        recollect(turns.speaker, memory, (), asked, recall, turns.matcher, turns.caches)[0] for memory, asked in pairs
    ]


def recalled_replies(
    turns: TurnRunner,
    recollections: Sequence[Recollection],
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
) -> list[str]:
    """Greedy replies to several conversations in one batch, each using its own recalled statements."""
    speaker = turns.speaker
    prompts = []
    for found, messages in zip(recollections, conversations, strict=True):
        shown, _ = found.shown_in(messages) if found.shown else (messages, 0)
        prompts.append(speaker.prompts.reading(shown))
    state = MemoryState.cat([found.state.settled() for found in recollections]).to(speaker.model.device)
    replies = greedy_batch(
        speaker.model,
        state,
        prompts,
        max_tokens=max_tokens,
        end_ids=speaker.prompts.end_ids,
        pointing=[pointing(turns.pointer, found, speaker.spelling) for found in recollections],
    )
    return [as_text(speaker.tokenizer, reply) for reply in replies]
