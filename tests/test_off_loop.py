"""Laws of a blocking generator on an event loop: the loop is not blocked, and no item is made ahead of time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltamem_agents.turns.off_loop import off_loop


class Counting:
    """Counts to `stop` and records how far it got and whether it was closed. Waits for `gate` before each number."""

    def __init__(self, stop: int, gate: threading.Event | None = None) -> None:
        self.stop, self.gate = stop, gate
        self.made, self.closed = 0, False
        self.begun = threading.Event()

    def numbers(self) -> Generator[int, None, None]:
        try:
            for number in range(self.stop):
                self.begun.set()
                if self.gate is not None:
                    self.gate.wait()
                self.made += 1
                yield number
        finally:
            self.closed = True


async def test_the_items_arrive_in_order_and_the_generator_is_closed() -> None:
    counting = Counting(5)
    assert [number async for number in off_loop(counting.numbers())] == [0, 1, 2, 3, 4]
    assert counting.closed


async def test_no_item_is_made_before_it_is_requested() -> None:
    counting = Counting(5)
    stream = off_loop(counting.numbers())
    assert counting.made == 0
    assert await anext(stream) == 0
    await asyncio.sleep(0.02)
    assert counting.made == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert counting.closed and counting.made == 1


async def test_the_loop_runs_on_while_an_item_is_made() -> None:
    gate = threading.Event()
    counting = Counting(1, gate)
    asking = asyncio.ensure_future(anext(off_loop(counting.numbers())))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not asking.done()
    gate.set()
    assert await asking == 0


async def test_cancelling_waits_for_the_item_in_the_making_and_closes() -> None:
    gate = threading.Event()
    counting = Counting(3, gate)
    asking = asyncio.ensure_future(anext(off_loop(counting.numbers())))
    await asyncio.to_thread(counting.begun.wait)
    asking.cancel()
    await asyncio.sleep(0.01)
    assert not asking.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert counting.closed and counting.made == 1


async def test_an_error_arrives_where_the_item_would_have() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise KeyError("two")

    stream = off_loop(failing())
    assert await anext(stream) == 1
    with pytest.raises(KeyError, match="two"):
        await anext(stream)


def test_waiting_streams_do_not_block_other_streams_threads() -> None:
    async def interleave() -> list[int]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
        streams = [off_loop(Counting(2).numbers()) for _ in range(5)]
        return [await anext(stream) for _ in range(2) for stream in streams]

    assert asyncio.run(interleave()) == [0] * 5 + [1] * 5
