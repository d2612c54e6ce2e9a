"""Recall from the state alone: a conversation is absorbed, then asked about in a fresh prompt."""

from __future__ import annotations

import json
import random
import re
import unicodedata
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
SPARE_TOKENS = 2
"""Tokens beyond the answer's own, which show whether its last word ends where the answer does."""


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
    """`count` episodes of one shape, whose split decides whether their values were trained on.

    Equal arguments give equal episodes.
    """
    generator, rng = EpisodeGenerator(words, shape), random.Random(f"evaluation {seed}")
    return [generator.draw(rng) for _ in range(count)]


def read_episodes(path: Path) -> list[Episode]:
    """Episodes from a JSONL file of {"messages": […], "questions": [{"question", "answer"}]}.

    A question may carry "prefix", the beginning of the reply which the answer completes; without it the
    model's free reply is searched for the answer. Raises MessageError naming the line that does not fit.
    """
    episodes = []
    # Bytes are split at line feeds alone: text may hold other characters that end a line.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            episodes.append(_episode(json.loads(line)))
        except ValueError as error:
            raise MessageError(
                f"{path}, line {number}: {error}; expected an object "
                '{"messages": [{"role", "content"}], "questions": [{"question", "answer"}]}'
            ) from None
    if not episodes:
        raise ConfigError(f"{path} holds no episodes; expected one JSON object a line")
    return episodes


def _episode(row: object) -> Episode:
    """Raises ValueError saying what does not fit."""
    if not isinstance(row, dict):
        raise ValueError(f"found {row!r}")
    for key in ("messages", "questions"):
        if not isinstance(row.get(key), list) or not row[key]:
            raise ValueError(f"{key!r} is {row.get(key)!r}")
    questions = tuple(_question(item, f"question {number}") for number, item in enumerate(row["questions"], 1))
    return Episode(as_messages(row["messages"]), questions)


def _question(item: object, where: str) -> Question:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {item!r}")
    for key in ("question", "answer", "prefix"):
        value = item.get(key, "" if key == "prefix" else None)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError(f"{where} has {key} {value!r}, which is no text")
    if not words(str(item["answer"])):
        raise ValueError(f"{where} has answer {item['answer']!r}, which has no word that a reply could match")
    return Question(str(item["question"]), str(item["answer"]), str(item.get("prefix", "")))


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

    `facts` is only noted in the report. `advance(done, total)` is called as work gets done.
    Raises ConfigError when there is nothing to ask, an answer has no words, or the wrong conversation is
    among the arms and there is only one.
    """
    asked = [(index, question) for index, episode in enumerate(episodes) for question in episode.questions]
    _check_answers([question for _, question in asked])
    others = strangers([_hits(episode) for episode in episodes]) if Arm.WRONG in arms else []
    total, done = len(episodes) + len(arms) * len(asked), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        advance(done, total)

    states: list[MemoryState] = []
    for episode in episodes:
        states.append(engine.absorb(engine.new_state(), episode.messages))
        tick(1)
    generator = torch.Generator().manual_seed(seed)
    results = {}
    for arm in arms:
        hits = _ask(engine, asked, arm_states(arm, states, others, generator), tick)
        clusters = [index for index, _ in asked]
        first, whole = (_rate(right, clusters, seed) for right in zip(*hits, strict=True))
        results[arm.value] = ArmResult(first, whole)
    tokens = [engine.count_tokens(episode.messages) for episode in episodes]
    return RecallReport(len(episodes), len(asked), facts, states[0].nbytes, sum(tokens) / len(tokens), results)


def _check_answers(questions: Sequence[Question]) -> None:
    if not questions:
        raise ConfigError("the episodes hold no questions; give at least one")
    for question in questions:
        if not words(question.answer):
            raise ConfigError(
                f"the answer to {question.question!r} is {question.answer!r}, expected at least one word; "
                "nothing a model says could match it"
            )


def _hits(episode: Episode) -> frozenset[str]:
    """What would count as right for some question of the episode, whole or by its first word."""
    answers = [words(question.answer.casefold()) for question in episode.questions]
    return frozenset({answer[0] for answer in answers} | {" ".join(answer) for answer in answers})


def _ask(
    engine: DeltaMemEngine,
    asked: Sequence[tuple[int, Question]],
    memories: Sequence[MemoryState] | None,
    tick: Callable[[int], None],
) -> list[tuple[bool, bool]]:
    """For each (episode, question) whether the first word and the whole answer were right, by that episode's memory."""
    hits: list[tuple[bool, bool]] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        given = None if memories is None else [memories[index] for index, _ in part]
        replies = _replies(engine, given, [question for _, question in part])
        hits += [_match(question, reply) for (_, question), reply in zip(part, replies, strict=True)]
        tick(len(part))
    return hits


def _replies(engine: DeltaMemEngine, states: Sequence[MemoryState] | None, questions: Sequence[Question]) -> list[str]:
    """Greedy replies, completing each question's prefix where it has one."""
    conversations = []
    for question in questions:
        messages = [Message("user", question.question)]
        if question.prefix:
            messages.append(Message("assistant", question.prefix))
        conversations.append(messages)
    longest = max(engine.count_tokens([Message("assistant", question.answer)]) for question in questions)
    if not all(question.prefix for question in questions):
        longest = max(longest, FREE_REPLY_TOKENS)
    return engine.greedy_replies(states, conversations, max_tokens=longest + SPARE_TOKENS)


def _match(question: Question, reply: str) -> tuple[bool, bool]:
    """Whether the first word and whether every word of the answer is there, in place or in a free reply."""
    answer, said = words(question.answer), words(reply)
    if question.prefix:
        return said[:1] == answer[:1], said[: len(answer)] == answer
    spots = [place for place, word in enumerate(said) if word == answer[0]]
    return bool(spots), any(said[spot : spot + len(answer)] == answer for spot in spots)


def words(text: str) -> list[str]:
    """What stands between spaces and punctuation, as written. A number like 3.5 or 10:30 is one word."""
    text = unicodedata.normalize("NFC", text)
    inside = {match.start() for match in re.finditer(r"(?<=\d)[.,:/](?=\d)", text)}
    kept = (letter if place in inside or _in_word(letter) else " " for place, letter in enumerate(text))
    return [word for word in "".join(kept).split() if any(letter.isalnum() for letter in word)]


def _in_word(letter: str) -> bool:
    # Marks belong to the letter before them; where no composed letter exists they stand by themselves.
    return letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")


def _rate(right: Sequence[bool], clusters: Sequence[int], seed: int) -> Rate:
    low, high = bootstrap_interval([float(hit) for hit in right], clusters, seed=seed)
    return Rate(sum(right) / len(right), low, high)
