"""Child processes that run to their end or are killed at a chosen moment."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import torch


def fork_child(act: Callable[[], object]) -> int:
    """Runs `act` in a child process and returns its pid. The child exits with 0, or with 1 if `act` raises."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    # Ends the child if the parent fails before it does.
    signal.alarm(120)
    try:
        # The parent's thread pool does not exist in the child.
        torch.set_num_threads(1)
        act()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def in_child(act: Callable[[], object]) -> int:
    """Runs `act` in a child process and returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(fork_child(act), 0)[1])


def killed_at(count: int, calls: Sequence[str], act: Callable[[], object]) -> bool:
    """Runs `act` in a child that is killed just before its `count`-th of the system `calls`.

    False if it ended with fewer calls.
    """

    def run() -> None:
        left = count

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in calls:
            setattr(os, name, counted(getattr(os, name)))
        act()

    code = in_child(run)
    assert code in (0, -signal.SIGKILL)
    return code != 0
