"""Which statements a reply is about, the state that it reads, and which messages come back to the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor

from deltamem_agents.chat.terms import terms_of
from deltamem_agents.inference.collecting import Hearing, hear, queries_in
from deltamem_agents.inference.decode import Pointing, Prompt
from deltamem_agents.inference.kept import KeptCaches
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import Seat
from deltamem_agents.memory.pointer import Candidates, PointedAt, Pointer
from deltamem_agents.memory.recall import STRONG, Matcher
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Statement
from deltamem_agents.turns.memories import AgentMemory, index_of, scan_statements
from deltamem_agents.types import Message, Recall, Recalled

ASKED_TOKENS = 512
"""Tokens of a question that are matched, its last ones."""

AROUND_MESSAGE = 8
"""Tokens that a template puts around a message, about."""

EXCHANGE_MESSAGES = 4
"""How far from a statement its exchange reaches, at most, in either direction."""


@dataclass(frozen=True)
class Recollection:
    """What a reply rests on.

    `state`: what it reads. `chosen`: statements with their scores, best first. `shown`: messages of theirs that return
    to the window, oldest first; `in_window`: whose they are. `asked`: token ids of the question.
    """

    state: MemoryState
    chosen: tuple[tuple[Statement, float], ...] = ()
    shown: tuple[Message, ...] = ()
    in_window: frozenset[str] = frozenset()
    asked: tuple[int, ...] = ()

    def shown_in(self, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """The messages with what returns to the window before the question, and at which position that stands."""
        at = len(messages) - len(asked_of(messages))
        return [*messages[:at], *self.shown, *messages[at:]], at

    @property
    def recalled(self) -> tuple[Recalled, ...]:
        return tuple(
            Recalled(
                each.id,
                each.text,
                each.role,
                each.thread,
                each.created,
                score,
                "state+window" if each.id in self.in_window else "state",
            )
            for each, score in self.chosen
        )


def recollect(
    speaker: MemoryModel,
    memory: AgentMemory,
    fresh: Sequence[Statement],
    messages: Sequence[Message],
    recall: Recall,
    matcher: Matcher,
    caches: KeptCaches,
    seat: Seat[OneToken] | None = None,
) -> tuple[Recollection, Hearing | None]:
    """What the reply to `messages` reads of a memory that is kept as statements; and the question, where it was heard.

    `fresh`: statements of this turn that the prompt does not show.
    `caches`: where the question's lead may be. `seat`: the turn's.
    """
    nothing = MemoryState.zeros_like(memory.base)
    if recall.read == "none":
        return Recollection(nothing), None
    if recall.read == "all":
        return Recollection(scan_statements(fresh, memory.state, memory.fades)), None
    asked = asked_of(messages)
    chosen, heard = choose(speaker, memory, fresh, asked, recall, matcher, caches, seat) if asked else ([], None)
    in_order = sorted((each for each, _ in chosen), key=lambda each: (each.created, each.place))
    state = scan_statements(in_order, memory.base, memory.fades)
    always = recall.window_tokens is not None or len(chosen) > 1
    able = [each for each, _ in chosen if always or _says_much(each, matcher)]
    shown, in_window = exchanges(speaker, memory, able, messages, shown_tokens(recall, matcher))
    ids = () if heard is None else _content_ids(heard.prompt)
    return Recollection(state, tuple(chosen), shown, in_window, ids), heard


def asked_of(messages: Sequence[Message]) -> Sequence[Message]:
    """What a reply is asked for: the last user message and what followed it."""
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    return messages[places[-1] :] if places else messages[-1:]


def choose(
    speaker: MemoryModel,
    memory: AgentMemory,
    fresh: Sequence[Statement],
    asked: Sequence[Message],
    recall: Recall,
    matcher: Matcher,
    caches: KeptCaches,
    seat: Seat[OneToken] | None = None,
) -> tuple[list[tuple[Statement, float]], Hearing | None]:
    """The statements that a question is about, with their scores, best first; and the question as it was heard."""
    statements = [*memory.statements, *fresh]
    able = torch.tensor([each.wrote and _allowed(each, recall) for each in statements], dtype=torch.bool)
    if not able.any():
        return [], None
    prompt = speaker.prompts.reading(asked).last(ASKED_TOKENS)
    heard = hear(speaker, prompt, caches.lead_of(prompt), seat)
    queries = queries_in(speaker, heard)
    # Words of what a tool returned, or of a reply that was begun, are not the question's.
    spoken = [message for message in asked if message.role == "user"] or asked
    terms = [term for message in spoken for term in terms_of(message.content)]
    if fresh:
        best = index_of(statements, matcher).chosen(queries, terms, able)
    else:
        best = memory.chosen(matcher, queries, terms, able)
    return [(statements[number], score) for number, score in best], heard


def shown_tokens(recall: Recall, matcher: Matcher) -> int:
    """Tokens of a prompt for what returns to the window."""
    return matcher.show_tokens if recall.window_tokens is None else recall.window_tokens


def _says_much(statement: Statement, matcher: Matcher) -> bool:
    return sum(strength >= STRONG for strength in statement.strengths) >= matcher.show_from


def _content_ids(prompt: Prompt) -> tuple[int, ...]:
    return tuple(token for token, owner in zip(prompt.ids, prompt.message_ids, strict=True) if owner >= 0)


def _allowed(statement: Statement, recall: Recall) -> bool:
    young = recall.max_age is None or datetime.now(UTC) - datetime.fromisoformat(statement.created) <= recall.max_age
    return young and statement.role in recall.roles


def exchanges(
    speaker: MemoryModel,
    memory: AgentMemory,
    chosen: Sequence[Statement],
    messages: Sequence[Message],
    budget: int,
) -> tuple[tuple[Message, ...], frozenset[str]]:
    """The messages around the chosen statements, oldest first, as far as they fit into `budget` tokens.

    Whose statements they are is said beside. Nothing is shown that `messages` have already.
    """
    if budget <= 0 or not chosen:
        return (), frozenset()
    seen = {(message.role, message.content.strip()) for message in messages}
    by_place = {(each.thread, each.place): each for each in memory.statements}
    shown: dict[str, Statement] = {}
    in_window = set()
    for statement in chosen:
        if not statement.text or (statement.role, statement.text.strip()) in seen:
            continue
        around = _exchange(statement, by_place)
        new = [each for each in around if each.id not in shown]
        size = speaker.prompts.content_tokens([_message(each) for each in new]) + AROUND_MESSAGE * len(new)
        if size > budget:
            continue
        budget -= size
        shown |= {each.id: each for each in new}
        in_window.add(statement.id)
    ordered = sorted(shown.values(), key=lambda each: (each.created, each.place))
    return tuple(map(_message, ordered)), frozenset(in_window)


def _exchange(statement: Statement, by_place: dict[tuple[str, int], Statement]) -> list[Statement]:
    """From the user's message before a statement to the reply behind it, tool calls left out."""
    around = [statement]
    for step in range(1, EXCHANGE_MESSAGES + 1):
        if around[0].role == "user":
            break
        before = by_place.get((statement.thread, statement.place - step))
        if before is None:
            break
        around.insert(0, before)
    for step in range(1, EXCHANGE_MESSAGES + 1):
        if around[-1].role == "assistant" and around[-1].text:
            break
        behind = by_place.get((statement.thread, statement.place + step))
        if behind is None or behind.role == "user":
            break
        around.append(behind)
    return [each for each in around if each.text and (each is statement or each.role != "tool")]


