"""Who in this process keeps anything of agents at hand, to be told when one is gone from its store."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

from deltamem_agents.processes import Mutex


class Keeper(Protocol):
    """Keeps what can be read or computed again."""

    def forgotten(self, agent: str) -> None:
        """Drop what is kept of agents of this name, wherever they live."""
        ...


_keepers: WeakSet[Keeper] = WeakSet()
_lock = Mutex()


def watch(keeper: Keeper) -> None:
    """From now on, while `keeper` is there, tell it which agents are forgotten or replaced."""
    with _lock:
        _keepers.add(keeper)


def tell_forgotten(agent: str) -> None:
    with _lock:
        keepers = list(_keepers)
    for keeper in keepers:
        keeper.forgotten(agent)
