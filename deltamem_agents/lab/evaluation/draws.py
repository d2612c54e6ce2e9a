"""Which conversations a figure is measured on: drawn from seeds, the same each time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.lab.corpus.episodes import Episode, EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.evaluation.recall import Asked, Case

HELD_OUT_VALUES = EpisodeShape(split="evaluation")
"""One fact with up to three exchanges of small talk around it, its value never told in training."""

LEAST_CONVERSATIONS = 12
"""Of one seed, unless there are fewer questions: conversations of many facts are not all that is asked about."""


@dataclass(frozen=True)
class Size:
    """How much is measured: `questions` a figure in all, drawn in equal parts by each of `seeds`.

    `distances`: tokens of unrelated conversation, ascending, multiples of a thousand.
    """

    questions: int
    seeds: tuple[int, ...]
    distances: tuple[int, ...] = (0, 1000, 4000, 20000)

    @property
    def of_seed(self) -> int:
        return -(-self.questions // len(self.seeds))


FULL = Size(300, (1, 2, 3))
QUICK = Size(48, (1,), (0, 1000))


@dataclass(frozen=True)
class DrawnEpisode:
    """An episode with the seed it was drawn by, how many of its questions are asked, and chance for all the rest."""

    seed: int
    episode: Episode
    asked: int
    rng: random.Random

    def case(self) -> Case:
        """The episode with as many of its questions as are asked."""
        chosen = self.rng.sample(self.episode.questions, self.asked)
        return Case(self.episode.messages, tuple(Asked.of(question) for question in chosen), self.seed)


def facts_told(count: int) -> str:
    """What a figure of so many facts is called."""
    return f"{count} fact" + ("" if count == 1 else "s")


def generated_episodes(words: Sequence[str], shape: EpisodeShape, count: int, seed: int) -> list[Episode]:
    """`count` episodes of one shape, whose split decides whether their values were trained on.

    Equal arguments give equal episodes.
    """
    generator, rng = EpisodeGenerator(words, shape), random.Random(f"evaluation {seed}")
    return [generator.draw(rng) for _ in range(count)]


def drawn_episodes(words: Sequence[str], shape: EpisodeShape, size: Size) -> Iterator[DrawnEpisode]:
    """As many episodes as the size asks for, each seed's own."""
    count = max(-(-size.of_seed // shape.facts), min(size.of_seed, LEAST_CONVERSATIONS))
    for seed in size.seeds:
        for number, episode in enumerate(generated_episodes(words, shape, count, seed)):
            asked = size.of_seed // count + (number < size.of_seed % count)
            yield DrawnEpisode(seed, episode, asked, random.Random(f"evaluation {seed} {number}"))


def drawn_cases(words: Sequence[str], shape: EpisodeShape, size: Size, *, confusions: bool = False) -> list[Case]:
    """What is asked. `confusions`: the values of the conversation's other facts count as wrong ones."""
    cases = []
    for drawn in drawn_episodes(words, shape, size):
        case, told = drawn.case(), [question.answer for question in drawn.episode.questions]
        if confusions and len(told) > 1:
            case = replace(case, questions=tuple(asked.beside(told) for asked in case.questions))
        cases.append(case)
    return cases
