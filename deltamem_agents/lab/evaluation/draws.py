"""Draws the conversations of a figure from seeds, the same every time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.lab.corpus.episodes import Episode, EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.evaluation.recall import Asked, Case

HELD_OUT_VALUES = EpisodeShape(split="evaluation")
"""One fact with up to three exchanges of small talk around it. Its value is never used in training."""

LEAST_CONVERSATIONS = 12
"""Minimum number of conversations per seed, unless there are fewer questions. In conversations with many facts only
some are asked for. Otherwise the figure would come from too few conversations."""


@dataclass(frozen=True)
class Size:
    """The size of a measurement. `questions`: per figure, drawn in equal parts by each of `seeds`.

    `distances`: tokens of unrelated conversation, ascending multiples of 1,000.
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
    """An episode with its seed and the number of its questions that are asked. `rng` draws everything else."""

    seed: int
    episode: Episode
    asked: int
    rng: random.Random

    def case(self) -> Case:
        """The conversation with the questions that are asked."""
        chosen = self.rng.sample(self.episode.questions, self.asked)
        return Case(self.episode.messages, tuple(Asked.of(question) for question in chosen), self.seed)


def facts_told(count: int) -> str:
    """The name of a figure with `count` facts."""
    return f"{count} fact" + ("" if count == 1 else "s")


def generated_episodes(words: Sequence[str], shape: EpisodeShape, count: int, seed: int) -> list[Episode]:
    """`count` episodes of one shape. Equal arguments give equal episodes.

    The shape's split determines whether the values were used in training.
    """
    generator, rng = EpisodeGenerator(words, shape), random.Random(f"evaluation {seed}")
    return [generator.draw(rng) for _ in range(count)]


def drawn_episodes(words: Sequence[str], shape: EpisodeShape, size: Size) -> Iterator[DrawnEpisode]:
    """The episodes of a figure of this size, for each seed."""
    count = max(-(-size.of_seed // shape.facts), min(size.of_seed, LEAST_CONVERSATIONS))
    for seed in size.seeds:
        for number, episode in enumerate(generated_episodes(words, shape, count, seed)):
            asked = size.of_seed // count + (number < size.of_seed % count)
            yield DrawnEpisode(seed, episode, asked, random.Random(f"evaluation {seed} {number}"))


def drawn_cases(words: Sequence[str], shape: EpisodeShape, size: Size, *, confusions: bool = False) -> list[Case]:
    """The cases of a figure. `confusions`: values of the conversation's other facts count as wrong answers."""
    cases = []
    for drawn in drawn_episodes(words, shape, size):
        case, told = drawn.case(), [question.answer for question in drawn.episode.questions]
        if confusions and len(told) > 1:
            case = replace(case, questions=tuple(asked.beside(told) for asked in case.questions))
        cases.append(case)
    return cases
