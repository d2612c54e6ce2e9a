"""Whose forward pass comes next. Knows threads and waiting, and nothing of models.

One pass runs at a time, so that passes do not fight over cores. Turns that decode wait for their next token together,
and one of their threads runs one pass for all of them; everything else (a chunk of a prompt, a question that is
matched) runs alone, and takes turns with these passes. Both queues are first come, first served.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from deltamem_agents.errors import OverloadedError
from deltamem_agents.processes import renewed_in_forks

AT_ONCE = 16
"""Turns that share forward passes, unless an engine is told otherwise. More wait for one of them to be over."""

WAITING = 64
"""Turns that may wait."""

PATIENCE = 0.3
"""How long a pass is held up for turns that were in the one before, as a part of what that one took.

Whose reader is slower than that is left out, is not waited for again, and comes in later.
"""

ASLEEP = 0.25
"""Seconds after which a turn whose reader asks for nothing more no longer keeps others waiting."""


@dataclass(eq=False)
class Ticket:
    """A thread's place in a queue. `granted`: it is its turn. `over`: another thread has done it."""

    wake: Condition = field(init=False)
    granted: bool = field(init=False, default=False)
    over: bool = field(init=False, default=False)


@dataclass(eq=False)
class Step(Ticket):
    """One token of one row, that waits to be in a pass with others. `result`: logits, or what went wrong."""

    result: Tensor | Exception | None = field(init=False, default=None)
    share: float = field(init=False, default=0.0)


StepT = TypeVar("StepT", bound=Step)
StepT_contra = TypeVar("StepT_contra", bound=Step, contravariant=True)


class Runner(Protocol[StepT_contra]):
    """Runs one token of each of many rows."""

    def run(self, steps: Sequence[StepT_contra]) -> list[Tensor | Exception]:
        """What each step's row says next, or what went wrong with it."""
        ...

    def release(self, row: object) -> None:
        """Give a row back what it needs to go on alone."""
        ...


class Seat(Generic[StepT]):
    """One sequence's way to the model. `waited`: seconds for which it waited there for others.

    `admitted`: whether it belongs to a turn under way, which may share its passes with others.
    """

    def __init__(self, scheduler: Scheduler[StepT], *, admitted: bool = False) -> None:
        self.scheduler, self.admitted = scheduler, admitted
        self.waited = 0.0
        self.inside, self.touched = False, time.monotonic()

    def awake(self, now: float) -> bool:
        return self.inside or now - self.touched < ASLEEP

    @property
    def alone(self) -> bool:
        """Whether no other turn is under way."""
        return self.scheduler.others(self) == 0

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """For small work on logits: one thread at a time does any, so that torch's threads are not many."""
        begun = time.monotonic()
        with self.scheduler.drawing:
            self.waited += time.monotonic() - begun
            yield

    @contextmanager
    def exclusively(self, row: object) -> Iterator[None]:
        """The model for oneself, once it is one's turn, and for a row that is with no others any more."""
        begun = time.monotonic()
        self.inside = True
        try:
            with self.scheduler.exclusively(self):
                self.waited += time.monotonic() - begun
                self.scheduler.runner.release(row)
                yield
        finally:
            self.inside, self.touched = False, time.monotonic()

    def share(self, step: StepT) -> Tensor:
        """The logits after one more token, in a pass with those who wait for theirs; raises what came of it."""
        begun = time.monotonic()
        self.inside = True
        try:
            found = self.scheduler.share(self, step)
        finally:
            self.inside, self.touched = False, time.monotonic()
        self.waited += max(0.0, self.touched - begun - step.share)
        return found


