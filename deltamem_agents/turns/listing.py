"""An agent's list of statements as a store has it: read it, and take one out. No model is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from deltamem_agents.errors import StaleHeadError, StateError, StatementNotFoundError
from deltamem_agents.memory.recall import STRONG
from deltamem_agents.snapshots import Entry, Statement, StatementReceipt, Store, utc_now
from deltamem_agents.snapshots.store import SHORTEST_PREFIX
from deltamem_agents.turns.memories import AgentMemory, without

COMMIT_ATTEMPTS = 100

LEAST_LETTERS = 3
"""Letters of a word by which two statements are said to be about the same."""


@dataclass(frozen=True)
class Put:
    """What takes a statement's place: statements, and their bytes by address."""

    statements: Sequence[Statement] = ()
    objects: tuple[tuple[str, bytes], ...] = ()


Read: TypeAlias = Callable[[Entry], AgentMemory]
"""The memory of a snapshot."""


def read_from(store: Store, agent: str) -> Read:
    """Reads memories from the store alone."""
    return lambda entry: AgentMemory.of(store, agent, entry.snapshot, entry.snapshot.fades)


def list_statements(
    store: Store, agent: str, at: str | None = None, *, superseded: bool = False, read: Read | None = None
) -> list[Statement]:
    """The statements that left something in the agent's memory, oldest first.

    `superseded`: with the earlier versions of corrected ones, each before the one that took its place.
    """
    found = [each for each in (read or read_from(store, agent))(store.load(agent, at)).statements if each.wrote]
    if not superseded:
        return found
    return [one for each in found for one in (*earlier_versions(store, agent, each), each)]


def find_statement(store: Store, agent: str, named: str) -> Statement:
    """The statement of an id, or of its first six or more digits. Raises StatementNotFoundError."""
    return _named(agent, store.statements(agent), named, store.load(agent).snapshot.went)


def forget_statement(store: Store, agent: str, named: str, *, read: Read | None = None) -> StatementReceipt:
    """Take one statement, with its earlier versions, out of the memory and out of the store's files.

    Raises StatementNotFoundError, and StateError where the memory is one state.
    """
    found, memory = change_statement(store, agent, named, "forget-statement", lambda *_: Put(), read=read)
    gone = [each.id for each in (found, *earlier_versions(store, agent, found))]
    removed = store.erase_statements(agent, gone)
    forks = store.holders(removed.kept, but=agent)
    alike = _alike(found, [each for each in memory.statements if each.id != found.id])
    return StatementReceipt(agent, utc_now(), removed.removed, removed.kept, forks, alike, removed.nbytes)


def change_statement(
    store: Store,
    agent: str,
    named: str,
    origin: str,
    change: Callable[[AgentMemory, Statement], Put],
    *,
    read: Read | None = None,
    most: int | None = None,
) -> tuple[Statement, AgentMemory]:
    """Commit a list in which something takes a statement's place, on the newest head; the statement, and the memory
    before. `most`: see `WritePolicy.statements`."""
    for _ in range(COMMIT_ATTEMPTS):
        entry = store.load(agent)
        memory = (read or read_from(store, agent))(entry)
        found = _named(agent, memory.statements, named, memory.went)
        if found.stored is None:
            raise one_state()
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
    raise StaleHeadError(f"agent {agent!r} was written by others {COMMIT_ATTEMPTS} times over; try again")


def one_state() -> StateError:
    """The refusal to take a single statement out of a memory that is one state."""
    return StateError(
        "this adapter's gates never shut: it keeps one state, from which no single statement can be taken. "
        "Forget the agent, or move its memory to an adapter whose gates shut"
    )


def earlier_versions(store: Store, agent: str, statement: Statement) -> list[Statement]:
    """The versions that a statement took the place of, oldest first."""
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
    """The stretches of a statement's text that were written strongly."""
    words, stretch = [], ""
    for piece, strength in [*statement.marked, ("", 0.0)]:
        if strength >= STRONG:
            stretch += piece
        else:
            words.append(stretch.strip(" ,.;:!?"))
            stretch = ""
    return [word for word in words if word]


def _alike(statement: Statement, others: Sequence[Statement]) -> tuple[Statement, ...]:
    """Other statements that say a word which this one wrote strongly."""
    words = [word.casefold() for word in strong_words(statement) if len(word) >= LEAST_LETTERS]
    return tuple(each for each in others if any(word in each.text.casefold() for word in words))


def _named(agent: str, statements: Sequence[Statement], named: str, went: int) -> Statement:
    """The statement of an id, or of the first digits of one."""
    matches = [each for each in statements if each.id == named]
    if not matches and len(named) >= SHORTEST_PREFIX:
        matches = [each for each in statements if each.id.startswith(named)]
    if len(matches) != 1:
        what = f"{len(matches)} statements whose ids begin so" if matches else "no such statement"
        over = (
            f", or be one of the {went} that went over the bound of its policy: these are in its full state alone, "
            "from which no single one can be taken. To be rid of them, move what is listed to another agent "
            "(`deltamem memory migrate`) and forget this one"
        )
        raise StatementNotFoundError(
            f"agent {agent!r} has {what}: {named!r}; `statements` lists them. It may have been forgotten already"
            + (over if went else "")
        )
    return matches[0]
