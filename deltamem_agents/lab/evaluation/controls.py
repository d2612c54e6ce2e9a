"""What a memory's figure has to be compared with: the same questions with anything but the right content.

A figure without these says nothing: a corrected model may answer better than the frozen one whatever the
state holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.state import MemoryState


class Arm(StrEnum):
    """Which memory a question is asked with."""

    MEMORY = "memory"
    OFF = "off"
    ZERO = "zero_state"
    WRONG = "wrong_conversation"
    RANDOM = "random_state"


def arm_states(
    arm: Arm, states: Sequence[MemoryState], strangers: Sequence[int], generator: torch.Generator
) -> list[MemoryState] | None:
    """The states to ask with, one an episode, from the episodes' own; None turns the memory off.

    `strangers[i]` is the episode whose state serves as the wrong conversation of episode i; only that arm
    needs them.
    """
    match arm:
        case Arm.MEMORY:
            return list(states)
        case Arm.OFF:
            return None
        case Arm.ZERO:
            return [MemoryState.zeros_like(state) for state in states]
        case Arm.WRONG:
            return [states[stranger] for stranger in strangers]
        case Arm.RANDOM:
            return [state.random_like(generator) for state in states]


def strangers(answers: Sequence[frozenset[str]]) -> list[int]:
    """For each episode another one, the next of those that share the fewest answers with it.

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
