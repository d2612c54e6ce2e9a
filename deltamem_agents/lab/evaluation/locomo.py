"""LoCoMo: questions about conversations of two people over many sessions. The user provides the data file.

Answers are scored with the benchmark's own token F1. An adversarial question asks for something never said and offers
two choices, as in the benchmark; the right choice is that it was not mentioned.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.context import Line
from deltamem_agents.lab.evaluation.long_tasks import LongQuestion, LongTask, Rows
from deltamem_agents.lab.evaluation.token_f1 import listed_f1, token_f1
from deltamem_agents.types import Message

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
ANSWERABLE = frozenset(name for number, name in CATEGORIES.items() if number != 5)
ROWS = Rows(
    "locomo",
    "token F1",
    {
        **{name: frozenset({name}) for name in CATEGORIES.values()},
        "all but adversarial": ANSWERABLE,
        "all": ANSWERABLE | {CATEGORIES[5]},
    },
)
NOT_MENTIONED = "Not mentioned in the conversation"

_EXPECTED = (
    'expected LoCoMo\'s form: a list of {"sample_id", "conversation": {"speaker_a", "speaker_b", "session_1": '
    '[{"speaker", "text"}], "session_1_date_time", …}, "qa": [{"question", "answer", "category"}]}'
)


def read_locomo(path: Path) -> list[LongTask]:
    """One task per conversation of the file. Raises ConfigError with the place of the first error."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; {_EXPECTED}") from None
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{path}: found {type(data).__name__} of {_size(data)}; {_EXPECTED}")
    tasks = []
    for number, sample in enumerate(data, 1):
        try:
            tasks.append(_task(sample))
        except ValueError as error:
            raise ConfigError(f"{path}, conversation {number}, {error}; {_EXPECTED}") from None
    return tasks


def locomo_score(question: LongQuestion, reply: str) -> float:
    """Scores the reply's first line against the gold answer by the rule of the question's category."""
    said, gold = reply.strip().split("\n")[0], question.golds[0]
    if question.kind == CATEGORIES[5]:
        return float(_denies(said, gold))
    if question.kind == CATEGORIES[1]:
        return listed_f1(said, gold)
    return token_f1(said, gold)


def _denies(said: str, letter: str) -> bool:
    """Whether the reply chooses this letter's option, or says in words that there is no such information."""
    lower = said.lower()
    chosen = re.match(r"\W*([ab])\b", lower)
    return "not mentioned" in lower or "no information" in lower if chosen is None else chosen[1] == letter


def _task(sample: Any) -> LongTask:
    """Raises ValueError saying where it is invalid and what was found there."""
    told = _field(sample, "conversation", dict, "the sample")
    speakers = [_field(told, name, str, "conversation") for name in ("speaker_a", "speaker_b")]
    sessions: list[tuple[Message, ...]] = []
    lines: list[Line] = []
    for session in sorted((name for name in told if re.fullmatch(r"session_\d+", name)), key=_number):
        date = _field(told, f"{session}_date_time", str, "conversation")
        spoken: list[Message] = []
        for place, turn in enumerate(_field(told, session, list, "conversation"), 1):
            where = f"{session}, turn {place}"
            speaker, said = _field(turn, "speaker", str, where), _said(turn, where)
            if speaker not in speakers:
                raise ValueError(f"{where}: speaker is {speaker!r}, which is none of {', '.join(speakers)}")
            opened = f"[{date}] " if place == 1 else ""
            # Neither of the two is the assistant, whose statements stand behind the others'.
            spoken.append(Message("user", f"{opened}{speaker}: {said}"))
            lines.append(Line(f"{speaker}: {said}", f"[{date}]"))
        sessions.append(tuple(spoken))
    if not lines:
        raise ValueError("conversation: there is no session_1")
    name = str(sample.get("sample_id", ""))
    asked = enumerate(_field(sample, "qa", list, "the sample"), 1)
    questions = tuple(_question(row, f"qa {number}", speakers, f"{name} {number}") for number, row in asked)
    return LongTask(name, tuple(sessions), tuple(lines), questions)


def _said(turn: Mapping[str, Any], where: str) -> str:
    text = _field(turn, "text", str, where)
    caption = turn.get("blip_caption")
    return f"{text} [shows a picture: {caption}]" if isinstance(caption, str) and caption else text


def _question(row: Any, where: str, speakers: list[str], seed: str) -> LongQuestion:
    question, category = _field(row, "question", str, where), _field(row, "category", int, where)
    if category not in CATEGORIES:
        raise ValueError(f"{where}: category is {category}, which is none of 1 to 5")
    about = f"This is about the conversation between {speakers[0]} and {speakers[1]}. "
    if category == 5:
        claimed = str(_field(row, "adversarial_answer", (str, int, float), where))
        options = [NOT_MENTIONED, claimed]
        random.Random(seed).shuffle(options)
        text = f"{about}{question} Choose one: (a) {options[0]} (b) {options[1]}\nAnswer with a or b:"
        return LongQuestion(text, question, ("ab"[options.index(NOT_MENTIONED)],), CATEGORIES[5])
    gold = str(_field(row, "answer", (str, int, float), where))
    if category == 3:
        # In this category, the benchmark's answers continue with reasons after a semicolon.
        gold = gold.split(";")[0].strip()
    dated = " Give a date or a time." if category == 2 else ""
    text = f"{about}Answer in a few words.{dated}\nQuestion: {question}\nShort answer:"
    return LongQuestion(text, question, (gold,), CATEGORIES[category])


def _field(row: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    found = row.get(name) if isinstance(row, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"{where}: {name!r} is {found!r}")
    return found


def _number(session: str) -> int:
    return int(session.rsplit("_", 1)[1])


def _size(data: object) -> str:
    return f"{len(data)} items" if isinstance(data, (list, dict)) else repr(data)
