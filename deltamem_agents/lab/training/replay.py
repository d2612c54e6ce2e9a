"""Training on conversations composed of cached activations: only the replies run through the model.

If only replies read the memory, no other token depends on it. Keys, values and attention inputs of all other messages
are then the frozen model's and are computed once. A step computes only the memory's own projections, the update rule,
and the few tokens of each reply in the frozen layers. It costs a seventh of a step that runs its histories.

Replay is an approximation in two ways. In use, replies inside the history read the memory too, and later exchanges
attend to earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.batches import QuestionBatch
from deltamem_agents.lab.training.composing import Conversation, WriteWeights, write_composed
from deltamem_agents.lab.training.direct_path import ReadWeights, opening_loss
from deltamem_agents.lab.training.objective import Outcome, divergence, judge, logits_at, openness
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import empty_cache, with_cache
from deltamem_agents.memory.state import MemoryState


def replay(
    model: nn.Module,
    adapter: Adapter,
    found: Activations,
    lead: Tensor,
    conversations: Sequence[Conversation],
    probe: Callable[[Tensor], tuple[Tensor, float]] | None = None,
    *,
    writes: bool = False,
    untold: Sequence[tuple[int, int]] = (),
) -> tuple[MemoryState, Outcome]:
    """The states after the conversations, and how questions about all their facts are answered from them.

    `lead` (tokens,): what every prompt begins with. `probe`: an auxiliary loss on the states (layers, conversations,
    heads, r, r); returns the loss and the share it got right. `writes`: write each question before its reply, and the
    reply as it is read, as a turn does. `untold`: (conversation, telling) pairs where the conversation lacks the
    telling's fact; the reply should be the frozen model's. The adapter must be attached to the model.
    """
    weights = WriteWeights.of(adapter)
    written = write_composed(adapter.config, weights, found, conversations)
    quiet = written.gates[:, written.aside]
    noise = openness(quiet, adapter.config.gate_floor) if bool(written.aside.any()) else quiet.new_zeros(())
    state = MemoryState(written.state.transpose(0, 1).to(lead.device))

    def read_by(asked: Sequence[tuple[int, int]]) -> MemoryState:
        read = written.state[:, [row for row, _ in asked]]
        if writes:
            alone = [Conversation((), (("questions", telling),)) for _, telling in asked]
            read = write_composed(adapter.config, weights, found, alone, read).state
        return MemoryState(read.transpose(0, 1).to(lead.device))

    asked = [(row, telling) for row, one in enumerate(conversations) for telling in one.tellings]
    questions, kept = _questions(lead, found, asked)
    outcome = judge(_answer(model, read_by(asked), questions, kept, writes=writes), questions)
    outcome = replace(outcome, noise=noise)
    if probe is not None:
        probed, direct = probe(written.state)
        outcome = replace(outcome, probed=probed, direct=direct)
    if untold:
        opening = opening_loss(adapter.config, ReadWeights.of(adapter), written.state, found, asked, untold)
        outcome = replace(outcome, gates=opening)
        questions, kept = _questions(lead, found, untold)
        outcome = replace(outcome, untold=_disturbed(model, read_by(untold), questions, kept, writes=writes))
    return state, outcome


def _disturbed(
    model: nn.Module, states: MemoryState, questions: QuestionBatch, kept: Sequence[Tensor], *, writes: bool
) -> Tensor:
    """KL divergence in nats from the frozen model, over the replies' tokens up to where an answer would begin."""
    begins = questions.places[questions.is_first]
    before = questions.places[:, 1] <= begins[questions.places[:, 0], 1]
    with torch.no_grad():
        frozen = _answer(model, None, questions, kept, writes=False)[before].log_softmax(-1)
    steered = _answer(model, states, questions, kept, writes=writes)[before].log_softmax(-1)
    return divergence(steered, frozen, questions.places[before])


def _questions(
    lead: Tensor, found: Activations, asked: Sequence[tuple[int, int]]
) -> tuple[QuestionBatch, list[Tensor]]:
    """The replies for (conversation, telling) pairs, which still have to run; every token is learned.

    Also returns the cached keys and values of each question.
    """
    prompts = [found.prompts[telling] for _, telling in asked]
    tokens = pad_sequence([prompt.tokens for prompt in prompts], batch_first=True)
    lengths = torch.tensor([len(prompt.tokens) for prompt in prompts])
    valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    contents = valid.clone()
    contents[:, 0] = False  # The last token before the reply.
    batch = QuestionBatch(
        lead,
        tokens,
        valid,
        valid,
        contents,
        torch.tensor([row for row, _ in asked]),
        valid.nonzero(),
        torch.cat([prompt.targets for prompt in prompts]),
        torch.cat([prompt.is_answer for prompt in prompts]),
        torch.cat([prompt.is_first for prompt in prompts]),
    )
    return batch.to(lead.device), [prompt.kept for prompt in prompts]


def _answer(
    model: nn.Module, states: MemoryState | None, questions: QuestionBatch, kept: Sequence[Tensor], *, writes: bool
) -> Tensor:
    """Logits (targets, vocabulary) float32 of the replies to questions whose keys and values are `kept`.

    `states`: one per question; None for the frozen model.
    """
    decoder, lead, device = cast(nn.Module, model.base_model), questions.lead, questions.lead.device
    cache = empty_cache()
    with torch.no_grad():
        decoder(input_ids=lead[None], **with_cache(decoder, cache))
    cache.batch_repeat_interleave(len(kept))
    longest = max(one.shape[-2] for one in kept)
    # Left padding, so that in every row the reply directly follows its question.
    padded = torch.stack([torch.nn.functional.pad(one, (0, 0, longest - one.shape[-2], 0)) for one in kept], dim=2)
    for layer, (keys, values) in enumerate(padded.to(device, next(model.parameters()).dtype)):
        cache.update(keys, values, layer)
    asked = torch.tensor([one.shape[-2] for one in kept], device=device)
    count = questions.tokens.shape[1]
    seen = torch.cat(
        [
            questions.valid.new_ones(len(kept), len(lead)),
            torch.arange(longest, device=device) >= longest - asked[:, None],
            questions.valid,
        ],
        dim=1,
    )
    memory = {}
    if states is not None:
        written = questions.writable if writes else None
        memory = {CALL_KEYWORD: MemoryCall(states, questions.valid, written, replies=questions.replies)}
    hidden: Tensor = decoder(
        input_ids=questions.tokens,
        attention_mask=seen.long(),
        position_ids=len(lead) + asked[:, None] + torch.arange(count, device=device),
        **with_cache(decoder, cache),
        **memory,
    ).last_hidden_state
    return logits_at(model, hidden, questions.places)
