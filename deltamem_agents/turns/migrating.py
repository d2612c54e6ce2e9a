"""Moves a memory to another model or adapter by absorbing its texts again, in order."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from deltamem_agents.errors import AlreadyExistsError, StateError
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Entry, InMemoryStore, Snapshot, Statement, Store
from deltamem_agents.turns.memories import without
from deltamem_agents.turns.planning import Kept
from deltamem_agents.types import Message

if TYPE_CHECKING:
    from deltamem_agents.turns.running import TurnRunner


@dataclass(frozen=True)
class Migration:
    """The report of a migration, or of its dry run.

    `source`, `agent`: the old agent's id and the new agent's id. `statements`: number of statements with a text; only
    these are moved. `written`: how many of them wrote to the new memory, None in a dry run. `without_text`: ids of
    statements that cannot be moved. `whole_state`: whether the source's state also contains writes for which it has no
    statements, because version 0.1 wrote them or because they exceeded the bound; these cannot be moved. `snapshot`:
    id of the new agent's snapshot, None in a dry run.
    """

    source: str
    agent: str
    statements: int
    without_text: tuple[str, ...]
    whole_state: bool
    written: int | None = None
    snapshot: str | None = None


def survey(store: Store, source: str, agent: str | None = None) -> Migration:
    """Reports what can be moved, as a dry run. No model is needed, and nothing is changed."""
    entry = store.load(source)
    statements = store.statements(source)
    snapshot = entry.snapshot
    base = snapshot.base
    kept_whole = snapshot.statements is None or snapshot.went > 0 or (base is not None and bool(base.matrices.any()))
    without = tuple(each.id for each in statements if not _says(each))
    return Migration(source, agent or source, len(statements) - len(without), without, kept_whole)


def migrate(
    runner: TurnRunner, store: Store, source: str, agent: str, advance: Callable[[int], None] = lambda tokens: None
) -> Migration:
    """Makes `agent` from the texts of `source` with this model and adapter. Atomic: everything is moved or nothing.

    Threads, roles, times and the logs of absorbed messages are kept, so that clients can continue their threads.
    """
    found = survey(store, source, agent)
    if not found.statements:
        raise StateError(
            f"agent {source!r} has no statement with a text, and a state cannot be moved to another adapter; "
            "tell the new agent what it should know"
        )
    if runner.store.head(agent) is not None:
        raise AlreadyExistsError(f"there is an agent {agent!r} already; choose another id, or forget it first")
    entry = store.load(source)
    state, statements, objects, tokens = _absorbed(runner, store.statements(source), advance)
    carried = InMemoryStore()
    after, pages, gone = runner.empty.changed(carried, agent, statements, most=runner.policy.statements)
    objects = {**pages, **without(objects, gone)}
    kept = Kept.of(after) if runner.speaker.keeps_writes else Kept(state, after.listed, went=after.went)
    _save_threads(runner, store, entry, source, agent, carried, kept, objects, tokens)
    file = io.BytesIO()
    carried.export(agent, file)
    file.seek(0)
    runner.store.import_(file)
    written = sum(each.wrote for each in statements)
    return replace(found, written=written, snapshot=runner.store.head(agent))


def _absorbed(
    runner: TurnRunner, statements: Sequence[Statement], advance: Callable[[int], None]
) -> tuple[MemoryState, list[Statement], dict[str, bytes], int]:
    """The state after absorbing these texts, the new statements, their bytes, and the number of tokens written."""
    speaker, state, tokens = runner.speaker, runner.empty.base, 0
    made: list[Statement] = []
    objects: dict[str, bytes] = {}
    for thread, group in groupby(filter(_says, statements), key=lambda each: each.thread):
        said = list(group)
        messages = [Message(each.role, each.text, each.tool_calls) for each in said]
        positions = [place for place, each in enumerate(said) if each.role in runner.policy.roles]
        run = speaker.begin(state, applies=not speaker.keeps_writes)
        if positions:
            for read in speaker.absorbing(run, messages, positions):
                advance(read)
                runner.require_usable()
        recorder = runner.recorder(messages, thread, "migrate", times=[each.created for each in said])
        recorder.add(run.pieces, {place: said[place].place for place in positions})
        assert run.state is not None
        state, tokens = run.state.settled().detach().to("cpu"), tokens + run.measures.written
        made += recorder.statements
        objects |= recorder.objects
    return state, made, objects, tokens


def _save_threads(
    runner: TurnRunner,
    store: Store,
    entry: Entry,
    source: str,
    agent: str,
    carried: InMemoryStore,
    kept: Kept,
    objects: dict[str, bytes],
    tokens: int,
) -> None:
    """Commits the memory once for each thread of the source, with that thread's log. The newest thread comes last."""
    head: Entry | None = None
    for thread, newest in entry.threads().items():
        snapshot = Snapshot(
            state=kept.state,
            statements=kept.listed,
            base=kept.base,
            fades=kept.fades,
            folded=kept.folded,
            went=kept.went,
            fingerprint=runner.fingerprint,
            thread=thread,
            absorbed=store.load(source, newest).snapshot.absorbed,
            threads={} if head is None else head.threads(),
            parent=None if head is None else head.id,
            counters=replace(entry.snapshot.counters, tokens=tokens),
            origin="migrate",
        )
        carried.save(agent, snapshot, expected=None if head is None else head.id, objects=objects)
        head = carried.load(agent)


def _says(statement: Statement) -> bool:
    return bool(statement.text or statement.tool_calls)
