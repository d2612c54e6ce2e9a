"""Recall after unrelated conversation: facts are told, small talk follows, then the facts are asked for.

Each memory absorbs one stream of small talk and is asked at several distances along it, so shorter distances cost
nothing extra. Every conversation has its own small talk, read and written with its own state as in use, since what a
filler token writes depends on the state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.evaluation.controls import Arm, Held
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, Size, drawn_episodes
from deltamem_agents.lab.evaluation.recall import (
    Steps,
    Title,
    Watch,
    absorbed,
    asked_count,
    figure_of,
    readings,
    replies_by_arm,
)
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.types import Message

FACTS = 4
"""Number of facts per conversation. Their questions share the cost of its small talk."""

SESSION_TOKENS = 1000
"""Length of the conversations in which small talk is absorbed, in content tokens. Typical of an agent."""


def distance(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
    """Recall of FACTS facts after each of the size's distances."""
    drawn = list(drawn_episodes(words, replace(HELD_OUT_VALUES, facts=FACTS, distractors=(0, 0)), size))
    cases = [one.case() for one in drawn]
    talks = [_SmallTalk(engine, one.rng) for one in drawn]
    told = sum(engine.count_tokens(case.messages) for case in cases)
    states: list[Held] = []
    heard = -1
    for tokens in size.distances:
        name = f"{tokens:,} tokens" if tokens else "at once"
        with watch(f"distance: {name}") as advance:
            sessions = tokens // SESSION_TOKENS - max(heard, 0)
            steps = Steps(advance, len(cases) * (sessions + (heard < 0)) + len(Arm) * asked_count(cases))
            if heard < 0:
                states = absorbed(engine, [case.messages for case in cases], steps.done)
            for _ in range(sessions):
                states = absorbed(engine, [talk.session() for talk in talks], steps.done, states)
            replies = replies_by_arm(engine, cases, readings(cases, states, tuple(Arm)), steps.done)
        heard = tokens // SESSION_TOKENS
        absorbed_tokens = (told + sum(talk.tokens for talk in talks)) / len(cases)
        yield figure_of(Title("distance", name, tokens), cases, replies, absorbed_tokens)


class _SmallTalk:
    """A stream of small-talk conversations. `tokens`: number of content tokens so far."""

    def __init__(self, engine: DeltaMemEngine, rng: random.Random) -> None:
        self._tokenizer, self._rng, self.tokens = engine.tokenizer, rng, 0

    def session(self) -> list[Message]:
        messages: list[Message] = []
        end = self.tokens + SESSION_TOKENS
        while self.tokens < end:
            user, reply = small_talk(self._rng, held_out=True)
            messages += [Message("user", user), Message("assistant", reply)]
            self.tokens += sum(len(self._tokenizer.encode(text, add_special_tokens=False)) for text in (user, reply))
        return messages