class Scheduler(Generic[StepT]):
    """Who runs next. Safe to use from many threads.

    `at_once`: turns that are under way together; `waiting`: turns that may wait for one of them to be over.
    """

    def __init__(self, runner: Runner[StepT], at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        self.runner, self.at_once, self.waiting = runner, at_once, waiting
        self._renew()
        renewed_in_forks(self)

    def _renew(self) -> None:
        self._lock = Lock()
        self._busy, self._shared_last = False, False
        self._queue: deque[Ticket] = deque()
        self._due: list[tuple[Seat[StepT], StepT]] = []
        self._decoding: set[Seat[StepT]] = set()
        self._patient_until, self._together = 0.0, False
        self._leader: Seat[StepT] | None = None
        self.drawing = Lock()
        self._seats: set[Seat[StepT]] = set()
        self._lobby: deque[Ticket] = deque()

    def renew(self) -> None:
        """Forget all who wait: a fork of the process lacks their threads."""
        self._renew()

    def seat(self) -> Seat[StepT]:
        """A seat for what is no turn: it is not counted, and does not share."""
        return Seat(self)

    def others(self, seat: Seat[StepT]) -> int:
        with self._lock:
            now = time.monotonic()
            return sum(each is not seat and each.awake(now) for each in self._seats)

    def admitted(self, seat: Seat[StepT]) -> Generator[str, None, None]:
        """Wait until there is room for one more turn; yields "" now and then, so that closing is noticed.

        Raises OverloadedError where too many wait already. `leave` has to follow, whatever happens.
        """
        ticket = Ticket()
        with self._lock:
            if self._room and not self._lobby:
                self._enter(seat)
                return
            if len(self._lobby) >= self.waiting:
                raise OverloadedError(
                    f"{len(self._seats)} turns are under way and {len(self._lobby)} wait, as many as may; nothing was "
                    "changed. Try again later, or open the engine with more turns_at_once or turns_waiting"
                )
            ticket.wake = Condition(self._lock)
            self._lobby.append(ticket)
        begun = time.monotonic()
        try:
            while True:
                with self._lock:
                    if not (self._room and self._lobby[0] is ticket):
                        ticket.wake.wait(ASLEEP)
                    if self._room and self._lobby[0] is ticket:
                        self._enter(seat)
                        return
                yield ""
        finally:
            with self._lock:
                self._lobby.remove(ticket)
                self._next_in()
            seat.waited += time.monotonic() - begun

    def leave(self, seat: Seat[StepT]) -> None:
        """A turn is over."""
        with self._lock:
            self._seats.discard(seat)
            self._decoding.discard(seat)
            self._leader = None if self._leader is seat else self._leader
            self._next_in()
            self._dispatch()

    @contextmanager
    def exclusively(self, seat: Seat[StepT] | None = None) -> Iterator[None]:
        """The model for oneself, once it is one's turn. Not to be nested."""
        ticket = Ticket()
        with self._lock:
            if seat is not None:
                self._decoding.discard(seat)
            ticket.wake = Condition(self._lock)
            self._queue.append(ticket)
            self._dispatch()
            try:
                while not ticket.granted:
                    ticket.wake.wait()
            except BaseException:
                self._give_up(ticket)
                raise
        try:
            yield
        finally:
            with self._lock:
                self._busy, self._shared_last = False, False
                self._dispatch()

    def share(self, seat: Seat[StepT], step: StepT) -> Tensor:
        """The logits of a step, once a pass was made with it; raises what came of it."""
        with self._lock:
            step.wake = Condition(self._lock)
            self._due.append((seat, step))
            self._decoding.add(seat)
            self._dispatch()
            try:
                while not step.over:
                    if step.granted:
                        self._lead()
                    else:
                        step.wake.wait(self._patience_left)
                        self._dispatch()
            except BaseException:
                self._give_up(step)
                raise
        if isinstance(step.result, Exception):
            raise step.result
        assert step.result is not None
        return step.result

    def _lead(self) -> None:
        """Run the steps that are due, with the lock let go meanwhile. Who was not here in time is not waited for."""
        taken, self._due = self._due[: self.at_once], self._due[self.at_once :]
        self._decoding = {seat for seat, _ in (*taken, *self._due)}
        results: Sequence[Tensor | Exception] = ()
        self._lock.release()
        begun = time.monotonic()
        try:
            results = self.runner.run([step for _, step in taken])
        finally:
            ended = time.monotonic()
            self._lock.acquire()
            self._busy, self._shared_last = False, True
            for _, step in taken:
                step.granted = False
            self._patient_until = ended + PATIENCE * (ended - begun)
            for (_, step), result in zip(taken, results, strict=False):
                step.result, step.share, step.over = result, (ended - begun) / len(taken), True
                step.wake.notify()
            # Where this thread was interrupted, another one has to run them.
            self._due = [each for each in taken if not each[1].over] + self._due
            # One thread that reads several streams in turn never has two tokens wait at once.
            self._together = len(taken) > 1 or bool(self._due)
            self._dispatch()

    def _dispatch(self) -> None:
        """Let whoever is next run, where nobody runs. The lock is held."""
        if self._busy:
            return
        due = len(self._due)
        missing = self._together and due < min(self.at_once, len(self._decoding))
        ready = due > 0 and not (missing and time.monotonic() < self._patient_until)
        if self._queue and (self._shared_last or not ready):
            ticket: Ticket = self._queue.popleft()
        elif ready:
            # Whoever led before leads again if it can: each thread that runs passes has torch's threads beside it.
            able = self._due[: self.at_once]
            ticket = next((step for seat, step in able if seat is self._leader), able[0][1])
            self._leader = next(seat for seat, step in able if step is ticket)
        else:
            return
        self._busy = ticket.granted = True
        ticket.wake.notify()

    @property
    def _patience_left(self) -> float | None:
        """How long who waits at the head of the row sleeps before it looks again; None for until it is woken."""
        if self._busy or not self._due:
            return None
        return max(0.0, self._patient_until - time.monotonic())

    def _give_up(self, ticket: Ticket) -> None:
        """A thread stops waiting. The lock is held."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._due = [(seat, step) for seat, step in self._due if step is not ticket]
        if ticket.granted and not ticket.over:
            self._busy = False
        self._dispatch()

    @property
    def _room(self) -> bool:
        now = time.monotonic()
        return sum(seat.awake(now) for seat in self._seats) < self.at_once

    def _enter(self, seat: Seat[StepT]) -> None:
        seat.admitted = True
        seat.touched = time.monotonic()
        self._seats.add(seat)

    def _next_in(self) -> None:
        if self._lobby:
            self._lobby[0].wake.notify()
