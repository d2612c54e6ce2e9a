"""Runs a blocking generator in a thread, so that it does not block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


async def off_loop(items: Generator[Item, None, None]) -> AsyncGenerator[Item, None]:
    """Yields the items. Each is made in a worker thread when it is requested, never ahead of time.

    So the generator stops when its consumer stops. Each generator has its own thread: turns in one batch wait for each
    other's tokens, and would deadlock if they had to share threads. Closing or cancelling waits for the item being
    made, and then closes the generator.
    """
    loop, worker = asyncio.get_running_loop(), ThreadPoolExecutor(1, "deltamem-stream")

    def make() -> tuple[Item] | None:
        # A StopIteration cannot pass through a future.
        for item in items:
            return (item,)
        return None

    try:
        while (made := await asyncio.shield(loop.run_in_executor(worker, make))) is not None:
            yield made[0]
    finally:
        # The worker has one thread, so the item being made is finished first.
        try:
            await asyncio.shield(loop.run_in_executor(worker, items.close))
        finally:
            worker.shutdown(wait=False)
