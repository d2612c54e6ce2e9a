"""Tells the caches of this process when an agent was forgotten or replaced in its store."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

from deltamem_agents.processes import Mutex


class Keeper(Protocol):
    """A cache of data about agents, all of which can be read or computed again."""

    def forgotten(self, agent: str) -> None:
        """Drops everything cached for agents of this name, in any store."""
        ...


_keepers: WeakSet[Keeper] = WeakSet()
_lock = Mutex()


def watch(keeper: Keeper) -> None:
    """Calls `keeper.forgotten` for every agent that is forgotten or replaced from now on, while `keeper` exists."""
    with _lock:
        _keepers.add(keeper)


def tell_forgotten(agent: str) -> None:
    with _lock:
        keepers = list(_keepers)
    for keeper in keepers:
        keeper.forgotten(agent)
