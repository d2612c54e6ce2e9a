"""Where turns of one agent wait for each other, one mutex an agent, gone when nobody waits."""

from __future__ import annotations

from weakref import WeakValueDictionary

from deltamem_agents.processes import Mutex


class Queues:
    """The mutexes of all agents. Safe to use from many threads."""

    def __init__(self) -> None:
        self._mutexes: WeakValueDictionary[str, Mutex] = WeakValueDictionary()
        self._lock = Mutex()

    def of(self, agent: str) -> Mutex:
        """The agent's mutex, the same for all who hold it or wait for it."""
        with self._lock:
            mutex = self._mutexes.get(agent)
            if mutex is None:
                mutex = self._mutexes[agent] = Mutex()
            return mutex
