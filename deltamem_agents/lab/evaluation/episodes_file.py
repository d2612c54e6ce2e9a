"""Reads episodes that a user wrote: one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

from deltamem_agents.errors import ConfigError, MessageError
from deltamem_agents.lab.corpus.episodes import Episode, Question
from deltamem_agents.lab.evaluation.matching import words
from deltamem_agents.types import as_messages


def read_episodes(path: Path) -> list[Episode]:
    """Episodes from a JSONL file of {"messages": […], "questions": [{"question", "answer"}]}.

    A question may have a "prefix", the beginning of the reply, which the answer completes. Without it, the answer is
    searched in the model's free reply. Raises MessageError with the number of the invalid line.
    """
    episodes = []
    # Split at line feeds alone: text may contain other characters that end a line.
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
        raise ConfigError(f"{path} holds no episodes; expected one JSON object per line")
    return episodes


def _episode(row: object) -> Episode:
    """Raises ValueError saying what is invalid."""
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
            raise ValueError(f"{where} has {key} {value!r}, which is not text")
    if not words(str(item["answer"])):
        raise ValueError(f"{where} has answer {item['answer']!r}, which has no word that a reply could match")
    return Question(str(item["question"]), str(item["answer"]), str(item.get("prefix", "")))
