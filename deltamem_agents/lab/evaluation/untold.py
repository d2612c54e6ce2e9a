"""Asked for what was never told: does the reply give a value that was told about something else?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.episodes import EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, DrawnEpisode, Size, drawn_episodes
from deltamem_agents.lab.evaluation.estimates import Drawn, Estimate
from deltamem_agents.lab.evaluation.recall import (
    FREE_REPLY_TOKENS,
    Asked,
    Case,
    Steps,
    Title,
    Watch,
    absorbed,
    asked_count,
    drawn_from,
    figure_of,
    joined,
    mean_tokens,
    readings,
    replies_by_arm,
)
from deltamem_agents.lab.evaluation.report import Figure

SUITE = "untold"
FREE, BEGUN, SAME = "another's value", "another's value, reply begun", "same reply as frozen"
"""Measures. FREE: the reply is the model's own. BEGUN: "Your dog's name is" was given, so something has to follow."""

TRIES = 20
"""So often another question is drawn for one that the conversation was asked already."""


@dataclass(frozen=True)
class _Scene:
    """`near`: the same is told of somebody else."""

    name: str
    shape: EpisodeShape
    near: bool = False


SCENES = (
    *(_Scene(f"{count} told, another asked for", replace(HELD_OUT_VALUES, facts=count)) for count in (1, 4, 8)),
    _Scene(
        "4 told, one of them asked of another person",
        replace(HELD_OUT_VALUES, facts=4, about=("user", "person")),
        near=True,
    ),
)


def untold(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """For each scene: how often a told value is given, and how often the free reply is the frozen model's own."""
    for scene in SCENES:
        generator = EpisodeGenerator(words, scene.shape)
        begun = [_case(generator, one, scene.near) for one in drawn_episodes(words, scene.shape, size)]
        cases = [case.freely() for case in begun]
        with watch(f"{SUITE}: {scene.name}") as advance:
            steps = Steps(advance, len(cases) + 2 * len(Arm) * asked_count(cases))
            states = absorbed(engine, [case.messages for case in cases], steps.done)
            read = readings(cases, states, tuple(Arm))
            said = replies_by_arm(engine, cases, read, steps.done, tokens=FREE_REPLY_TOKENS)
            said_begun = replies_by_arm(engine, begun, read, steps.done)
        tokens = mean_tokens(engine, cases)
        figure = joined(
            figure_of(Title(SUITE, scene.name, wrong=FREE), cases, said, tokens),
            figure_of(Title(SUITE, scene.name, wrong=BEGUN), begun, said_begun, tokens),
        )
        yield replace(figure, arms=with_same(figure.arms, drawn_from(cases), said))


def with_same(
    arms: Mapping[str, Mapping[str, Estimate]], drawn: Drawn, said: Mapping[Arm, Sequence[str]]
) -> dict[str, dict[str, Estimate]]:
    """The measures with the share of replies that are those without memory, letter for letter."""
    found = {}
    for arm, replies in said.items():
        same = [float(one == other) for one, other in zip(replies, said[Arm.OFF], strict=True)]
        found[arm.value] = {**arms[arm.value], SAME: drawn.estimate(same)}
    return found


def _case(generator: EpisodeGenerator, drawn: DrawnEpisode, near: bool) -> Case:
    """Questions about what the episode does not tell, the beginning of their replies given."""
    episode, values = drawn.episode, tuple(question.answer for question in drawn.episode.questions)
    asked: dict[str, Asked] = {}
    for _ in range(drawn.asked * TRIES):
        if len(asked) == drawn.asked:
            break
        one = generator.never_told(drawn.rng, episode, near=near)
        asked.setdefault(one.subject, Asked(one.question, prefix=one.prefix, wrong=values))
    return Case(episode.messages, tuple(asked.values()), drawn.seed)
