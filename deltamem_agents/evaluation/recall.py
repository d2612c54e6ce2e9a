"""Recall from the state alone: a conversation is absorbed, then asked about in a fresh prompt."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError, MessageError
from deltamem_agents.evaluation.controls import Arm, arm_states, bootstrap_interval, strangers
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.training.episodes import Episode, EpisodeGenerator, EpisodeShape, Question
from deltamem_agents.types import Message, as_messages

BATCH = 16
FREE_REPLY_TOKENS = 24


@dataclass(frozen=True)
class Rate:
    """A share of right answers with its bootstrap 95 % interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmResult:
    """`first`: the answer's first word, `whole`: all of its words, both compared exactly."""

    first: Rate
    whole: Rate


@dataclass(frozen=True)
class RecallReport:
    """One evaluation. `arms` holds the memory's own figure and every control's."""

    episodes: int
    questions: int
    facts: int | None
    state_bytes: int
    history_tokens: float
    arms: dict[str, ArmResult] = field(default_factory=dict)


def generated_episodes(words: Sequence[str], shape: EpisodeShape, count: int, seed: int) -> list[Episode]:
    """`count` episodes of values never trained on. Equal arguments give equal episodes."""
    generator, rng = EpisodeGenerator(words, shape), random.Random(f"evaluation {seed}")
    return [generator.draw(rng) for _ in range(count)]


def read_episodes(path: Path) -> list[Episode]:
    """Episodes from a JSONL file of {"messages": […], "questions": [{"question", "answer"}]}.

    A question may carry "prefix", the beginning of the reply which the answer completes; without it the
    model's free reply is searched for the answer. Raises MessageError naming the line that does not fit.
    """
    episodes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            questions = tuple(
                Question(str(item["question"]), str(item["answer"]), str(item.get("prefix", "")))
                for item in row["questions"]
            )
            episodes.append(Episode(as_messages(row["messages"]), questions))
        except (ValueError, KeyError, TypeError) as error:
            raise MessageError(
                f"{path}, line {number}: {error!r}; expected an object with 'messages' and 'questions'"
            ) from None
    if not episodes:
        raise ConfigError(f"{path} holds no episodes; expected one JSON object a line")
    return episodes


def evaluate_recall(
    engine: DeltaMemEngine,
    episodes: Sequence[Episode],
    *,
    arms: Sequence[Arm] = tuple(Arm),
    seed: int = 0,
    facts: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> RecallReport:
    """Absorb every conversation, then ask every question with each arm's memory and greedy decoding.

    `advance(done, total)` is called as work gets done.
    """
    asked = [(index, question) for index, episode in enumerate(episodes) for question in episode.questions]
    total, done = len(episodes) + len(arms) * len(asked), 0
    states: list[MemoryState] = []
    for episode in episodes:
        states.append(engine.absorb(engine.new_state(), episode.messages))
        done += 1
        advance(done, total)
    others = strangers([frozenset(question.answer for question in episode.questions) for episode in episodes])
    generator = torch.Generator().manual_seed(seed)
    results: dict[str, ArmResult] = {}
    for arm in arms:
        memories = arm_states(arm, states, others, generator)
        first: list[bool] = []
        whole: list[bool] = []
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            given = None if memories is None else [memories[index] for index, _ in part]
            for (_, question), reply in zip(part, _replies(engine, given, [q for _, q in part]), strict=True):
                hit_first, hit_whole = _match(question, reply)
                first.append(hit_first)
                whole.append(hit_whole)
            done += len(part)
            advance(done, total)
        clusters = [index for index, _ in asked]
        results[arm.value] = ArmResult(_rate(first, clusters, seed), _rate(whole, clusters, seed))
    tokens = [engine.count_tokens(episode.messages) for episode in episodes]
    return RecallReport(len(episodes), len(asked), facts, states[0].nbytes, sum(tokens) / len(tokens), results)


def _replies(engine: DeltaMemEngine, states: Sequence[MemoryState] | None, questions: Sequence[Question]) -> list[str]:
    """Greedy replies, completing each question's prefix where it has one."""
    conversations = []
    for question in questions:
        messages = [Message("user", question.question)]
        if question.prefix:
            messages.append(Message("assistant", question.prefix))
        conversations.append(messages)
    longest = max(engine.count_tokens([Message("assistant", question.answer)]) for question in questions)
    free = any(not question.prefix for question in questions)
    return engine.greedy_replies(states, conversations, max_tokens=FREE_REPLY_TOKENS if free else longest + 2)


def _match(question: Question, reply: str) -> tuple[bool, bool]:
    """Whether the first word and whether every word of the answer is there, in place or in a free reply."""
    answer, words = _words(question.answer), _words(reply)
    if question.prefix:
        return words[:1] == answer[:1], words[: len(answer)] == answer
    spots = [place for place, word in enumerate(words) if word == answer[0]]
    return bool(spots), any(words[spot : spot + len(answer)] == answer for spot in spots)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _rate(right: Sequence[bool], clusters: Sequence[int], seed: int) -> Rate:
    low, high = bootstrap_interval([float(hit) for hit in right], clusters, seed=seed)
    return Rate(sum(right) / len(right), low, high)
