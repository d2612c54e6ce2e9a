"""Which generated values belong to which split. A value's spelling alone decides."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "validation", "evaluation"]
"""What is trained on, what is watched meanwhile, and what is touched for reported figures only."""

HELD_OUT_SHARE = 10
"""One spelling in this many is kept for evaluation, and another one for validation."""


def split_of(value: str) -> Split:
    """The split of a value, whichever case it is written in.

    A value of several words belongs to evaluation when it or one of its words does, so that no part of a
    value told in training is kept for evaluation; with validation likewise.
    """
    lower = value.lower()
    buckets = {zlib.crc32(part.encode()) % HELD_OUT_SHARE for part in (lower, *lower.split())}
    if 0 in buckets:
        return "evaluation"
    return "validation" if 1 in buckets else "train"


def held_out(value: str) -> bool:
    """Whether a value is kept for evaluation."""
    return split_of(value) == "evaluation"


def split_values(values: Sequence[str], split: Split) -> tuple[str, ...]:
    return tuple(value for value in values if split_of(value) == split)
