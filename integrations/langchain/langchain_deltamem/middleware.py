"""The memory inside LangGraph's checkpoints: messages and memory are saved, forked and deleted together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ExtendedModelResponse, PrivateStateAttr
from langchain_core.runnables import ensure_config, run_in_executor
from langgraph.types import Command

from deltamem_agents import InMemoryStore, Snapshot, StaleHead, Store
from deltamem_agents.snapshots import Receipt, StoreLike, decode, encode, open_store
from langchain_deltamem.identity import thread_name, threads_of, use_agent

STATE_KEY = "deltamem_state"
_AGENT = "checkpoint"
_THREAD = "conversation"
_STORED = "checkpoint:"


class DeltaMemState(AgentState[Any]):
    """The agent's state with its memory: a snapshot's bytes, or its id where a store keeps the bytes."""

    deltamem_state: NotRequired[Annotated[bytes | str, PrivateStateAttr]]


class DeltaMemMiddleware(AgentMiddleware[DeltaMemState, Any, Any]):
    """Keeps the memory of `create_agent`'s `ChatDeltaMem` in the graph's checkpoints.

    Resuming, time travel, forks, interrupts, retries and `delete_thread` then treat the memory as they
    treat the messages. Where messages of the past are edited, the memory is built anew from the messages
    that the model is shown.

    `store`: None keeps the snapshot itself in every checkpoint, some kilobytes each. A Store, path or URL
    keeps it there, and its id in the checkpoint; deleting a thread then needs `forget` as well.
    """

    state_schema = DeltaMemState

    def __init__(self, store: StoreLike = None) -> None:
        super().__init__()
        self.tools = []
        self._store = None if store is None else open_store(store)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        carried = self._unpacked(request)
        with use_agent(_AGENT, thread=_THREAD, store=carried):
            response = handler(request)
        return self._packed(response, carried, request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        carried = await run_in_executor(None, self._unpacked, request)
        with use_agent(_AGENT, thread=_THREAD, store=carried):
            response = await handler(request)
        return await run_in_executor(None, self._packed, response, carried, request)

    def forget(self, thread_id: str) -> list[Receipt]:
        """Erase what `store` holds of a LangGraph thread and its sub-agents; call it with `delete_thread`.

        Without a store there is nothing to erase, as the checkpoints held it all.
        """
        if self._store is None:
            return []
        kept = threads_of(thread_id, (agent.removeprefix(_STORED) for agent in self._stored()))
        return [self._store.forget(_STORED + name) for name in kept]

    def _stored(self) -> list[str]:
        assert self._store is not None
        return [agent for agent in self._store.agents() if agent.startswith(_STORED)]

    def _unpacked(self, request: ModelRequest[Any]) -> InMemoryStore:
        """A fresh store that holds the checkpoint's memory, so that a retry starts where the first try did."""
        carried, held = InMemoryStore(), request.state.get(STATE_KEY)
        if held is not None:
            snapshot = decode(held) if isinstance(held, bytes) else self._durable().load(_kept_as(), str(held)).snapshot
            carried.save(_AGENT, snapshot, expected=None)
        return carried

    def _packed(
        self, response: ModelResponse[Any], carried: InMemoryStore, request: ModelRequest[Any]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        if carried.head(_AGENT) is None:
            return response
        snapshot = carried.load(_AGENT).snapshot
        held = encode(snapshot) if self._store is None else _keep(self._store, snapshot)
        if held == request.state.get(STATE_KEY):
            return response
        return ExtendedModelResponse(model_response=response, command=Command(update={STATE_KEY: held}))

    def _durable(self) -> Store:
        if self._store is None:
            raise ValueError(
                "this checkpoint holds the id of a memory, not the memory: give DeltaMemMiddleware the store "
                "that it was made with"
            )
        return self._store


def _kept_as() -> str:
    """The stored agent of the running LangGraph thread."""
    return _STORED + (thread_name(ensure_config()) or "no thread")


def _keep(store: Store, snapshot: Snapshot) -> str:
    """Add a snapshot under its content's address. Any number of branches of a thread share one agent."""
    agent = _kept_as()
    while True:
        try:
            return store.save(agent, snapshot, expected=store.head(agent))
        except StaleHead:
            continue
