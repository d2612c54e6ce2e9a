"""What became of a graph's messages since the memory saw them, told by their ids. Pure.

A message whose id is there with another content was edited. One that is missing between others, or at the end,
was deleted. Those missing at the front were trimmed: they stay in the memory, which is what it is for. So do
those that middleware takes from the middle while the graph runs (the first message and the newest are often kept).
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
"""How many texts that were edited or deleted are remembered, by digest, so that no older memory brings them back."""

_DIGITS = 18


@dataclass(frozen=True)
class Seen:
    """What a memory has of a graph's messages.

    `known`: the messages that it was shown last, id to digest, in order. The digest is "" for a summary, which
    stands for messages that the memory has itself. `undone`: "id digest" of texts that it must not have again.
    """

    known: Mapping[str, str]
    undone: Sequence[str] = ()

    @classmethod
    def of(cls, held: Mapping[str, object] | None) -> Seen | None:
        """From what a checkpoint holds; None for a checkpoint of version 0.1, which holds nothing of it."""
        return None if held is None else cls(**held)  # type: ignore[arg-type]

    def as_json(self) -> dict[str, object]:
        return {"known": dict(self.known), "undone": list(self.undone)}

    @property
    def texts(self) -> set[str]:
        """What the memory has, as "id digest"."""
        return {_text(each, content) for each, content in self.known.items() if content}

    def count(self, messages: Iterable[str], roles: Collection[Role]) -> int:
        """How many messages of these roles the memory heard with these ids."""
        heard = [part for each in messages for part in self.known.get(each, "").split(",")]
        return sum(part[:1] in {role[0] for role in roles} for part in heard if part)


@dataclass(frozen=True)
class Revision:
    """What is different in the messages that a graph shows now.

    `edited`, `deleted`: ids whose old text the memory still has. `standing`: ids of the messages before the turn's
    new ones, in order. `summaries`: those of them that stand for trimmed messages.
    """

    edited: Sequence[str] = ()
    deleted: Sequence[str] = ()
    standing: Sequence[str] = ()
    summaries: Collection[str] = ()

    def inserted(self, seen: Seen) -> list[str]:
        """Ids among the standing messages that the memory has not heard."""
        return [each for each in self.standing if each not in seen.known and each not in self.summaries]

    def undone(self, seen: Seen) -> set[str]:
        """The texts, as "id digest", that have to leave the memory."""
        return {_text(each, seen.known[each]) for each in (*self.edited, *self.deleted)}

    def unwanted(self, seen: Seen, shown: Mapping[str, str]) -> set[str]:
        """The texts that no older memory may bring back: these, and those of earlier revisions."""
        return {*seen.undone, *self.undone(seen)} - Seen(shown).texts

    def only_rewords_the_newest_reply(self, seen: Seen) -> bool:
        """As middleware does which takes out a <think> block or masks an address, in every turn."""
        return not self.deleted and [*self.edited] == [*seen.known][-1:]


def digests(messages: Iterable[BaseMessage]) -> dict[str, str]:
    """The messages' contents by their ids, in order; those without an id are left out."""
    return {message.id: _digest(message) for message in messages if message.id}


def summaries(messages: Iterable[BaseMessage]) -> set[str]:
    """Ids of the summaries that LangChain's own middleware wrote."""
    return {
        message.id
        for message in messages
        if message.id and isinstance(message, HumanMessage) and message.additional_kwargs.get("lc_source")
    }


def merged(began: Sequence[BaseMessage], now: Sequence[BaseMessage]) -> tuple[list[BaseMessage], set[str]]:
    """The messages that a run began with, in their present wording, and what was said since; and summaries of them.

    `began` empty: the run's messages are what they are now.
    """
    if not began:
        return [*now], set()
    present, before = {message.id: message for message in now}, {message.id for message in began}
    last = max((place for place, message in enumerate(now) if message.id in before), default=-1)
    ahead, behind = now[: last + 1], now[last + 1 :]
    inserted = {message.id for message in ahead if message.id and message.id not in before}
    return [*(present.get(message.id, message) for message in began), *behind], inserted


def revise(seen: Seen, shown: Mapping[str, str], marked: Collection[str] = (), *, began: bool = False) -> Revision:
    """Compare. `shown`: messages as `digests` gives them. `marked`: those that are summaries.

    `began`: these are the messages with which a run began, so that none of them was trimmed by the run.
    """
    order = [*seen.known]
    first = next((place for place, each in enumerate(order) if each in shown), len(order))
    # A run that takes its own newest reply away does not trim.
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
    """Those marked as such, those known as such, and what took the place of trimmed messages."""
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
    """What the memory has of the messages after a turn that wrote. `left_out`: summaries that it did not write."""
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
        # Nothing that the memory could have; the turn itself says what is wrong with it.
        return "?"


def _text(each: str, content: str) -> str:
    return f"{each} {content}"
