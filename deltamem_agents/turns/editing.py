"""Listing, searching, forgetting and correcting statements, where a model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deltamem_agents.errors import ConfigError
from deltamem_agents.snapshots import Entry, Statement, StatementReceipt, Store
from deltamem_agents.turns.listing import (
    Replacement,
    change_statement,
    forget_statement,
    list_statements,
    single_state_error,
)
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.turns.recalling import choose
from deltamem_agents.turns.running import TurnRunner
from deltamem_agents.types import Message, Recall


@dataclass(frozen=True)
class StatementEditor:
    """Lists and changes the statements of one engine's agents."""

    turns: TurnRunner

    @property
    def _store(self) -> Store:
        return self.turns.store

    def listed(self, agent: str, at: str | None = None, *, superseded: bool = False) -> list[Statement]:
        """See `list_statements`."""

        def read(entry: Entry) -> AgentMemory:
            return self._memory(agent, entry, kept=at is None)

        return list_statements(self._store, agent, at, superseded=superseded, read=read)

    def matching(self, agent: str, query: str, limit: int, recall: Recall) -> list[tuple[Statement, float]]:
        """The statements that best match a query, with their scores, best first, at most `limit`."""
        memory = self._memory(agent, self._store.load(agent))
        matcher = replace(
            self.turns.matcher.without_floor(), margin=math.inf, most=limit, margin_from=0, replacing=None
        )
        asked = [Message("user", query)]
        return choose(self.turns.speaker, memory, (), asked, recall, matcher, self.turns.caches)[0]

    def forget(self, agent: str, statement: str) -> StatementReceipt:
        """See `forget_statement`."""
        self._require_writes()
        return forget_statement(self._store, agent, statement, read=lambda entry: self._memory(agent, entry))

    def correct(self, agent: str, statement: str, text: str) -> Statement:
        """Replaces a statement with another text. The earlier version stays in the store but is no longer read."""
        self._require_writes()
        if not text.strip():
            raise ConfigError("the corrected text is empty, expected the right text; to delete a statement, forget it")
        made: list[Statement] = []

        def put(memory: AgentMemory, found: Statement) -> Replacement:
            run = self.turns.speaker.begin(memory.base, applies=False)
            message = Message("user" if found.role == "tool" else found.role, text)
            for _ in self.turns.speaker.absorbing(run, [message], [0]):
                self.turns.require_usable()
            recorder = self.turns.recorder([message], found.thread, "correct")
            recorder.replace_one(run, found)
            if not recorder.statements:
                raise ConfigError(
                    f"the corrected text {text!r} writes nothing to the memory; write a sentence that states a fact"
                )
            made[:] = recorder.statements
            return Replacement(recorder.statements, tuple(recorder.objects.items()))

        most = self.turns.policy.statements
        change_statement(
            self._store, agent, statement, "correct", put, read=lambda entry: self._memory(agent, entry), most=most
        )
        return made[0]

    def _require_writes(self) -> None:
        if not self.turns.speaker.keeps_writes:
            raise single_state_error()

    def _memory(self, agent: str, entry: Entry, *, kept: bool = True) -> AgentMemory:
        """The memory of a snapshot. `kept`: whether it is the newest, which is cached."""
        entry.snapshot.fingerprint.require(self.turns.fingerprint)
        if not kept:
            return AgentMemory.of(self._store, agent, entry.snapshot, self.turns.memories.fades)
        return self.turns.memories.at(self._store, agent, entry)
