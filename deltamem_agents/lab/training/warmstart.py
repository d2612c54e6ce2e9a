"""A data-aware start: the adapter's projections fitted to the frozen model's own activations.

End-to-end training from random projections first has to find out what to store, under which key, and how
to say it again, through thirty frozen layers. All of this can be rehearsed on activations that are collected
once (`rehearsal`). What remains is how loud the memory should speak, and that is tried out.

Nothing here sees a value, phrasing or attribute that is held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.batches import Renderer, history_batch, question_batch
from deltamem_agents.lab.training.direct_path import speaking_weight
from deltamem_agents.lab.training.episodes import Episode
from deltamem_agents.lab.training.objective import answer_questions, judge, output_directions, write_history
from deltamem_agents.lab.training.pairs import Pairs
from deltamem_agents.lab.training.recipe import Rehearsal
from deltamem_agents.lab.training.rehearsal import rehearse
from deltamem_agents.memory.attach import Adapter

GAINS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Lengths that what is said of an answer may have on average, all layers together."""

TRIED_ON = 48


def warm_start(
    model: nn.Module,
    adapter: Adapter,
    renderer: Renderer,
    episodes: Sequence[Episode],
    found: Activations,
    pairs: Pairs,
    plan: Rehearsal,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Set the adapter's projections from what was `found` at `episodes`, and from `pairs`.

    The model has to carry the adapter.
    """
    rehearse(adapter, found, pairs, output_directions(model).cpu(), plan, seed=seed, say=say)
    tried = random.Random(seed).sample(episodes, min(TRIED_ON, len(episodes)))
    say(f"gain {set_gain(model, adapter, renderer, tried):.0f}")


@torch.no_grad()
def set_gain(model: nn.Module, adapter: Adapter, renderer: Renderer, episodes: Sequence[Episode]) -> float:
    """Scale what is said by whichever of GAINS makes the episodes' answers likeliest, and return that."""
    speaking = speaking_weight(adapter.config)
    if speaking is None:
        return 1.0
    device = next(model.parameters()).device
    history = history_batch(renderer, [episode.messages for episode in episodes]).to(device)
    questions = question_batch(renderer, episodes).to(device)
    memories = [adapter.layer(slot) for slot in range(len(adapter.indices))]
    fitted: list[Tensor] = [memory.get_parameter(speaking).clone() for memory in memories]
    nats: dict[float, float] = {}

    def scale(gain: float) -> None:
        for memory, weight in zip(memories, fitted, strict=True):
            memory.get_parameter(speaking).copy_(weight * gain)

    for gain in GAINS:
        scale(gain)
        state, quiet = write_history(model, adapter, history)
        logits = answer_questions(model, state, questions, writes=False)
        nats[gain] = judge(logits, questions, quiet).answer_nats
    best = min(nats, key=nats.__getitem__)
    scale(best)
    return best
