"""The hand-written natural suite: what people tell in their own words, asked for in a new conversation.

A memory holds one conversation, or all ten conversations of a person. Replies are free. Besides the controls there are
two alternatives without memory: the history in the prompt, and the messages that a BM25 search finds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.evaluation.context import bm25
from deltamem_agents.lab.evaluation.controls import Arm, Held, arm_memories
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.estimates import Drawn, Estimate
from deltamem_agents.lab.evaluation.matching import contains
from deltamem_agents.lab.evaluation.recall import FOUND, WHOLE, Steps, Watch, absorbed, replies_of
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.lab.evaluation.untold import FREE, SAME
from deltamem_agents.types import Message, Recalled, as_messages

SUITE = "people"
DATA = Path(__file__).parent / "data" / "natural"
REPLY_TOKENS = 32
HISTORY_TOKENS = 3500
"""Maximum number of history tokens in the prompt; the newest messages are kept."""

HISTORY_QUESTIONS = 48
"""Maximum number of questions asked with ten conversations in the prompt, which take 100 times as long to read as a
question."""

SNIPPETS = 4
HISTORY_ARM, SNIPPETS_ARM = "history in the prompt", "BM25 snippets"

Split = Literal["validation", "evaluation"]


@dataclass(frozen=True)
class PersonQuestion:
    """A question. `owner`: index of the memory to ask. `answers`: accepted spellings; empty if never told."""

    owner: int
    ask: str
    answers: tuple[str, ...] = ()

    def answered_by(self, text: str) -> bool:
        return any(names(text, answer) for answer in self.answers)


def names(text: str, value: str) -> bool:
    """Whether the text contains the value, ignoring case."""
    return contains(text.casefold(), value.casefold())


@cache
def people(split: Split) -> tuple[Mapping[str, Any], ...]:
    """The people of a split, as in its JSON file."""
    return tuple(json.loads((DATA / f"{split}.json").read_text(encoding="utf-8"))["people"])


def people_suite(
    split: Split = "evaluation",
) -> Callable[[DeltaMemEngine, Sequence[str], Size, Watch], Iterator[Figure]]:
    """The suite on a split's people."""

    def run(engine: DeltaMemEngine, words: Sequence[str], size: Size, watch: Watch) -> Iterator[Figure]:
        told = people(split)
        alone = [[as_messages(one["messages"])] for person in told for one in person["conversations"]]
        questions = [
            PersonQuestion(owner, one["ask"], tuple(one["answers"]))
            for owner, conversation in enumerate(one for person in told for one in person["conversations"])
            for one in conversation["questions"]
        ]
        yield _figure(engine, "one conversation", alone, _evenly_spread(questions, size.questions), watch)
        whole = [[as_messages(one["messages"]) for one in person["conversations"]] for person in told]
        owners = [number for number, person in enumerate(told) for _ in person["conversations"]]
        of_person = [PersonQuestion(owners[one.owner], one.ask, one.answers) for one in questions]
        yield _figure(
            engine, "ten conversations in one memory", whole, _evenly_spread(of_person, size.questions), watch
        )
        values = [[one.answers for one in of_person if one.owner == number] for number in range(len(told))]
        for kind, name in (("never_told", "never told"), ("unrelated", "unrelated prompts")):
            asked = [PersonQuestion(number, ask) for number, person in enumerate(told) for ask in person[kind]]
            yield _unanswerable_figure(engine, name, whole, asked, values, watch)

    return run


