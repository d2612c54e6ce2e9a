"""What a forked process must not take over from its parent: held mutexes, and a thread pool that is not there."""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

from deltamem_agents.errors import ForkedProcessError

_renewed: WeakSet[Renewed] = WeakSet()
_computing: int | None = None


class Renewed(Protocol):
    """What a forked child must not take over as its parent left it."""

    def renew(self) -> None: ...


def renewed_in_forks(thing: Renewed) -> None:
    """From now on, `thing` is renewed in every fork of this process."""
    _renewed.add(thing)


class Mutex:
    """A lock that a forked child finds open, whichever thread of its parent held it; that thread is not there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renewed_in_forks(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        self._lock = threading.Lock()


def begin_computing() -> None:
    """From now on, torch may have threads in this process which a fork of it lacks."""
    global _computing
    _computing = _computing or os.getpid()


def require_threads(*, needed: bool) -> None:
    """Raises ForkedProcessError in a fork of a process that was computing, where threads (or a GPU) are `needed`.

    Computing there would wait forever for threads that were not copied.
    """
    if needed and _computing not in (None, os.getpid()):
        raise ForkedProcessError(
            f"process {os.getpid()} was forked from process {_computing} after a model was opened there. A fork has "
            "neither its threads nor its GPU, so that computing would hang. Use the start method 'spawn' "
            "(multiprocessing.get_context('spawn'), ProcessPoolExecutor(mp_context=…)), or open the model in the "
            "workers alone (gunicorn without --preload). On a CPU, torch.set_num_threads(1) in the worker will do too"
        )


def _renew_all() -> None:
    for thing in list(_renewed):
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
