"""Assigns generated values to splits, by their spelling alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "validation", "evaluation"]
"""For training, for progress and choices during training, and for reported figures only."""

HELD_OUT_SHARE = 10
"""One in this many spellings is reserved for evaluation, and one for validation."""


def split_of(value: str) -> Split:
    """The split of a value. Upper and lower case are the same.

    A value of several words belongs to evaluation if the whole value or one of its words does, so that training never
    uses a word of the evaluation split; likewise with validation.
    """
    lower = value.lower()
    buckets = {zlib.crc32(part.encode()) % HELD_OUT_SHARE for part in (lower, *lower.split())}
    if 0 in buckets:
        return "evaluation"
    return "validation" if 1 in buckets else "train"


def held_out(value: str) -> bool:
    """Whether a value is reserved for evaluation."""
    return split_of(value) == "evaluation"


def split_values(values: Sequence[str], split: Split) -> tuple[str, ...]:
    return tuple(value for value in values if split_of(value) == split)
