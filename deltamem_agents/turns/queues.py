"""One mutex per agent, at which the agent's turns wait for each other. Unused mutexes are freed."""

from __future__ import annotations

from weakref import WeakValueDictionary

from deltamem_agents.processes import Mutex


class Queues:
    """The mutexes of all agents. Safe to use from many threads."""

    def __init__(self) -> None:
        self._mutexes: WeakValueDictionary[str, Mutex] = WeakValueDictionary()
        self._lock = Mutex()

    def of(self, agent: str) -> Mutex:
        """The agent's mutex. All threads that hold it or wait for it get the same object."""
        with self._lock:
            mutex = self._mutexes.get(agent)
            if mutex is None:
                mutex = self._mutexes[agent] = Mutex()
            return mutex
