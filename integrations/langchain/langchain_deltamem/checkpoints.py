"""The LangGraph checkpoints behind a running step, as far as LangGraph tells a step of them.

The names are LangGraph's; nothing of it is imported, as a chat model works without it.
"""

from __future__ import annotations

from asyncio import InvalidStateError
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from langchain_core.runnables import RunnableConfig

_CHECKPOINTER = "__pregel_checkpointer"
_IDS = "checkpoint_map"


def lineage(config: RunnableConfig, *, outermost: bool = False) -> Iterator[Any]:
    """The checkpoints from which the running step grew, as `CheckpointTuple`s, newest first.

    Those of the innermost graph, or of the `outermost`. None where there is no checkpointer, or where it cannot be
    asked from here. May leave out the newest, as LangGraph saves while the next step runs.
    """
    configurable, metadata = config.get("configurable") or {}, config.get("metadata") or {}
    saver: Any = configurable.get(_CHECKPOINTER)
    ids = configurable.get(_IDS) or {}
    if not ids or not hasattr(saver, "get_tuple"):
        return
    namespace = next(iter(ids)) if outermost else next(reversed(ids))
    here = {"thread_id": configurable.get("thread_id"), "checkpoint_ns": namespace}
    # Not saved yet: where a run that travels in time began, or the newest saved, which then is this run's past.
    places = [ids[namespace], *([metadata["checkpoint_id"]] if "checkpoint_id" in metadata else []), None]
    # What a checkpointer raises that only works inside an event loop, where it is asked outside or on the loop itself.
    with suppress(NotImplementedError, InvalidStateError):
        found = None
        for place in places:
            found = found or saver.get_tuple({"configurable": {**here, **({"checkpoint_id": place} if place else {})}})
        while found is not None:
            yield found
            found = None if found.parent_config is None else saver.get_tuple(found.parent_config)
