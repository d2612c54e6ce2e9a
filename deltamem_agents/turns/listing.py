"""Reading an agent's list of statements from a store, and removing one. No model is needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from deltamem_agents.errors import StaleHeadError, StateError, StatementNotFoundError
from deltamem_agents.memory.matcher import STRONG
from deltamem_agents.snapshots import Entry, Statement, StatementReceipt, Store, utc_now
from deltamem_agents.snapshots.store import SHORTEST_PREFIX
from deltamem_agents.turns.memories import AgentMemory, without

COMMIT_ATTEMPTS = 100

LEAST_LETTERS = 3
"""Minimum length of a shared word that makes two statements alike."""

FEW_STATEMENTS, FEW_SHARE = 4, 0.1
"""A shared word makes two statements alike only if at most this number, or this share, of the statements have it."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Replacement:
    """The replacement of a statement: new statements, and their bytes by address."""

    statements: Sequence[Statement] = ()
    objects: tuple[tuple[str, bytes], ...] = ()


Read: TypeAlias = Callable[[Entry], AgentMemory]
"""A function that returns the memory of a snapshot."""


def read_from(store: Store, agent: str) -> Read:
    """Makes a `Read` function that reads directly from the store, without a cache."""
    return lambda entry: AgentMemory.of(store, agent, entry.snapshot, entry.snapshot.fades)


def list_statements(
    store: Store, agent: str, at: str | None = None, *, superseded: bool = False, read: Read | None = None
) -> list[Statement]:
    """The statements that wrote to the agent's memory, oldest first.

    `superseded`: include the earlier versions of corrected statements, each before the version that replaced it.
    """
    found = [each for each in (read or read_from(store, agent))(store.load(agent, at)).statements if each.wrote]
    if not superseded:
        return found
    return [one for each in found for one in (*earlier_versions(store, agent, each), each)]


def find_statement(store: Store, agent: str, named: str) -> Statement:
    """The statement with this id, given in full or by its first six or more digits. Raises StatementNotFoundError."""
    return _find(agent, store.statements(agent), named, store.load(agent).snapshot.went)


def forget_statement(store: Store, agent: str, named: str, *, read: Read | None = None) -> StatementReceipt:
    """Deletes one statement and its earlier versions from the memory and from the store's files.

    Raises StatementNotFoundError, and StateError if the memory is a single state without statements' writes.
    """
    found, memory = change_statement(store, agent, named, "forget-statement", lambda *_: Replacement(), read=read)
    versions = [found, *earlier_versions(store, agent, found)]
    removed = store.erase_statements(agent, [each.id for each in versions])
    forks = store.holders(removed.kept, but=agent)
    others = [each for each in memory.statements if each.id != found.id]
    same = {each.id for version in versions for each in _alike(version, others)}
    alike = tuple(each for each in others if each.id in same)
    return StatementReceipt(agent, utc_now(), removed.removed, removed.kept, forks, alike, removed.nbytes)


def change_statement(
    store: Store,
    agent: str,
    named: str,
    origin: str,
    change: Callable[[AgentMemory, Statement], Replacement],
    *,
    read: Read | None = None,
    most: int | None = None,
) -> tuple[Statement, AgentMemory]:
    """Replaces a statement in the agent's list and commits. Tries again if another writer came first.

    `change`: returns the replacement. `most`: see `WritePolicy.statements`. Returns the replaced statement and the
    memory before the change.
    """
    for _ in range(COMMIT_ATTEMPTS):
        entry = store.load(agent)
        memory = (read or read_from(store, agent))(entry)
        found = _find(agent, memory.statements, named, memory.went)
        if found.stored is None:
            raise single_state_error()
        put = change(memory, found)
        after, objects, gone = memory.changed(store, agent, put.statements, frozenset({found.id}), most=most)
        snapshot = replace(
            entry.snapshot,
            state=after.scanned,
            statements=after.listed,
            base=after.base,
            fades=after.fades,
            folded=after.folded,
            went=after.went,
            parent=entry.id,
            threads=entry.threads(),
            created=utc_now(),
            origin=origin,
            note="",
        )
        objects |= without(dict(put.objects), gone)
        try:
            store.save(agent, snapshot, expected=entry.id, objects=objects)
        except StaleHeadError:
            continue
        return found, memory
    raise StaleHeadError(f"agent {agent!r} was written by others during {COMMIT_ATTEMPTS} attempts; try again")


