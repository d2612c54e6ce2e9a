"""A blocking iterator, consumed from an event loop without blocking it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


async def off_loop(items: Generator[Item, None, None]) -> AsyncGenerator[Item, None]:
    """The items, each made in a worker thread when it is asked for, and none ahead of that.

    So whoever stops asking stops the generator. The worker is the generator's own: those of many streams wait for each
    other's tokens, so none may keep another from a thread. Closing or cancelling waits for an item that is being made,
    then for the generator to be closed.
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
        # One thread does one thing after another: whatever is being made comes first.
        try:
            await asyncio.shield(loop.run_in_executor(worker, items.close))
        finally:
            worker.shutdown(wait=False)
