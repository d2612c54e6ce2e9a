"""The effect of a full memory on unrelated prompts. It should have none."""

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
"""Number of facts in a conversation whose memory counts as full."""

CONVERSATIONS = 12
"""Number of conversations per seed. The prompts are distributed over them."""

REPLY_TOKENS = 32
SCORED_AT_ONCE = 16
MARGIN = "nats lost on the frozen reply"
"""Measure: loss of log-probability of the frozen model's own reply, in nats per token."""

PERPLEXITY = "perplexity against frozen"
"""Measure: perplexity of the neutral replies with memory, divided by that of the frozen model."""

TOLD = "a told value"

DATA = Path(__file__).parent / "data"

Scored = Mapping[Arm, Sequence[Held] | None]


def unrelated_prompts() -> tuple[str, ...]:
    """User prompts that have nothing to do with memory, with other tasks and topics than training's neutral prompts.

    None states or asks for a fact about anybody in the conversation, although those of "first_person" say "my" and "I".
    """
    table = read_table(DATA, "unrelated_prompts")
    return (*table["prompts"], *table["first_person"])


def neutral_replies() -> tuple[tuple[str, str], ...]:
    """(prompt, reply) pairs about nobody in a conversation. A change of the reply's likelihood shows a disturbance."""
    found: tuple[tuple[str, str], ...] = read_table(DATA, "neutral_replies")
    return found


def harmless(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """Replies to unrelated prompts, and the likelihood of neutral texts, with memories of FACTS facts."""
    yield _replies(engine, words, size, watch)
    yield _texts(engine, words, size, watch)


def _replies(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Figure:
    name = f"unrelated prompts, first {REPLY_TOKENS} tokens of the reply"
    cases = _distributed(words, size, [(prompt, "") for prompt in unrelated_prompts()])
    prompts = [asked.conversation for case in cases for asked in case.questions]
    with watch(f"{SUITE}: {name}") as advance:
        steps = Steps(advance, len(cases) + 2 * len(Arm) * asked_count(cases))
        states = absorbed(engine, [case.messages for case in cases], steps.done)
        read = readings(cases, states, tuple(Arm))
        said = replies_by_arm(engine, cases, read, steps.done, tokens=REPLY_TOKENS)
        # If the model ends its turn at once, there is nothing to score.
        frozen = [reply if reply.strip() else None for reply in said[Arm.OFF]]
        lost = _likelihood_loss(engine, read, prompts, frozen, steps.done)
    figure = figure_of(Title(SUITE, name, wrong=TOLD), cases, said, mean_tokens(engine, cases))
    drawn = drawn_from(cases)
    arms = with_same(figure.arms, drawn, said)
    for arm, (nats, counts) in lost.items():
        arms[arm][MARGIN] = drawn.estimate(nats, counts, unit="nats")
    return replace(figure, arms=arms)


def _texts(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Figure:
    name = "neutral replies, written by people"
    cases = _distributed(words, size, neutral_replies())
    prompts = [[Message("user", asked.text)] for case in cases for asked in case.questions]
    with watch(f"{SUITE}: {name}") as advance:
        steps = Steps(advance, len(cases) + len(Arm) * asked_count(cases))
        states = absorbed(engine, [case.messages for case in cases], steps.done)
        read = readings(cases, states, tuple(Arm))
        lost = _likelihood_loss(
            engine, read, prompts, [asked.answer for case in cases for asked in case.questions], steps.done
        )
    drawn = drawn_from(cases)
    arms: dict[str, dict[str, Estimate]] = {
        arm: {PERPLEXITY: drawn.estimate(nats, counts, unit="ratio", shown_as=math.exp)}
        for arm, (nats, counts) in lost.items()
    }
    return Figure(SUITE, name, len(prompts), len(cases), mean_tokens(engine, cases), arms)


def _distributed(words: Sequence[str], size: Size, pairs: Sequence[tuple[str, str]]) -> list[Case]:
    """Prompts with their replies, shuffled for each seed and distributed over its conversations."""
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


def _likelihood_loss(
    engine: DeltaMemEngine,
    read: Scored,
    prompts: Sequence[Sequence[Message]],
    texts: Sequence[str | None],
    tick: Callable[[int], None],
) -> dict[str, tuple[list[float], list[float]]]:
    """For each arm and prompt: the loss of the text's log-probability against no memory, in nats, and its token count.

    A text of None has 0 tokens.
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
    """The states that replies to these prompts read."""
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
