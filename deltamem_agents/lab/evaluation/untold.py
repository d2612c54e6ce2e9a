"""Questions about facts never told: does the reply give a value that was told of something else?"""

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
"""Measures. FREE: share of free replies with another fact's value. BEGUN: the same with the reply's beginning given,
such as "Your dog's name is", so that a value has to follow. SAME: share of free replies equal to the frozen model's."""

TRIES = 20
"""Maximum number of draws for a question that the conversation was not asked yet."""


@dataclass(frozen=True)
class _Scene:
    """A setting. `near`: the question asks for an attribute that was told of somebody else."""

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
    """For each scene: how often a told value is given, and how often the free reply equals the frozen model's."""
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
    """Adds the measure SAME: the share of replies that equal the frozen model's exactly."""
    found = {}
    for arm, replies in said.items():
        same = [float(one == other) for one, other in zip(replies, said[Arm.OFF], strict=True)]
        found[arm.value] = {**arms[arm.value], SAME: drawn.estimate(same)}
    return found


def _case(generator: EpisodeGenerator, drawn: DrawnEpisode, near: bool) -> Case:
    """Questions about facts that the episode does not tell, with the beginning of their replies."""
    episode, values = drawn.episode, tuple(question.answer for question in drawn.episode.questions)
    asked: dict[str, Asked] = {}
    for _ in range(drawn.asked * TRIES):
        if len(asked) == drawn.asked:
            break
        one = generator.never_told(drawn.rng, episode, near=near)
        asked.setdefault(one.subject, Asked(one.question, prefix=one.prefix, wrong=values))
    return Case(episode.messages, tuple(asked.values()), drawn.seed)
