"""Controls: the same questions asked without the right memory.

A figure means nothing without them. A model with an adapter may answer better than the frozen one whatever the state
holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeAlias

import torch

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.memories import AgentMemory

Held: TypeAlias = MemoryState | AgentMemory
"""A memory's content: one state of everything, or statements from which each reply reads the relevant ones."""


class Arm(StrEnum):
    """The memory that a question is asked with: the right one, or a control.

    - MEMORY: the right memory.
    - OFF: no memory; the frozen model.
    - ZERO: an empty memory.
    - WRONG: another conversation's memory.
    - RANDOM: random numbers of the same norm; for a memory of statements, one of its statements at random.
    """

    MEMORY = "memory"
    OFF = "off"
    ZERO = "zero_state"
    WRONG = "wrong_conversation"
    RANDOM = "random_state"


def arm_memories(
    arm: Arm, memories: Sequence[Held], strangers: Sequence[int], generator: torch.Generator
) -> list[Held] | None:
    """The memory that this arm asks each episode with, given the episodes' own `memories`; None turns memory off.

    `strangers[i]`: the episode whose memory is the wrong conversation of episode i. Used by WRONG alone.
    """
    match arm:
        case Arm.MEMORY:
            return list(memories)
        case Arm.OFF:
            return None
        case Arm.ZERO:
            return [_empty(memory) for memory in memories]
        case Arm.WRONG:
            return [memories[stranger] for stranger in strangers]
        case Arm.RANDOM:
            return [_random(memory, generator) for memory in memories]


def _empty(memory: Held) -> Held:
    if isinstance(memory, MemoryState):
        return MemoryState.zeros_like(memory)
    return AgentMemory(MemoryState.zeros_like(memory.base), fades=memory.fades)


def _random(memory: Held, generator: torch.Generator) -> Held:
    if isinstance(memory, MemoryState):
        return memory.random_like(generator)
    able = [each for each in memory.statements if each.wrote]
    if not able:
        return _empty(memory)
    return memory.alone(able[int(torch.randint(len(able), (1,), generator=generator))])


def strangers(answers: Sequence[frozenset[str]]) -> list[int]:
    """For each episode, the index of the next one among those that share the fewest answers with it.

    Raises ConfigError for fewer than two episodes.
    """
    count = len(answers)
    if count < 2:
        raise ConfigError(
            f"the control {Arm.WRONG.value} needs another conversation, and there is {count} in all; "
            "give at least 2 episodes"
        )
    return [
        min(((index + step) % count for step in range(1, count)), key=lambda other: len(mine & answers[other]))
        for index, mine in enumerate(answers)
    ]
