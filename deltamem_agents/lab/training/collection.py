"""Episodes and their activations in the frozen model, in a sliding window of parts: the oldest is replaced first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.training.activations import Activations, joined

PARTS = 4


@dataclass(frozen=True)
class _Part:
    number: int
    episodes: Sequence[Episode]
    found: Activations


class Collection:
    """A window of PARTS consecutive parts of an endless sequence.

    `draw` returns the episodes of a part by its number, always the same. `collect` returns their activations.
    """

    def __init__(
        self, draw: Callable[[int], Sequence[Episode]], collect: Callable[[Sequence[Episode]], Activations]
    ) -> None:
        self._draw, self._collect = draw, collect
        self._parts: list[_Part] = []
        self._whole: tuple[list[Episode], Activations] | None = None

    def parts_from(self, first: int) -> tuple[list[Episode], Activations]:
        """The PARTS parts beginning with number `first`: the episode of each telling, and the joined activations."""
        if self._whole is None or self._parts[0].number != first:
            self._whole = None  # Activations take gigabytes: free the old ones first.
            self._renew(range(first, first + PARTS))
            episodes = [
                episode for part in self._parts for episode in part.episodes for _ in range(len(episode.questions))
            ]
            self._whole = episodes, joined([part.found for part in self._parts])
        return self._whole

    def _renew(self, wanted: range) -> None:
        self._parts = [part for part in self._parts if part.number in wanted]
        for number in wanted[len(self._parts) :]:
            episodes = self._draw(number)
            self._parts.append(_Part(number, episodes, self._collect(episodes)))
