"""Where turns of one agent wait for each other, one mutex an agent, gone when nobody waits."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary


class Queues:
    """The mutexes of all agents. Safe to use from many threads."""

    def __init__(self) -> None:
        self._mutexes: WeakValueDictionary[str, _Mutex] = WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, agent: str) -> _Mutex:
        """The agent's mutex, the same for all who hold it or wait for it."""
        with self._lock:
            mutex = self._mutexes.get(agent)
            if mutex is None:
                mutex = self._mutexes[agent] = _Mutex()
            return mutex


class _Mutex:
    """A lock that a WeakValueDictionary can hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
