"""Finds how a graph's messages changed since the memory last saw them, by their ids. Pure functions.

A message with a known id and another content was edited. A message that is missing in the middle or at the end was
deleted. Messages missing at the front were trimmed. They stay in the memory, because that is its purpose. So do
messages that middleware removes from the middle during a run (often the first message and the newest ones are kept).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from langchain_core.messages import BaseMessage, HumanMessage

from deltamem_agents import MessageError
from deltamem_agents.chat.history import digest
from deltamem_agents.types import Role
from langchain_deltamem.messages import to_messages

UNDONE_KEPT = 256
"""Number of edited or deleted texts whose digests are recorded, so that no older memory brings them back."""

_DIGITS = 18


@dataclass(frozen=True)
class Seen:
    """Which of a graph's messages a memory has.

    `known`: the messages that it last saw, id to digest, in order. The digest is "" for a summary, because the memory
    has the summarised messages themselves. `undone`: "id digest" of texts that it must not contain again.
    """

    known: Mapping[str, str]
    undone: Sequence[str] = ()

    @classmethod
    def of(cls, held: Mapping[str, object] | None) -> Seen | None:
        """Reads the field of a checkpoint; None for a checkpoint of version 0.1, which does not have it."""
        return None if held is None else cls(**held)  # type: ignore[arg-type]

    def as_json(self) -> dict[str, object]:
        return {"known": dict(self.known), "undone": list(self.undone)}

    @property
    def texts(self) -> set[str]:
        """The texts in the memory, as "id digest"."""
        return {_text(each, content) for each, content in self.known.items() if content}

    def count(self, messages: Iterable[str], roles: Collection[Role]) -> int:
        """How many messages of these roles the memory absorbed under these ids."""
        heard = [part for each in messages for part in self.known.get(each, "").split(",")]
        return sum(part[:1] in {role[0] for role in roles} for part in heard if part)


@dataclass(frozen=True)
class Revision:
    """The changes in a graph's messages.

    `edited`, `deleted`: ids whose old text is still in the memory. `standing`: ids of the messages before the turn's
    new ones, in order. `summaries`: those of them that replace trimmed messages.
    """

    edited: Sequence[str] = ()
    deleted: Sequence[str] = ()
    standing: Sequence[str] = ()
    summaries: Collection[str] = ()

    def inserted(self, seen: Seen) -> list[str]:
        """Ids of standing messages that the memory has not absorbed."""
        return [each for each in self.standing if each not in seen.known and each not in self.summaries]

    def undone(self, seen: Seen) -> set[str]:
        """The texts, as "id digest", that must be removed from the memory."""
        return {_text(each, seen.known[each]) for each in (*self.edited, *self.deleted)}

    def unwanted(self, seen: Seen, shown: Mapping[str, str]) -> set[str]:
        """The texts that no older memory may bring back: those of this and of earlier revisions."""
        return {*seen.undone, *self.undone(seen)} - Seen(shown).texts

    def only_rewords_the_newest_reply(self, seen: Seen) -> bool:
        """Whether only the newest reply changed. Middleware that removes <think> blocks does this in every turn."""
        return not self.deleted and [*self.edited] == [*seen.known][-1:]


def digests(messages: Iterable[BaseMessage]) -> dict[str, str]:
    """Digests of the messages by their ids, in order. Messages without an id are left out."""
    return {message.id: _digest(message) for message in messages if message.id}


def summaries(messages: Iterable[BaseMessage]) -> set[str]:
    """Ids of summaries that LangChain's own middleware wrote."""
    return {
        message.id
        for message in messages
        if message.id and isinstance(message, HumanMessage) and message.additional_kwargs.get("lc_source")
    }


def merged(began: Sequence[BaseMessage], now: Sequence[BaseMessage]) -> tuple[list[BaseMessage], set[str]]:
    """The messages that a run began with, in their present wording, and the newer ones; and ids of inserted summaries.

    If `began` is empty, the result is `now`.
    """
    if not began:
        return [*now], set()
    present, before = {message.id: message for message in now}, {message.id for message in began}
    last = max((place for place, message in enumerate(now) if message.id in before), default=-1)
    ahead, behind = now[: last + 1], now[last + 1 :]
    inserted = {message.id for message in ahead if message.id and message.id not in before}
    return [*(present.get(message.id, message) for message in began), *behind], inserted


def revise(seen: Seen, shown: Mapping[str, str], marked: Collection[str] = (), *, began: bool = False) -> Revision:
    """Compares the messages. `shown`: messages as `digests` returns them. `marked`: ids of summaries.

    `began`: whether `shown` are the messages with which a run began, so that the run trimmed none of them.
    """
    order = [*seen.known]
    first = next((place for place, each in enumerate(order) if each in shown), len(order))
    # If a run removed its own newest reply, that is not trimming.
    behind = order[first:] if began else order[-1:] if len(order) > 1 and order[-2] in shown else []
    gone = {each for each in behind if each not in shown}
    ends = [place for place, each in enumerate(shown) if each in seen.known or each in marked]
    standing = [*shown][: 1 + max(ends, default=-1)]
    return Revision(
        edited=[each for each in order if each in shown and seen.known[each] not in ("", shown[each])],
        deleted=[each for each in order if each in gone and seen.known[each]],
        standing=standing,
        summaries=_summaries(seen.known, standing, shown, gone, marked),
    )


def _summaries(
    known: Mapping[str, str],
    standing: Sequence[str],
    shown: Mapping[str, str],
    gone: Collection[str],
    marked: Collection[str],
) -> set[str]:
    """Ids of summaries: marked ones, known ones, and messages that replaced trimmed messages."""
    found = {each for each in standing if each in marked or known.get(each) == ""}
    order, place, fresh = [*known], 0, list[str]()
    for each in standing:
        if each not in known:
            fresh.append(each)
            continue
        at = order.index(each)
        if any(other not in shown and other not in gone for other in order[place:at]):
            found.update(fresh)
        place, fresh = at + 1, []
    return found


def after(
    seen: Seen | None,
    revision: Revision,
    shown: Mapping[str, str],
    replies: Mapping[str, str],
    left_out: Collection[str],
) -> Seen:
    """Which messages the memory has after a turn that wrote. `left_out`: ids of summaries that were not written."""
    known = {each: "" if each in left_out else content for each, content in {**shown, **replies}.items()}
    if seen is None:
        return Seen(known)
    now = Seen(known)
    undone = dict.fromkeys([*seen.undone, *sorted(revision.undone(seen))])
    return Seen(known, [text for text in undone if text not in now.texts][-UNDONE_KEPT:])


def _digest(message: BaseMessage) -> str:
    try:
        return ",".join(digest(each)[:_DIGITS] for each in to_messages([message]))
    except MessageError:
        # The memory cannot contain such a message. The turn itself will raise the error.
        return "?"


def _text(each: str, content: str) -> str:
    return f"{each} {content}"