def _message(statement: Statement) -> Message:
    """A statement as a message to show. What a tool said without its call is told as the assistant's."""
    return Message("assistant" if statement.role == "tool" else statement.role, statement.text)


def pointing(pointer: Pointer | None, recollection: Recollection) -> Pointing | None:
    """What says the chosen statements exactly; None where nothing was chosen or their tokens are not kept."""
    told = [each for each, _ in recollection.chosen if each.tokens and each.written]
    if pointer is None or not told:
        return None
    parts = []
    for each in told:
        assert each.writes is not None
        parts.append((each.writes, [each.tokens[place] for place in each.written], each.tokens))
    return _Pointing(pointer, parts, recollection.asked)


@dataclass
class _Pointing:
    """Raises the odds of the statements' tokens; knows what the reply said so far."""

    pointer: Pointer
    statements: Sequence[PointedAt]
    asked: Sequence[int]
    candidates: Candidates | None = None
    said: list[int] = field(default_factory=list)

    def added(self, logits: Tensor, queries: Tensor, token: int) -> Tensor:
        if self.candidates is None:
            # The first token is the prompt's last one, where the reply begins.
            self.candidates = self.pointer.candidates(self.statements, queries.cpu(), self.asked)
        else:
            self.said.append(token)
        ids, bonus = self.pointer.bonus(logits.cpu(), queries.cpu(), self.candidates, self.said)
        return logits.index_add(0, ids.to(logits.device), bonus.to(logits.device))
