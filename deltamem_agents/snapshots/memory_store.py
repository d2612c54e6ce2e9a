"""A store in this process's memory, for tests and for agents that need not outlive the process."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from deltamem_agents.processes import Mutex
from deltamem_agents.snapshots.records import Move, Removed
from deltamem_agents.snapshots.refusals import agent_exists, no_agent, no_snapshot, require_free_tag, require_head
from deltamem_agents.snapshots.statements import FORGOTTEN
from deltamem_agents.snapshots.store import Store


@dataclass(frozen=True)
class _Agent:
    journal: list[Move]
    tags: dict[str, str]
    blobs: dict[str, bytes]
    objects: dict[str, bytes]
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))


class InMemoryStore(Store):
    """A store whose contents end with the process. Forks share the bytes of their snapshots."""

    def __init__(self) -> None:
        self._lock = Mutex()
        self._held: dict[str, _Agent] = {}

    def _agents(self) -> list[str]:
        with self._lock:
            return list(self._held)

    def _head(self, agent: str) -> str | None:
        with self._lock:
            return self._head_of(agent)

    def _head_of(self, agent: str) -> str | None:
        return self._held[agent].journal[-1].snapshot if agent in self._held else None

    def _journal(self, agent: str) -> list[Move]:
        with self._lock:
            return list(self._held[agent].journal) if agent in self._held else []

    def _incarnation(self, agent: str) -> str | None:
        with self._lock:
            return self._held[agent].incarnation if agent in self._held else None

    def _tags(self, agent: str) -> dict[str, str]:
        with self._lock:
            return dict(self._held[agent].tags) if agent in self._held else {}

    def _blob(self, agent: str, snapshot: str) -> bytes | None:
        with self._lock:
            return self._held[agent].blobs.get(snapshot) if agent in self._held else None

    def _append(
        self,
        agent: str,
        move: Move,
        data: bytes | None,
        expected: str | None,
        objects: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        with self._lock:
            require_head(agent, self._head_of(agent), expected)
            held = self._held.get(agent) or _Agent([], {}, {}, {})
            if data is not None:
                held.blobs[move.snapshot] = data
            elif move.snapshot not in held.blobs:
                raise no_snapshot(agent, move.snapshot)
            held.objects.update(objects)
            held.journal.append(move)
            self._held[agent] = held

    def _create(
        self,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        *,
        source: str | None,
        replace: bool,
        objects: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> None:
        with self._lock:
            if agent in self._held and not replace:
                raise agent_exists(agent)
            origin = self._held[source] if source in self._held else _Agent([], {}, {}, {})
            shared, theirs = origin.blobs, origin.objects
            held: dict[str, bytes] = {}
            for snapshot in dict.fromkeys(move.snapshot for move in moves):
                if snapshot not in blobs and snapshot not in shared:
                    raise no_snapshot(source or agent, snapshot)
                held[snapshot] = blobs[snapshot] if snapshot in blobs else shared[snapshot]
            found = {each: theirs.get(each) if data is None else data for each, data in objects.items()}
            kept = {each: data for each, data in found.items() if data is not None}
            self._held[agent] = _Agent(list(moves), dict(tags), held, kept)

    def _set_tag(self, agent: str, name: str, snapshot: str | None) -> None:
        with self._lock:
            held = self._held.get(agent)
            if held is None:
                raise no_agent(agent)
            require_free_tag(agent, name, held.tags.get(name), snapshot)
            if snapshot is None:
                held.tags.pop(name, None)
            elif snapshot in held.blobs:
                held.tags[name] = snapshot
            else:
                raise no_snapshot(agent, snapshot)

    def _drop(self, agent: str, snapshots: Collection[str]) -> Removed:
        with self._lock:
            held = self._held.get(agent)
            if held is None:
                raise no_agent(agent)
            gone = set(snapshots) & held.blobs.keys() - {held.journal[-1].snapshot, *held.tags.values()}
            held.journal[:] = [move for move in held.journal if move.snapshot not in gone]
            return self._remove(held.blobs, gone)

    def _erase(self, agent: str) -> Removed:
        with self._lock:
            held = self._held.pop(agent, None)
            if held is None:
                raise no_agent(agent)
            return self._remove(held.blobs, set(held.blobs))

    def _objects(self, agent: str, ids: Collection[str]) -> dict[str, bytes]:
        with self._lock:
            held = self._held[agent].objects if agent in self._held else {}
            return {each: held[each] for each in ids if each in held}

    def _release(self, agent: str, ids: Collection[str], *, forgotten: bool) -> Removed:
        with self._lock:
            held = self._held.get(agent)
            if held is None:
                raise no_agent(agent)
            gone = {each for each in ids if held.objects.get(each, FORGOTTEN) != FORGOTTEN}
            removed = self._remove(held.objects, gone)
            if forgotten:
                held.objects.update(dict.fromkeys(gone, FORGOTTEN))
            return removed

    def _remove(self, held: dict[str, bytes], gone: set[str]) -> Removed:
        sizes = {each: len(held.pop(each)) for each in sorted(gone)}
        others = [part for other in self._held.values() for part in (other.blobs, other.objects)]
        kept = tuple(each for each in sizes if any(other.get(each, FORGOTTEN) != FORGOTTEN for other in others))
        removed = tuple(each for each in sizes if each not in kept)
        return Removed(removed, kept, sum(sizes[each] for each in removed))
