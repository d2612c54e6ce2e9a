"""The suites of `deltamem eval recall`. Each measures one ability of a memory, with controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.episodes import EpisodeShape
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.evaluation.distance import distance
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, Size, drawn_cases, facts_told
from deltamem_agents.lab.evaluation.harmless import harmless
from deltamem_agents.lab.evaluation.misled import misled
from deltamem_agents.lab.evaluation.natural import natural
from deltamem_agents.lab.evaluation.overview import overview
from deltamem_agents.lab.evaluation.people import people_suite
from deltamem_agents.lab.evaluation.recall import Title, Watch, evaluate_recall
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.lab.evaluation.untold import untold

COUNTS = (1, 2, 4, 8, 16, 32, 100, 200)
"""Numbers of facts in a conversation."""

FACTS_OF_USER = 100
"""Largest number of facts that are all about the user. Of more, about a fifth is about other people: there are 161
attributes."""

CHANGES_AROUND = 50

Run: TypeAlias = Callable[[DeltaMemEngine, Sequence[str], Size, Watch], Iterator[Figure]]
"""Yields a suite's figures one after another. The words are values for attributes that take any word."""


@dataclass(frozen=True)
class Suite:
    """A suite. `about`: what it measures, in a few words."""

    about: str
    run: Run


def run_suite(engine: DeltaMemEngine, run: Run, size: Size, watch: Watch) -> Iterator[Figure]:
    """Yields a suite's figures as they are measured, with words from the engine's vocabulary."""
    yield from run(engine, open_words(engine.tokenizer), size, watch)


def conversation(facts: int) -> EpisodeShape:
    """The shape of a conversation with this many facts."""
    shape = replace(HELD_OUT_VALUES, facts=facts)
    return shape if facts <= FACTS_OF_USER else replace(shape, about=("user", "user", "user", "user", "person"))


def capacity(counts: Sequence[int] = COUNTS) -> Run:
    """Recall against the number of facts told."""

    def run(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
        for count in counts:
            cases = drawn_cases(words, conversation(count), size, confusions=True)
            title = Title("capacity", facts_told(count), count, wrong="another's value")
            yield evaluate_recall(engine, title, cases, watch=watch)

    return run


def of_shapes(suite: str, shapes: Mapping[str, EpisodeShape], *, wrong: str = "wrong") -> Run:
    """One figure per shape."""

    def run(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
        for name, shape in shapes.items():
            cases = drawn_cases(words, shape, size)
            yield evaluate_recall(engine, Title(suite, name, wrong=wrong), cases, watch=watch)

    return run


def _held_out(count: int) -> dict[str, EpisodeShape]:
    shape, told = replace(HELD_OUT_VALUES, facts=count), facts_told(count)
    return {
        f"{told}: values never trained": shape,
        f"{told}: values and phrasings never trained": replace(shape, held_out_phrasings=True),
        f"{told}: values and attributes never trained": replace(shape, held_out_attributes=True),
    }


def _updates(count: int) -> dict[str, EpisodeShape]:
    shape, told = replace(HELD_OUT_VALUES, facts=count), facts_told(count)
    return {f"{told}: told once": shape, f"{told}: each changed later": replace(shape, changed=1.0)}


_SIDES: dict[str, EpisodeShape] = {
    "told by the assistant": replace(HELD_OUT_VALUES, tellers=("assistant",)),
    "returned by a tool": replace(HELD_OUT_VALUES, tellers=("tool",)),
    "returned by a tool as JSON": replace(HELD_OUT_VALUES, tellers=("json",)),
    "about other people": replace(HELD_OUT_VALUES, about=("person",)),
    "4 people told apart": replace(HELD_OUT_VALUES, facts=4, about=("person",), same_attribute=1.0),
    "numbers": replace(HELD_OUT_VALUES, values=("number",)),
    "dates": replace(HELD_OUT_VALUES, values=("date",)),
    "times": replace(HELD_OUT_VALUES, values=("time",)),
    "values of several words": replace(HELD_OUT_VALUES, values=("phrase",)),
}

SUITES: Mapping[str, Suite] = {
    "capacity": Suite("recall by the number of facts told", capacity()),
    "held-out": Suite(
        "values, phrasings and attributes never trained", of_shapes("held-out", {**_held_out(1), **_held_out(4)})
    ),
    "updates": Suite(
        "facts changed later, and facts kept while others change",
        of_shapes(
            "updates",
            {
                **_updates(1),
                **_updates(4),
                f"1 fact: then {CHANGES_AROUND} changes to others": replace(
                    HELD_OUT_VALUES, changes_around=CHANGES_AROUND
                ),
            },
            wrong="old value",
        ),
    ),
    "sides": Suite("who tells a fact, whom it is about, what kind of value it has", of_shapes("sides", _SIDES)),
    "distance": Suite("unrelated conversation between telling and asking", distance),
    "untold": Suite("questions about facts never told", untold),
    "misled": Suite("questions asked again after a wrong reply of the model", misled),
    "overview": Suite("questions for everything that is remembered", overview),
    "harmless": Suite("unrelated prompts with a full memory", harmless),
    "natural": Suite("whole turns with free replies", natural),
    "people": Suite("what people tell in their own words, one and ten conversations in a memory", people_suite()),
}
"""By command-line name, quick ones first."""
