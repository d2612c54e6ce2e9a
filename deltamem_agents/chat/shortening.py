"""Shortens long messages to their beginning and end. It cuts tokens, not text, so the kept tokens do not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from deltamem_agents.chat.layout import NOBODY

Stretch: TypeAlias = range
"""A range of consecutive content tokens of a message, counted from 0."""


def head_and_tail(tokens: int, limit: int) -> tuple[Stretch, ...]:
    """The kept ranges of a message of `tokens` tokens: all of it, or its first and last `limit`/2 tokens."""
    if tokens <= limit:
        return (range(tokens),)
    return range(limit - limit // 2), range(tokens - limit // 2, tokens)


def in_parts(stretches: Sequence[Stretch], size: int) -> list[tuple[Stretch, ...]]:
    """The stretches in order, split into parts of at most `size` tokens."""
    parts: list[tuple[Stretch, ...]] = [()]
    room = size
    for stretch in stretches:
        while stretch:
            if room == 0:
                parts.append(())
                room = size
            parts[-1] += (stretch[:room],)
            stretch, room = stretch[room:], room - len(stretch[:room])
    return parts


def counts(owner: Sequence[int]) -> dict[int, int]:
    """The number of content tokens of each message, by message index."""
    found: dict[int, int] = {}
    for who in owner:
        if who != NOBODY:
            found[who] = found.get(who, 0) + 1
    return found


@dataclass(frozen=True)
class Kept:
    """Tokens and their owners after a cut, as in `Rendered`. `place[i]`: index of token i in its message's content."""

    ids: tuple[int, ...]
    owner: tuple[int, ...]
    place: tuple[int, ...]


def keep(
    ids: Sequence[int],
    owner: Sequence[int],
    kept: Mapping[int, Sequence[Stretch]],
    mark: Callable[[int], Sequence[int]],
) -> Kept:
    """Removes tokens that are outside the stretches in `kept` of their message. Other messages are kept in full.

    Between two stretches the tokens of `mark(number left out)` are inserted, which belong to no message.
    """
    found: list[tuple[int, int, int]] = []
    seen: dict[int, int] = {}
    for token, who in zip(ids, owner, strict=True):
        place = seen.get(who, 0)
        seen[who] = place + 1
        stretches = None if who == NOBODY else kept.get(who)
        if stretches is None or any(place in stretch for stretch in stretches):
            found.append((token, who, place))
        else:
            found += [(each, NOBODY, 0) for each in _gap(stretches, place, mark)]
    ids, owner, places = zip(*found, strict=True) if found else ((), (), ())
    return Kept(tuple(ids), tuple(owner), tuple(places))


def _gap(stretches: Sequence[Stretch], place: int, mark: Callable[[int], Sequence[int]]) -> Sequence[int]:
    """The mark if a gap between two stretches begins at `place`, else nothing."""
    for before, behind in pairwise(stretches):
        if place == before.stop:
            return mark(behind.start - before.stop)
    return ()
