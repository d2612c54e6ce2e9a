"""Recall for a reply: selects statements, builds the state that is read, and chooses messages to show again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from deltamem_agents.chat.questions import asking_part, offers_choices, questions_within
from deltamem_agents.chat.terms import owners_of, terms_of
from deltamem_agents.inference.collecting import Hearing, hear, queries_in
from deltamem_agents.inference.kept import KeptCaches
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.passes import Prompt
from deltamem_agents.inference.pointing import Pointing
from deltamem_agents.inference.quoted_words import QuotedWords, Spelling
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import Seat
from deltamem_agents.memory.matcher import STRONG, Matcher
from deltamem_agents.memory.pointer import Candidates, PointedAt, Pointer
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Statement
from deltamem_agents.turns.memories import AgentMemory, index_of, scan_statements
from deltamem_agents.types import Message, Recall, Recalled

ASKED_TOKENS = 512
"""Maximum number of tokens of a question used for matching. If it is longer, its last tokens are used."""

QUESTIONS = 4
"""Maximum number of questions of a message that are matched."""

AROUND_MESSAGE = 8
"""Approximate number of tokens that a chat template adds to a message."""

EXCHANGE_MESSAGES = 4
"""Maximum number of messages shown before a statement, and after it. Together they are its exchange."""


BARRED = 6.0
"""Subtracted from the logits of tokens that would continue a quoted word, or repeat it at once."""


@dataclass(frozen=True)
class Recollection:
    """The statements recalled for a reply, and the state computed from them.

    `state`: the state that the reply reads. `chosen`: the selected statements with their scores, best first. `shown`:
    earlier messages that are shown in the prompt again, oldest first. `in_window`: ids of the selected statements whose
    messages are shown. `asked`: token ids of the question. `quotes`: whether the statements' tokens become likelier,
    which they do not where the reply has to be one of the choices that the question offers.
    """

    state: MemoryState
    chosen: tuple[tuple[Statement, float], ...] = ()
    shown: tuple[Message, ...] = ()
    in_window: frozenset[str] = frozenset()
    asked: tuple[int, ...] = ()
    quotes: bool = True

    def shown_in(self, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """The messages with `shown` inserted before the question, and the position of the insertion."""
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
    """The statements that the reply to `messages` reads, and the question's forward pass.

    The latter is None if the question was not run through the model. `fresh`: statements of this turn that are not in
    the prompt. `caches`: may hold keys and values of the question's beginning. `seat`: the turn's seat.
    """
    nothing = MemoryState.zeros_like(memory.base)
    if recall.read == "none":
        return Recollection(nothing), None
    if recall.read == "all":
        return Recollection(scan_statements(fresh, memory.state, memory.fades)), None
    asked = asked_of(messages)
    chosen, heard, words = choose(speaker, memory, fresh, asked, recall, matcher, caches, seat)
    in_order = sorted((each for each, _ in chosen), key=lambda each: (each.created, each.place))
    state = scan_statements(in_order, memory.base, memory.fades)
    chooses = any(offers_choices(message.content) for message in asked if message.role == "user")
    always = recall.window_tokens is not None or len(chosen) > 1 or chooses
    able = [each for each, _ in chosen if always or _says_several_things(each, matcher)]
    shown, in_window = exchanges(speaker, memory, able, messages, shown_tokens(recall, matcher))
    return Recollection(state, tuple(chosen), shown, in_window, words, quotes=not chooses), heard


def asked_of(messages: Sequence[Message]) -> Sequence[Message]:
    """The question: the last user message and the messages after it."""
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
) -> tuple[list[tuple[Statement, float]], Hearing | None, tuple[int, ...]]:
    """Selects the statements that a question matches, with their scores, best first.

    Also returns the forward pass of `asked`, None if it was not run, and the token ids of what matched. A question is
    matched with all that was said, and alone if that matches nothing: instructions for the reply or a story around it
    are about other things. Several questions are matched each alone, and together if none of them matches.
    """
    statements = [*memory.statements, *fresh]
    able = torch.tensor([each.wrote and _allowed(each, recall) for each in statements], dtype=torch.bool)
    if not asked or not able.any():
        return [], None, ()
    index = index_of(statements, matcher) if fresh else None

    def matching(asked: Sequence[Message]) -> tuple[list[tuple[int, float]], Hearing]:
        prompt = speaker.prompts.reading(asked).last(ASKED_TOKENS)
        heard = hear(speaker, prompt, caches.lead_of(prompt), seat)
        queries, spoken = queries_in(speaker, heard), _spoken(asked)
        terms = terms_of(spoken)
        # "My colleague is waiting for it." behind a question says nothing about whose fact it asks for.
        owners = owners_of(asking_part(spoken), matcher.relations, matcher.openers, question=True)
        if index is None:
            return memory.chosen(matcher, queries, terms, able, owners), heard
        return index.chosen(queries, terms, able, owners=owners), heard

    alone = _questions(asked)
    whole: Hearing | None = None
    for group in ([asked], alone) if len(alone) < 2 else (alone, [asked]):
        tried = [matching(each) for each in group]
        if group == [asked]:
            whole = tried[0][1]
        if any(best for best, _ in tried):
            break
    found: dict[int, float] = {}
    for best, _ in tried:
        found |= {number: score for number, score in best if number not in found}
    words = [token for _, heard in tried for token in _content_ids(heard.prompt)]
    return [(statements[number], score) for number, score in found.items()], whole, tuple(words)


def _questions(asked: Sequence[Message]) -> list[Sequence[Message]]:
    """The messages with each of the user's questions alone; empty if the user said nothing but one question."""
    place = next((at for at in reversed(range(len(asked))) if asked[at].role == "user"), None)
    if place is None:
        return []
    text = asked[place].content
    return [
        [*asked[:place], replace(asked[place], content=question), *asked[place + 1 :]]
        for question in questions_within(text)[-QUESTIONS:]
        if question != text.strip()
    ]


