"""A blocking iterator, consumed from an event loop without blocking it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from typing import TypeVar

Item = TypeVar("Item")


async def off_loop(items: Generator[Item, None, None]) -> AsyncIterator[Item]:
    """The items, made in a worker thread.

    Closing or cancelling waits until the generator is closed, which it is before it makes another item.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[tuple[Item] | BaseException | None]()
    abandoned = threading.Event()

    def deliver(item: tuple[Item] | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def work() -> None:
        try:
            for item in items:
                if abandoned.is_set():
                    break
                deliver((item,))
        except BaseException as error:
            deliver(error)
        finally:
            items.close()
            deliver(None)

    worker = loop.run_in_executor(None, work)
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        abandoned.set()
        await asyncio.shield(worker)
