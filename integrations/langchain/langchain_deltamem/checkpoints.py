"""Finds the LangGraph checkpoints behind a running step, from what its config contains.

The key names are LangGraph's. LangGraph is not imported, because the chat model works without it.
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
    """The checkpoints before the running step, as `CheckpointTuple`s, newest first.

    They are those of the innermost graph, or with `outermost` of the outermost one. Empty if there is no checkpointer
    or if it cannot be called from here. The newest checkpoint may be missing, because LangGraph saves it while the next
    step runs.
    """
    configurable, metadata = config.get("configurable") or {}, config.get("metadata") or {}
    saver: Any = configurable.get(_CHECKPOINTER)
    ids = configurable.get(_IDS) or {}
    if not ids or not hasattr(saver, "get_tuple"):
        return
    namespace = next(iter(ids)) if outermost else next(reversed(ids))
    here = {"thread_id": configurable.get("thread_id"), "checkpoint_ns": namespace}
    # If the newest is not saved yet: the checkpoint that a time-travel run started from, or the newest saved one.
    places = [ids[namespace], *([metadata["checkpoint_id"]] if "checkpoint_id" in metadata else []), None]
    # An async-only checkpointer raises these when it is called outside the event loop or on the loop itself.
    with suppress(NotImplementedError, InvalidStateError):
        found = None
        for place in places:
            found = found or saver.get_tuple({"configurable": {**here, **({"checkpoint_id": place} if place else {})}})
        while found is not None:
            yield found
            found = None if found.parent_config is None else saver.get_tuple(found.parent_config)