def _spoken(asked: Sequence[Message]) -> str:
    """The question's text. Words of a tool's result, or of a reply that was begun, do not belong to it."""
    return "\n".join(message.content for message in [each for each in asked if each.role == "user"] or asked)


def shown_tokens(recall: Recall, matcher: Matcher) -> int:
    """Number of prompt tokens reserved for messages that are shown again."""
    return matcher.show_tokens if recall.window_tokens is None else recall.window_tokens


def _says_several_things(statement: Statement, matcher: Matcher) -> bool:
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
    """The messages around the selected statements, oldest first, up to `budget` tokens.

    Also returns the ids of the statements that are shown. A statement that is in `messages` already is not shown again.
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
        size = sum(speaker.prompts.content_tokens([_message(each)]) + AROUND_MESSAGE for each in new)
        if size > budget:
            continue
        budget -= size
        shown |= {each.id: each for each in new}
        in_window.add(statement.id)
    ordered = sorted(shown.values(), key=lambda each: (each.created, each.place))
    return tuple(map(_message, ordered)), frozenset(in_window)


def _exchange(statement: Statement, by_place: dict[tuple[str, int], Statement]) -> list[Statement]:
    """The exchange around a statement, from the user's message to the assistant's reply, without tool messages."""
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
    """A statement as a message to show. A tool's result is shown as the assistant's, because its call is missing."""
    return Message("assistant" if statement.role == "tool" else statement.role, statement.text)


def pointing(pointer: Pointer | None, recollection: Recollection, spelling: Spelling) -> Pointing | None:
    """Raises the probability of the selected statements' own tokens, so that they are quoted exactly.

    None if no statement was selected, if their tokens are not stored, or if they are not to be quoted.
    """
    told = [each for each, _ in recollection.chosen if each.tokens and each.written]
    if pointer is None or not told or not recollection.quotes:
        return None
    parts = []
    for each in told:
        assert each.writes is not None
        parts.append((each.writes, [each.tokens[place] for place in each.written], each.tokens))
    words = [(each.text, [each.spans[place] for place in each.written] if each.spans else []) for each in told]
    return _Pointing(pointer, parts, recollection.asked, QuotedWords(spelling, words))


@dataclass
class _Pointing:
    """Raises the logits of the statements' tokens. `said`: token ids of the reply so far."""

    pointer: Pointer
    statements: Sequence[PointedAt]
    asked: Sequence[int]
    words: QuotedWords
    candidates: Candidates | None = None
    said: list[int] = field(default_factory=list)

    def added(self, logits: Tensor, queries: Tensor, token: int) -> Tensor:
        if self.candidates is None:
            # The first token is the last one of the prompt, after which the reply begins.
            self.candidates = self.pointer.candidates(self.statements, queries.cpu(), self.asked)
        else:
            self.said.append(token)
        ids, bonus = self.pointer.bonus(logits.cpu(), queries.cpu(), self.candidates, self.said)
        raised = logits.index_add(0, ids.to(logits.device), bonus.to(logits.device))
        barred = self.words.barred(self.said)
        if barred is None:
            return raised
        lowered = torch.full(barred.shape, -BARRED, device=raised.device, dtype=raised.dtype)
        return raised.index_add(0, barred.to(raised.device), lowered)