def single_state_error() -> StateError:
    """The error for removing a single statement from a memory that is one state."""
    return StateError(
        "this adapter's gates never close: it keeps only one state, and no single statement can be removed from it. "
        "Forget the agent, or move its memory to an adapter whose gates close"
    )


def earlier_versions(store: Store, agent: str, statement: Statement) -> list[Statement]:
    """The earlier versions that a corrected statement replaced, oldest first."""
    found: list[Statement] = []
    at = statement.supersedes
    while at is not None:
        held = store.read_statements(agent, [at])
        if not held:
            break
        found.insert(0, held[0])
        at = held[0].supersedes
    return found


def strong_words(statement: Statement) -> list[str]:
    """The parts of a statement's text that were written strongly."""
    words, stretch = [], ""
    for piece, strength in [*statement.marked, ("", 0.0)]:
        if strength >= STRONG:
            stretch += piece
        else:
            words.append(stretch.strip(" ,.;:!?"))
            stretch = ""
    return [word for word in words if word]


def _alike(statement: Statement, others: Sequence[Statement]) -> tuple[Statement, ...]:
    """The other statements that repeat this one: the same text, or one contains the strongly written part of the other.

    The strongly written part: pieces of the text, and words that have a digit or that few statements contain.
    """
    held = {each.id: frozenset(_WORD.findall(each.text.casefold())) for each in (statement, *others)}
    holders = Counter(word for words in held.values() for word in words)
    most = max(FEW_STATEMENTS, len(others) * FEW_SHARE)

    def tells(word: str) -> bool:
        return any(letter.isdigit() for letter in word) or holders[word] <= most

    def repeats(one: Statement, other: Statement) -> bool:
        parts = [part.casefold() for part in strong_words(one) if len(part) >= LEAST_LETTERS]
        shared = _strongly_written(one) & held[other.id]
        return any(part in other.text.casefold() for part in parts) or any(map(tells, shared))

    text = statement.text.strip().casefold()
    return tuple(
        each
        for each in others
        if text and (each.text.strip().casefold() == text or repeats(statement, each) or repeats(each, statement))
    )


def _strongly_written(statement: Statement) -> frozenset[str]:
    """The words, in lower case, of which at least one token was written strongly."""
    text = "".join(piece for piece, _ in statement.marked)
    strong = [strength >= STRONG for piece, strength in statement.marked for _ in piece]
    words = _WORD.finditer(text)
    found = (each.group().casefold() for each in words if any(strong[each.start() : each.end()]))
    return frozenset(word for word in found if len(word) >= LEAST_LETTERS)


def _find(agent: str, statements: Sequence[Statement], named: str, went: int) -> Statement:
    """The statement with this id or these first digits. `went`: how many statements were dropped over the bound."""
    matches = [each for each in statements if each.id == named]
    if not matches and len(named) >= SHORTEST_PREFIX:
        matches = [each for each in statements if each.id.startswith(named)]
    if len(matches) != 1:
        what = f"{len(matches)} statements whose ids begin so" if matches else "no such statement"
        over = (
            f", or be one of the {went} that went over the bound of its policy: these are only in its full state, "
            "and no single one can be removed from it. To remove them, move the listed statements to another agent "
            "(`deltamem memory migrate`) and forget this one"
        )
        raise StatementNotFoundError(
            f"agent {agent!r} has {what}: {named!r}; `statements` lists them. It may have been forgotten already"
            + (over if went else "")
        )
    return matches[0]
