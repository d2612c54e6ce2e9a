"""Statements by hand: list them, find them, forget one, correct one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.errors import ConfigError, StaleHeadError, StateError, StatementNotFoundError
from deltamem_agents.inference.decode import as_text
from deltamem_agents.snapshots import Entry, Statement, StatementReceipt, Store, encode_page, utc_now
from deltamem_agents.snapshots.store import SHORTEST_PREFIX
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.turns.recalling import choose
from deltamem_agents.turns.recording import Recorder
from deltamem_agents.turns.running import COMMIT_ATTEMPTS, TurnRunner
from deltamem_agents.types import Message, Recall

STRONG = 0.2
"""Mean write gate from which a token counts among the words that a statement is about."""

LEAST_LETTERS = 3
"""Letters of a word by which two statements are said to be about the same."""


@dataclass(frozen=True)
class StatementEditor:
    """Lists and changes the statements of one engine's agents."""

    turns: TurnRunner

    @property
    def _store(self) -> Store:
        return self.turns.store

    def listed(self, agent: str, at: str | None = None, *, superseded: bool = False) -> list[Statement]:
        """The statements that left something in the agent's memory, oldest first.

        `superseded`: with the earlier versions of corrected ones, each before the one that took its place.
        """
        found = [each for each in self._memory(agent, at)[1].statements if each.wrote]
        if not superseded:
            return found
        return [one for each in found for one in (*self._earlier(agent, each), each)]

    def matching(self, agent: str, query: str, limit: int, recall: Recall) -> list[tuple[Statement, float]]:
        """The statements that a query is about, best first, at most `limit`, with their scores."""
        memory = self._memory(agent, None)[1]
        matcher = replace(self.turns.matcher.without_floor(), margin=float("inf"), most=limit)
        return choose(self.turns.speaker, memory, (), [Message("user", query)], recall, matcher)

    def forget(self, agent: str, statement: str) -> StatementReceipt:
        """Take one statement, with its earlier versions, out of the memory and out of the store's files."""

        def drop(memory: AgentMemory, found: Statement) -> tuple[frozenset[str], Recorder | None]:
            return frozenset({found.id}), None

        found, memory = self._changed(agent, statement, "forget-statement", drop)
        gone = [each.id for each in (found, *self._earlier(agent, found))]
        self.turns.memories.drop(self._store, agent)
        removed = self._store.erase_statements(agent, gone)
        forks = self._store.holders(removed.kept, but=agent)
        alike = self._alike(found, [each for each in memory.statements if each.id != found.id])
        return StatementReceipt(agent, utc_now(), removed.removed, removed.kept, forks, alike, removed.nbytes)

    def correct(self, agent: str, statement: str, text: str) -> Statement:
        """Put another text in a statement's place. The earlier version stays in the store, and is not read any more."""
        if not text.strip():
            raise ConfigError("the corrected text is empty, expected what is true; to delete a statement, forget it")
        recorders: list[Recorder] = []

        def put(memory: AgentMemory, found: Statement) -> tuple[frozenset[str], Recorder | None]:
            run = self.turns.speaker.begin(memory.base, applies=False)
            message = Message("user" if found.role == "tool" else found.role, text)
            for _ in self.turns.speaker.absorbing(run, [message], [0]):
                self.turns.require_usable()
            recorder = self.turns.recorder([message], found.thread, "correct")
            recorder.replace_one(run, found)
            if not recorder.statements:
                raise ConfigError(
                    f"the corrected text {text!r} leaves nothing in the memory; say it as a sentence that states a fact"
                )
            recorders.append(recorder)
            return frozenset({found.id}), recorder

        self._changed(agent, statement, "correct", put)
        return recorders[-1].statements[0]

    def _changed(
        self,
        agent: str,
        statement: str,
        origin: str,
        change: Callable[[AgentMemory, Statement], tuple[frozenset[str], Recorder | None]],
    ) -> tuple[Statement, AgentMemory]:
        """Commit a change of the list of statements, on the newest head; the statement, and the memory before."""
        if not self.turns.speaker.keeps_writes:
            raise StateError(
                "this adapter's gates never shut: it keeps one state, from which no single statement can be taken. "
                "Forget the agent, or move its memory to an adapter whose gates shut"
            )
        for _ in range(COMMIT_ATTEMPTS):
            entry, memory = self._memory(agent, None)
            found = _named(agent, memory.statements, statement)
            drop, recorder = change(memory, found)
            new = [] if recorder is None else recorder.statements
            listed, pages = memory.listed.changed(memory.pages, add=[each.id for each in new], drop=drop)
            after = memory.after(self._store, agent, listed, pages, new)
            snapshot = replace(
                entry.snapshot,
                state=after.scanned,
                statements=listed,
                base=after.base,
                fades=after.fades,
                parent=entry.id,
                threads=entry.threads(),
                created=utc_now(),
                origin=origin,
                note="",
            )
            objects = {page: encode_page(held) for page, held in pages.items()}
            try:
                self._store.save(
                    agent, snapshot, expected=entry.id, objects=objects | ({} if recorder is None else recorder.objects)
                )
            except StaleHeadError:
                continue
            return found, memory
        raise StaleHeadError(f"agent {agent!r} was written by others {COMMIT_ATTEMPTS} times over; try again")

    def _memory(self, agent: str, at: str | None) -> tuple[Entry, AgentMemory]:
        entry = self._store.load(agent, at)
        entry.snapshot.fingerprint.require(self.turns.fingerprint)
        if at is not None:
            return entry, AgentMemory.of(self._store, agent, entry.snapshot, self.turns.memories.fades)
        return entry, self.turns.memories.at(self._store, agent, entry)

    def _earlier(self, agent: str, statement: Statement) -> list[Statement]:
        """The versions that a statement took the place of, oldest first."""
        found: list[Statement] = []
        at = statement.supersedes
        while at is not None:
            held = self._store.read_statements(agent, [at])
            if not held:
                break
            found.insert(0, held[0])
            at = held[0].supersedes
        return found

    def _alike(self, statement: Statement, others: Sequence[Statement]) -> tuple[Statement, ...]:
        """Other statements that say a word which this one wrote strongly."""
        words = [word.casefold() for word in self.words(statement) if len(word) >= LEAST_LETTERS]
        return tuple(each for each in others if any(word in each.text.casefold() for word in words))

    def words(self, statement: Statement) -> list[str]:
        """The stretches of a statement's text that were written strongly."""
        words, stretch = [], list[int]()
        for token, strength in [*zip(statement.tokens, statement.strengths, strict=True), (-1, 0.0)]:
            if strength >= STRONG:
                stretch.append(token)
            elif stretch:
                words.append(as_text(self.turns.speaker.tokenizer, stretch).strip(" ,.;:!?"))
                stretch = []
        return [word for word in words if word]


def _named(agent: str, statements: Sequence[Statement], named: str) -> Statement:
    """The statement of an id, or of the first digits of one."""
    matches = [each for each in statements if each.id == named]
    if not matches and len(named) >= SHORTEST_PREFIX:
        matches = [each for each in statements if each.id.startswith(named)]
    if len(matches) != 1:
        what = f"{len(matches)} statements whose ids begin so" if matches else "no such statement"
        raise StatementNotFoundError(
            f"agent {agent!r} has {what}: {named!r}; `statements` lists them. It may have been forgotten already"
        )
    return matches[0]
