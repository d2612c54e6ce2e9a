"""Safety in forked processes: resets locks that the parent held, and detects torch threads that a fork lacks."""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

from deltamem_agents.errors import ForkedProcessError

_renewed: WeakSet[Renewed] = WeakSet()
_computing: int | None = None


class Renewed(Protocol):
    """An object that must be reset in a forked child."""

    def renew(self) -> None: ...


def renewed_in_forks(thing: Renewed) -> None:
    """Calls `thing.renew()` in every later fork of this process."""
    _renewed.add(thing)


class Mutex:
    """A lock that is open in a forked child, even if a thread of the parent held it: the child lacks that thread."""

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
    """Records that torch may have threads in this process from now on. A fork would lack them."""
    global _computing
    _computing = _computing or os.getpid()


def require_threads(*, needed: bool) -> None:
    """Raises ForkedProcessError in a fork of a process that has computed, if threads or a GPU are `needed`.

    Computing in such a fork would wait forever for threads that the fork does not have.
    """
    if needed and _computing not in (None, os.getpid()):
        raise ForkedProcessError(
            f"process {os.getpid()} was forked from process {_computing} after a model was opened there. A fork has "
            "neither its threads nor its GPU, so computing would hang. Use the start method 'spawn' "
            "(multiprocessing.get_context('spawn'), ProcessPoolExecutor(mp_context=…)), or open the model only in "
            "the workers (gunicorn without --preload). On a CPU, torch.set_num_threads(1) in the worker also helps"
        )


def _renew_all() -> None:
    for thing in list(_renewed):
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
