"""The scheduler: which forward pass runs next. It knows threads and waiting, and nothing of models.

One pass runs at a time, so that passes do not compete for cores. Decoding turns wait together for their next token, and
one of their threads runs one pass for all of them. Everything else (a chunk of a prompt, the queries of a question)
alternates with these decode passes. Both queues are first come, first served. Between two decode passes, several short
prompts may run, so that their turns join the next decode pass. Prompts of the same kind share a pass too, and the next
pass waits a moment for their turns.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from deltamem_agents.errors import OverloadedError
from deltamem_agents.processes import renewed_in_forks

AT_ONCE = 16
"""Default number of turns that run at the same time and share forward passes. Further turns wait for one to end."""

WAITING = 64
"""Default number of turns that may wait."""

PATIENCE = 0.3
"""How long a pass waits for the turns of the pass before, as a fraction of that pass's time.

A turn that takes longer, for instance because its reader is slow, is left out and not waited for again. It joins a
later pass.
"""

ENTERING = 0.03
"""Seconds that a pass waits for the first request of turns that have just begun."""

BETWEEN = 128
"""Most prompt tokens between two decode passes; one chunk is always allowed, whatever its length. Twice as many if at
least twice as many turns wait for their prompts as are decoding."""

TOGETHER = 512
"""Most prompt tokens of a shared pass while no turn is decoding."""

ASLEEP = 0.25
"""Seconds without a request from its reader after which a turn no longer makes others wait."""


@dataclass(eq=False)
class Ticket:
    """A thread's place in a queue. `granted`: it may run now. `over`: its work is done, perhaps by another thread.

    `tokens`: number of tokens that go through the model.
    """

    tokens: int = field(init=False, default=BETWEEN)
    wake: Condition = field(init=False)
    granted: bool = field(init=False, default=False)
    over: bool = field(init=False, default=False)


@dataclass(eq=False)
class Step(Ticket):
    """One token of one row that waits for a shared pass. `result`: the logits, or the exception that was raised.

    `share`: this step's part of the pass's time, in seconds.
    """

    result: Tensor | Exception | None = field(init=False, default=None)
    share: float = field(init=False, default=0.0)


@dataclass(eq=False)
class PromptJob(Ticket):
    """Prompt tokens that wait for the model and may share a pass with others of its `kind`.

    `kind`: None if it shares with none. `wrong`: the exception it raised. `share`: its part of the passes' time, in
    seconds. `seat`: of the turn that it belongs to.
    """

    tokens: int = field()
    kind: Hashable
    wrong: Exception | None = field(init=False, default=None)
    share: float = field(init=False, default=0.0)
    seat: Seat[Any] | None = field(init=False, default=None)

    def run(self, jobs: Sequence[PromptJob]) -> None:
        """Run jobs of one kind, this one included, and store each result in its job."""
        raise NotImplementedError


StepT = TypeVar("StepT", bound=Step)
StepT_contra = TypeVar("StepT_contra", bound=Step, contravariant=True)


class Runner(Protocol[StepT_contra]):
    """Runs one token of each of many rows."""

    def run(self, steps: Sequence[StepT_contra]) -> list[Tensor | Exception]:
        """The next-token logits of each step's row, or the exception it raised."""
        ...

    def release(self, row: object) -> None:
        """Give a row back its own cache, so that it can run alone."""
        ...


class Seat(Generic[StepT]):
    """One sequence's access to the model. `waited`: seconds it waited for other sequences.

    `admitted`: whether it belongs to a running turn, which may share passes with others.
    """

    def __init__(self, scheduler: Scheduler[StepT], *, admitted: bool = False) -> None:
        self.scheduler, self.admitted = scheduler, admitted
        self.waited = 0.0
        self.inside, self.touched = False, time.monotonic()

    def awake(self, now: float) -> bool:
        return self.inside or now - self.touched < ASLEEP

    @property
    def alone(self) -> bool:
        """Whether no other turn is running."""
        return self.scheduler.others(self) == 0

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A lock for small work on logits: one thread at a time, so that torch does not run too many threads."""
        begun = time.monotonic()
        with self.scheduler.drawing:
            self.waited += time.monotonic() - begun
            yield

    @contextmanager
    def exclusively(self, row: object, tokens: int = BETWEEN) -> Iterator[None]:
        """Wait for exclusive use of the model, and take `row` out of the shared batch.

        `tokens`: how many are about to go through the model.
        """
        begun = time.monotonic()
        self.inside = True
        try:
            with self.scheduler.exclusively(self, tokens):
                self.waited += time.monotonic() - begun
                self.scheduler.runner.release(row)
                yield
        finally:
            self.inside, self.touched = False, time.monotonic()

    def run_job(self, job: PromptJob) -> None:
        """Run a job, perhaps in a pass with others', and raise its exception if it failed."""
        begun = time.monotonic()
        self.inside = True
        try:
            self.scheduler.run_job(job, self)
        finally:
            self.inside, self.touched = False, time.monotonic()
        self.waited += max(0.0, self.touched - begun - job.share)

    def share(self, step: StepT) -> Tensor:
        """The logits after one more token, from a pass shared with other waiting turns; raises the step's exception."""
        begun = time.monotonic()
        self.inside = True
        try:
            found = self.scheduler.share(self, step)
        finally:
            self.inside, self.touched = False, time.monotonic()
        self.waited += max(0.0, self.touched - begun - step.share)
        return found


