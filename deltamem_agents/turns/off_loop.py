"""A blocking iterator, consumed from an event loop without blocking it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

Item = TypeVar("Item")


async def off_loop(items: Generator[Item, None, None]) -> AsyncGenerator[Item, None]:
    """The items, each made in a worker thread when it is asked for, and none ahead of that.

    So whoever stops asking stops the generator, and a worker is free again between two items. Closing or
    cancelling waits for an item that is being made, then for the generator to be closed.
    """
    loop, busy = asyncio.get_running_loop(), threading.Lock()

    def make() -> tuple[Item] | None:
        # A StopIteration cannot pass through a future.
        with busy:
            for item in items:
                return (item,)
            return None

    def close() -> None:
        with busy:
            items.close()

    try:
        while (made := await asyncio.shield(loop.run_in_executor(None, make))) is not None:
            yield made[0]
    finally:
        await asyncio.shield(loop.run_in_executor(None, close))
