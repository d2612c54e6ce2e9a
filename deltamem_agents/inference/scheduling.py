"""Whose forward pass comes next. Knows threads and waiting, and nothing of models.

One pass runs at a time, so that passes do not fight over cores. Turns that decode wait for their next token together,
and one of their threads runs one pass for all of them; everything else (a chunk of a prompt, a question that is
matched) takes turns with these passes. Both queues are first come, first served. Between two passes of those who
decode, as many short prompts go first as have the tokens of one long prompt's chunk, so that their turns are in the
next one; those of them that are of a kind share a pass too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
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

BETWEEN = 128
"""Tokens of prompts that may go between two passes of those who decode; one chunk may whatever its length."""

ASLEEP = 0.25
"""Seconds after which a turn whose reader asks for nothing more no longer keeps others waiting."""


@dataclass(eq=False)
class Ticket:
    """A thread's place in a queue. `granted`: it is its turn. `over`: it was done, maybe by another thread.

    `tokens`: how many go through the model.
    """

    tokens: int = field(init=False, default=BETWEEN)
    wake: Condition = field(init=False)
    granted: bool = field(init=False, default=False)
    over: bool = field(init=False, default=False)


@dataclass(eq=False)
class Step(Ticket):
    """One token of one row, that waits to be in a pass with others. `result`: logits, or what went wrong."""

    result: Tensor | Exception | None = field(init=False, default=None)
    share: float = field(init=False, default=0.0)


@dataclass(eq=False)
class Errand(Ticket):
    """Tokens of a prompt that wait to go through the model, with those of others that are of the same `kind`.

    `kind`: None where nobody's are. `wrong`: what went wrong with it. `share`: its part of the seconds that it took.
    """

    tokens: int = field()
    kind: Hashable
    wrong: Exception | None = field(init=False, default=None)
    share: float = field(init=False, default=0.0)

    def run(self, errands: Sequence[Errand]) -> None:
        """Do errands of one kind, of which this is one, and leave in each what came of it."""
        raise NotImplementedError


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
    def exclusively(self, row: object, tokens: int = BETWEEN) -> Iterator[None]:
        """The model for oneself, once it is one's turn, and for a row that is with no others any more.

        `tokens`: how many are about to go through it.
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

    def see_to(self, errand: Errand) -> None:
        """Have an errand done, with those of others; raises what went wrong with it."""
        self.inside = True
        try:
            self.scheduler.see_to(errand)
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
        self._busy, self._between = False, 0
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
    def exclusively(self, seat: Seat[StepT] | None = None, tokens: int = BETWEEN) -> Iterator[None]:
        """The model for oneself, once it is one's turn. Not to be nested. `tokens`: how many go through it."""
        ticket = Ticket()
        ticket.tokens = tokens
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
                self._busy = False
                self._dispatch()

    def see_to(self, errand: Errand) -> None:
        """Have an errand done, with those of others; raises what went wrong with it."""
        with self._lock:
            errand.wake = Condition(self._lock)
            self._queue.append(errand)
            self._dispatch()
            try:
                while not errand.over:
                    if errand.granted:
                        self._run_errands(errand)
                    else:
                        errand.wake.wait()
            except BaseException:
                self._give_up(errand)
                raise
        if errand.wrong is not None:
            raise errand.wrong

    def _run_errands(self, first: Errand) -> None:
        """Run an errand and those that wait and are of its kind, with the lock let go meanwhile.

        Where they could not be run together, or this thread was interrupted, each of the others' is run by its own.
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
            seconds = (time.monotonic() - begun) / sum(each.tokens for each in taken)
            self._lock.acquire()
            self._busy, first.granted, first.wrong = False, False, failed
            left = [each for each in left if not each.over]
            for each in left:
                each.kind = None
            self._queue.extendleft(reversed(left))
            for each in taken:
                each.over, each.share = each not in left, each.share + seconds * each.tokens
                each.wake.notify()
            self._dispatch()

    def _with_others(self, first: Errand) -> list[Errand]:
        """An errand and those that share its pass, which leave the queue."""
        taken, tokens = [first], first.tokens
        for other in list(self._queue):
            if not isinstance(other, Errand) or first.kind is None or other.kind != first.kind:
                continue
            if tokens + other.tokens <= BETWEEN and len(taken) < self.at_once:
                self._queue.remove(other)
                taken.append(other)
                tokens += other.tokens
        self._between += tokens - first.tokens
        return taken

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
            self._busy, self._between = False, 0
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
        if self._queue and (not ready or not self._between or self._between + self._queue[0].tokens <= BETWEEN):
            ticket: Ticket = self._queue.popleft()
            self._between += ticket.tokens
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
        ticket.over = True
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