def _figure(
    engine: DeltaMemEngine,
    name: str,
    told: Sequence[Sequence[Sequence[Message]]],
    questions: Sequence[PersonQuestion],
    watch: Watch,
) -> Figure:
    asked = [[Message("user", one.ask)] for one in questions]
    history = questions[:: max(1, len(questions) // HISTORY_QUESTIONS)] if len(told[0]) > 1 else questions
    with watch(f"{SUITE}: {name}") as advance:
        steps = Steps(advance, sum(map(len, told)) + (len(Arm) + 1) * len(questions) + len(history))
        memories = _absorb_all(engine, told, steps.done)
        rests: list[Sequence[Recalled]] = []
        said: dict[str, list[str]] = {}
        for arm in Arm:
            given = _given(arm, memories, questions)
            rested = rests if arm is Arm.MEMORY else None
            said[arm.value] = replies_of(engine, arm, given, asked, REPLY_TOKENS, steps.done, rested=rested)
        said[SNIPPETS_ARM] = _frozen_replies(
            engine, [_snippets(told[one.owner], one.ask) for one in questions], steps.done
        )
        behind = [_history(engine, told[one.owner], one.ask) for one in history]
        said[HISTORY_ARM] = _frozen_replies(engine, behind, steps.done)
    arms: dict[str, dict[str, Estimate]] = {}
    for label, replies in said.items():
        of_arm = history if label == HISTORY_ARM else questions
        hits = [float(one.answered_by(reply)) for one, reply in zip(of_arm, replies, strict=True)]
        arms[label] = {WHOLE: _drawn(of_arm).estimate(hits)}
    if rests:
        pairs = zip(questions, rests, strict=True)
        first = [float(any(one.answered_by(each.text) for each in found[:1])) for one, found in pairs]
        arms[Arm.MEMORY.value][FOUND] = _drawn(questions).estimate(first)
    return Figure(SUITE, name, len(questions), len(told), _tokens(engine, told), arms)


def _unanswerable_figure(
    engine: DeltaMemEngine,
    name: str,
    told: Sequence[Sequence[Sequence[Message]]],
    questions: Sequence[PersonQuestion],
    values: Sequence[Sequence[tuple[str, ...]]],
    watch: Watch,
) -> Figure:
    """Questions that no told fact answers: how often the reply names a told value, or equals the frozen model's."""
    asked = [[Message("user", one.ask)] for one in questions]
    with watch(f"{SUITE}: {name}") as advance:
        steps = Steps(advance, sum(map(len, told)) + len(Arm) * len(questions))
        memories = _absorb_all(engine, told, steps.done)
        said = {
            arm: replies_of(engine, arm, _given(arm, memories, questions), asked, REPLY_TOKENS, steps.done)
            for arm in Arm
        }
    arms: dict[str, dict[str, Estimate]] = {}
    for arm, replies in said.items():
        pairs = list(zip(questions, replies, said[Arm.OFF], strict=True))
        wrong = [
            # A value that the question itself contains does not count.
            any(
                names(reply, each) and not names(one.ask, each) for spellings in values[one.owner] for each in spellings
            )
            for one, reply, _ in pairs
        ]
        same = [reply == frozen for _, reply, frozen in pairs]
        drawn = _drawn(questions)
        arms[arm.value] = {
            FREE: drawn.estimate([float(hit) for hit in wrong]),
            SAME: drawn.estimate([float(hit) for hit in same]),
        }
    return Figure(SUITE, name, len(questions), len(told), _tokens(engine, told), arms)


def _absorb_all(
    engine: DeltaMemEngine, told: Sequence[Sequence[Sequence[Message]]], tick: Callable[[int], None]
) -> list[Held]:
    """The memory after each person's conversations, absorbed in order."""
    memories: list[Held] | None = None
    for number in range(len(told[0])):
        memories = absorbed(engine, [conversations[number] for conversations in told], tick, memories)
    assert memories is not None
    return memories


def _given(arm: Arm, memories: Sequence[Held], questions: Sequence[PersonQuestion]) -> list[Held] | None:
    # Half of the list further on, so that the wrong conversation belongs to another person.
    others = [(place + len(memories) // 2) % len(memories) for place in range(len(memories))]
    if arm is Arm.RANDOM:
        generator = torch.Generator().manual_seed(0)
        found = [arm_memories(arm, [memories[one.owner]], [0], generator) for one in questions]
        return [each for held in found if held is not None for each in held]
    given = arm_memories(arm, memories, others, torch.Generator())
    return None if given is None else [given[one.owner] for one in questions]


def _frozen_replies(
    engine: DeltaMemEngine, conversations: Sequence[Sequence[Message]], tick: Callable[[int], None]
) -> list[str]:
    """Replies of the frozen model, in small batches, since these prompts are long."""
    found: list[str] = []
    for start in range(0, len(conversations), 4):
        part = conversations[start : start + 4]
        found += engine.greedy_replies(None, part, max_tokens=REPLY_TOKENS)
        tick(len(part))
    return found


def _history(engine: DeltaMemEngine, told: Sequence[Sequence[Message]], ask: str) -> list[Message]:
    """The newest messages of all conversations, and the question."""
    messages = [message for conversation in told for message in conversation]
    sizes = [engine.count_tokens([message]) + 8 for message in messages]
    start = next((at for at in range(len(messages)) if sum(sizes[at:]) <= HISTORY_TOKENS), len(messages))
    while start < len(messages) and messages[start].role != "user":
        start += 1
    return [*messages[start:], Message("user", ask)]


def _snippets(told: Sequence[Sequence[Message]], ask: str) -> list[Message]:
    """A system message with the messages that a search finds, and the question."""
    texts = [message.content for conversation in told for message in conversation]
    index = bm25()([_terms(text) for text in texts])
    scores = index.get_scores(_terms(ask))
    best = sorted(range(len(texts)), key=lambda at: -scores[at])[:SNIPPETS]
    found = "\n".join(texts[at] for at in sorted(best) if scores[at] > 0)
    told_before = Message("system", f"What was said in earlier conversations with the user:\n{found}")
    return [told_before, Message("user", ask)]


def _terms(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _evenly_spread(questions: Sequence[PersonQuestion], count: int) -> list[PersonQuestion]:
    """At most `count` questions, evenly spread over all people."""
    if len(questions) <= count:
        return list(questions)
    return [questions[number * len(questions) // count] for number in range(count)]


def _drawn(questions: Sequence[PersonQuestion]) -> Drawn:
    return Drawn([one.owner for one in questions], [0] * len(questions))


def _tokens(engine: DeltaMemEngine, told: Sequence[Sequence[Sequence[Message]]]) -> float:
    return sum(engine.count_tokens(one) for conversations in told for one in conversations) / len(told)
