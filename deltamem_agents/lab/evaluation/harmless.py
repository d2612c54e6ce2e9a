"""What a full memory does to prompts that have nothing to do with it: it should do nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.tables import read_table
from deltamem_agents.lab.evaluation.controls import Arm, Held
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, Size, generated_episodes
from deltamem_agents.lab.evaluation.estimates import Estimate
from deltamem_agents.lab.evaluation.recall import (
    Asked,
    Case,
    Steps,
    Title,
    Watch,
    absorbed,
    asked_count,
    drawn_from,
    figure_of,
    mean_tokens,
    readings,
    replies_by_arm,
)
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.lab.evaluation.untold import with_same
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.types import Message, Score

SUITE = "harmless"
FACTS = 16
"""Told in a conversation whose state counts as full."""

CONVERSATIONS = 12
"""Of one seed; the prompts are dealt out among them."""

REPLY_TOKENS = 32
SCORED_AT_ONCE = 16
MARGIN = "nats lost on the frozen reply"
"""Measure: by how much less likely, per token, the frozen model's own reply becomes."""

PERPLEXITY = "perplexity against frozen"
"""Measure: the ratio of the perplexities of the neutral replies."""

TOLD = "a told value"

DATA = Path(__file__).parent / "data"

Scored = Mapping[Arm, Sequence[Held] | None]


def unrelated_prompts() -> tuple[str, ...]:
    """What users ask that has nothing to do with memory: other tasks and topics than training's neutral prompts.

    None tells or asks for a fact about anybody in the conversation, though those of "first_person" speak of "my" and
    "I" too.
    """
    table = read_table(DATA, "unrelated_prompts")
    return (*table["prompts"], *table["first_person"])


def neutral_replies() -> tuple[tuple[str, str], ...]:
    """Prompts and replies about nobody in a conversation. The likelihood of a reply says what a memory disturbs."""
    found: tuple[tuple[str, str], ...] = read_table(DATA, "neutral_replies")
    return found


def harmless(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """Replies to unrelated prompts, and the likelihood of neutral texts, with states of FACTS facts."""
    yield _replies(engine, words, size, watch)
    yield _texts(engine, words, size, watch)


def _replies(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Figure:
    name = f"unrelated prompts, first {REPLY_TOKENS} tokens of the reply"
    cases = _dealt(words, size, [(prompt, "") for prompt in unrelated_prompts()])
    prompts = [asked.conversation for case in cases for asked in case.questions]
    with watch(f"{SUITE}: {name}") as advance:
        steps = Steps(advance, len(cases) + 2 * len(Arm) * asked_count(cases))
        states = absorbed(engine, [case.messages for case in cases], steps.done)
        read = readings(cases, states, tuple(Arm))
        said = replies_by_arm(engine, cases, read, steps.done, tokens=REPLY_TOKENS)
        # A model may end its turn at once; there is nothing to score then, and nothing is lost.
        frozen = [reply if reply.strip() else None for reply in said[Arm.OFF]]
        lost = _lost(engine, read, prompts, frozen, steps.done)
    figure = figure_of(Title(SUITE, name, wrong=TOLD), cases, said, mean_tokens(engine, cases))
    drawn = drawn_from(cases)
    arms = with_same(figure.arms, drawn, said)
    for arm, (nats, counts) in lost.items():
        arms[arm][MARGIN] = drawn.estimate(nats, counts, unit="nats")
    return replace(figure, arms=arms)


def _texts(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Figure:
    name = "neutral replies, written by people"
    cases = _dealt(words, size, neutral_replies())
    prompts = [[Message("user", asked.text)] for case in cases for asked in case.questions]
    with watch(f"{SUITE}: {name}") as advance:
        steps = Steps(advance, len(cases) + len(Arm) * asked_count(cases))
        states = absorbed(engine, [case.messages for case in cases], steps.done)
        read = readings(cases, states, tuple(Arm))
        lost = _lost(engine, read, prompts, [asked.answer for case in cases for asked in case.questions], steps.done)
    drawn = drawn_from(cases)
    arms: dict[str, dict[str, Estimate]] = {
        arm: {PERPLEXITY: drawn.estimate(nats, counts, unit="ratio", shown_as=math.exp)}
        for arm, (nats, counts) in lost.items()
    }
    return Figure(SUITE, name, len(prompts), len(cases), mean_tokens(engine, cases), arms)


def _dealt(words: Sequence[str], size: Size, pairs: Sequence[tuple[str, str]]) -> list[Case]:
    """Prompts with their replies, in another order for each seed, dealt out among its conversations."""
    shape = replace(HELD_OUT_VALUES, facts=FACTS)
    cases = []
    for seed in size.seeds:
        order = random.Random(f"{SUITE} {seed}").sample(pairs, len(pairs))
        chosen = [order[number % len(order)] for number in range(size.of_seed)]
        count = min(CONVERSATIONS, len(chosen))
        for number, episode in enumerate(generated_episodes(words, shape, count, seed)):
            told = tuple(question.answer for question in episode.questions)
            asked = tuple(Asked(prompt, reply, wrong=told) for prompt, reply in chosen[number::count])
            cases.append(Case(episode.messages, asked, seed))
    return cases


def _lost(
    engine: DeltaMemEngine,
    read: Scored,
    prompts: Sequence[Sequence[Message]],
    texts: Sequence[str | None],
    tick: Callable[[int], None],
) -> dict[str, tuple[list[float], list[float]]]:
    """By arm, for each prompt: the nats by which its text is less likely than without memory, and its tokens.

    A text that is None counts for no tokens.
    """
    scores = {
        arm: _scores(engine, _states(engine, arm, memories, prompts), prompts, texts, tick)
        for arm, memories in read.items()
    }
    return {
        arm.value: (
            [before.logprob - after.logprob for before, after in zip(scores[Arm.OFF], of_arm, strict=True)],
            [float(score.tokens) for score in of_arm],
        )
        for arm, of_arm in scores.items()
    }


def _states(
    engine: DeltaMemEngine, arm: Arm, memories: Sequence[Held] | None, prompts: Sequence[Sequence[Message]]
) -> Sequence[MemoryState] | None:
    """The states that the replies to these prompts read."""
    if memories is None or not engine.selects:
        return cast("Sequence[MemoryState] | None", memories)
    found = engine.recall_batch(cast("Sequence[AgentMemory]", memories), prompts, whatever=arm is Arm.RANDOM)
    return [each.state for each in found]


def _scores(
    engine: DeltaMemEngine,
    states: Sequence[MemoryState] | None,
    prompts: Sequence[Sequence[Message]],
    texts: Sequence[str | None],
    tick: Callable[[int], None],
) -> list[Score]:
    found = [Score(0.0, 0, True)] * len(prompts)
    kept = [place for place, text in enumerate(texts) if text is not None]
    for start in range(0, len(kept), SCORED_AT_ONCE):
        part = kept[start : start + SCORED_AT_ONCE]
        given = None if states is None else [states[place] for place in part]
        answers = [text for place in part if (text := texts[place]) is not None]
        for place, score in zip(part, engine.score_batch(given, [prompts[at] for at in part], answers), strict=True):
            found[place] = score
        tick(len(part))
    return found