class Scheduler(Generic[StepT]):
    """Decides what runs next. Thread-safe.

    `at_once`: turns that may run at the same time. `waiting`: turns that may wait for one of them to end.
    """

    def __init__(self, runner: Runner[StepT], at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        self.runner, self.at_once, self.waiting = runner, at_once, waiting
        self._renew()
        renewed_in_forks(self)

    def _renew(self) -> None:
        self._lock = Lock()
        self._busy, self._between = False, 0
        self._queue: deque[Ticket] = deque()
        self._due: list[tuple[Seat[StepT], StepT]] = []
        self._decoding: set[Seat[StepT]] = set()
        self._coming: set[Seat[Any]] = set()
        self._patient_until, self._together = 0.0, False
        self._leader: Seat[StepT] | None = None
        self.drawing = Lock()
        self._seats: set[Seat[StepT]] = set()
        self._lobby: deque[Ticket] = deque()

    def renew(self) -> None:
        """Drop all waiting tickets: after a fork of the process their threads do not exist."""
        self._renew()

    def seat(self) -> Seat[StepT]:
        """A seat for work outside a turn: it does not count as a turn and does not share passes."""
        return Seat(self)

    def others(self, seat: Seat[StepT]) -> int:
        with self._lock:
            now = time.monotonic()
            return sum(each is not seat and each.awake(now) for each in self._seats)

    def admitted(self, seat: Seat[StepT]) -> Generator[str, None, None]:
        """Wait until one more turn may run. Yields "" from time to time, so that the caller can close it.

        Raises OverloadedError if too many turns wait already. The caller must call `leave` afterwards in any case.
        """
        ticket = Ticket()
        with self._lock:
            if self._room and not self._lobby:
                self._enter(seat)
                return
            if len(self._lobby) >= self.waiting:
                raise OverloadedError(
                    f"{len(self._seats)} turns are running and {len(self._lobby)} wait, which is the limit; nothing "
                    "was changed. Try again later, or open the engine with more turns_at_once or turns_waiting"
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
        """End a turn: free its place and let the next one in."""
        with self._lock:
            self._seats.discard(seat)
            self._came(seat)
            self._leader = None if self._leader is seat else self._leader
            self._next_in()
            self._dispatch()

    @contextmanager
    def exclusively(self, seat: Seat[StepT] | None = None, tokens: int = BETWEEN) -> Iterator[None]:
        """Wait for exclusive use of the model. Not reentrant. `tokens`: how many go through it."""
        ticket = Ticket()
        ticket.tokens = tokens
        with self._lock:
            self._came(seat)
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
                self._busy = False
                self._dispatch()

    def run_job(self, job: PromptJob, seat: Seat[StepT] | None = None) -> None:
        """Run a job, perhaps in a pass with others', and raise its exception if it failed."""
        with self._lock:
            self._came(seat)
            job.seat = seat
            job.wake = Condition(self._lock)
            self._queue.append(job)
            self._dispatch()
            try:
                while not job.over:
                    if job.granted:
                        self._run_jobs(job)
                    else:
                        job.wake.wait(self._patience_left)
                        self._dispatch()
            except BaseException:
                self._give_up(job)
                raise
        if job.wrong is not None:
            raise job.wrong

    def _run_jobs(self, first: PromptJob) -> None:
        """Run a job together with waiting ones of its kind; the lock is released meanwhile.

        If the shared run fails or this thread is interrupted, each job that is left is run alone by its own thread.
        """
        taken = self._with_others(first)
        left, failed, begun = taken[1:], None, time.monotonic()
        self._lock.release()
        try:
            first.run(taken)
            left = []
        except Exception as error:
            left, failed = (taken, None) if len(taken) > 1 else ([], error)
        finally:
            ended = time.monotonic()
            seconds = (ended - begun) / sum(each.tokens for each in taken)
            self._lock.acquire()
            self._busy, first.granted, first.wrong = False, False, failed
            left = [each for each in left if not each.over]
            for each in left:
                each.kind = None
            self._queue.extendleft(reversed(left))
            for each in taken:
                each.over, each.share = each not in left, each.share + seconds * each.tokens
                each.wake.notify()
            self._coming.clear()
            if len(taken) > 1:
                self._coming.update(each.seat for each in taken if each.over and each.seat is not None)
                self._patient_until = ended + PATIENCE * (ended - begun)
            self._dispatch()

    def _with_others(self, first: PromptJob) -> list[PromptJob]:
        """The job and those that share its pass; these are taken out of the queue."""
        taken, tokens, most = [first], first.tokens, self._most_between
        for other in list(self._queue):
            if not isinstance(other, PromptJob) or first.kind is None or other.kind != first.kind:
                continue
            if tokens + other.tokens <= most and len(taken) < self.at_once:
                self._queue.remove(other)
                taken.append(other)
                tokens += other.tokens
        self._between += tokens - first.tokens
        return taken

    def share(self, seat: Seat[StepT], step: StepT) -> Tensor:
        """Wait until a pass has run the step; returns its logits or raises its exception."""
        with self._lock:
            step.wake = Condition(self._lock)
            self._came(seat)
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
        """Run the steps that are due; the lock is released meanwhile. Later passes do not wait for absent turns."""
        taken, self._due = self._due[: self.at_once], self._due[self.at_once :]
        self._decoding = {seat for seat, _ in (*taken, *self._due)}
        self._coming.clear()
        results: Sequence[Tensor | Exception] = ()
        self._lock.release()
        begun = time.monotonic()
        try:
            results = self.runner.run([step for _, step in taken])
        finally:
            ended = time.monotonic()
            self._lock.acquire()
            self._busy, self._between = False, 0
            for _, step in taken:
                step.granted = False
            self._patient_until = ended + PATIENCE * (ended - begun)
            for (_, step), result in zip(taken, results, strict=False):
                step.result, step.share, step.over = result, (ended - begun) / len(taken), True
                step.wake.notify()
            # If this thread was interrupted, another one has to run these steps.
            self._due = [each for each in taken if not each[1].over] + self._due
            # A single thread that reads several streams alternately never has two steps due at once.
            self._together = len(taken) > 1 or bool(self._due)
            self._dispatch()

    def _dispatch(self) -> None:
        """Start whatever is next, if nothing is running. The caller holds the lock."""
        if self._busy:
            return
        due, patient = len(self._due), time.monotonic() < self._patient_until
        gathering = patient and bool(self._coming)
        missing = patient and self._together and due < min(self.at_once, len(self._decoding))
        ready = due > 0 and not (gathering or missing)
        room = self._most_between - self._between
        held = gathering and bool(self._queue) and isinstance(self._queue[0], PromptJob)
        if self._queue and not held and (not ready or not self._between or self._queue[0].tokens <= room):
            ticket: Ticket = self._queue.popleft()
            self._between += ticket.tokens
        elif ready:
            # Prefer the same thread for every pass: torch starts a pool of threads for each thread that runs passes.
            able = self._due[: self.at_once]
            ticket = next((step for seat, step in able if seat is self._leader), able[0][1])
            self._leader = next(seat for seat, step in able if step is ticket)
        else:
            return
        self._busy = ticket.granted = True
        ticket.wake.notify()

    @property
    def _most_between(self) -> int:
        """Most prompt tokens from now on until the next decode pass."""
        if not self._decoding:
            return TOGETHER
        waiting = len(self._queue) + self._busy
        return BETWEEN if waiting < 2 * len(self._decoding) else 2 * BETWEEN

    @property
    def _patience_left(self) -> float | None:
        """Seconds until a waiting thread must check again whether a pass can start; None: sleep until notified."""
        if self._busy or not (self._due or self._queue):
            return None
        return max(0.0, self._patient_until - time.monotonic())

    def _give_up(self, ticket: Ticket) -> None:
        """Remove the ticket of a thread that stops waiting. The caller holds the lock."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._due = [(seat, step) for seat, step in self._due if step is not ticket]
        if ticket.granted and not ticket.over:
            self._busy = False
        ticket.over = True
        self._dispatch()

    def _came(self, seat: Seat[Any] | None) -> None:
        """Passes need not wait for this turn's next request. It is not decoding until it asks for a token."""
        if seat is not None:
            self._coming.discard(seat)
            self._decoding.discard(seat)

    @property
    def _room(self) -> bool:
        now = time.monotonic()
        return sum(seat.awake(now) for seat in self._seats) < self.at_once

    def _enter(self, seat: Seat[StepT]) -> None:
        seat.admitted = True
        seat.touched = time.monotonic()
        self._seats.add(seat)
        self._coming.add(seat)
        self._patient_until = max(self._patient_until, seat.touched + ENTERING)

    def _next_in(self) -> None:
        if self._lobby:
            self._lobby[0].wake.notify()
