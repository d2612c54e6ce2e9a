"""Keeps the memory in LangGraph's checkpoints, so that messages and memory are saved, forked and deleted together."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, NotRequired, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ExtendedModelResponse, PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langchain_core.runnables import ensure_config, run_in_executor
from langgraph.runtime import Runtime
from langgraph.types import Command

from deltamem_agents import AgentNotFoundError, DeltaMemEngine, InMemoryStore, Message, Snapshot, StaleHeadError, Store
from deltamem_agents.chat.history import digest
from deltamem_agents.errors import AgentForgottenError
from deltamem_agents.snapshots import Receipt, StoreLike, decode, encode, inline, open_store, snapshot_id
from deltamem_agents.types import ThreadLog
from langchain_deltamem.chat_models import ChatDeltaMem
from langchain_deltamem.checkpoints import lineage
from langchain_deltamem.errors import as_model_errors
from langchain_deltamem.identity import thread_name, threads_of, use_agent
from langchain_deltamem.messages import to_messages
from langchain_deltamem.revisions import Revision, Seen, after, digests, merged, revise, summaries

STATE_KEY: Final = "deltamem_state"
SEEN_KEY: Final = "deltamem_messages"
BEGAN_KEY: Final = "deltamem_began"
_AGENT = "checkpoint"
_THREAD = "conversation"
_STORED = "checkpoint:"

_log = logging.getLogger(__name__)


class DeltaMemState(AgentState[Any]):
    """The graph's state with the memory: `deltamem_state` is a snapshot's bytes, or its id if a store has the bytes.

    `deltamem_messages`: which messages the memory has, by id and digest; see `revisions.Seen`.
    `deltamem_began`: the messages with which the run began, kept while an edit has not reached the memory yet.
    """

    deltamem_state: NotRequired[Annotated[bytes | str, PrivateStateAttr]]
    deltamem_messages: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]
    deltamem_began: NotRequired[Annotated[list[AnyMessage], PrivateStateAttr]]


@dataclass(frozen=True)
class _Start:
    """The start of a model call. `carried`: a temporary store with the memory, so that a retry starts from the same.

    `head`: the memory's id in `carried`. `objects`: addresses of the statements that it was loaded with. `thread`:
    which of the conversation's windows the call belongs to, see `_current_thread`. `shown`: the graph's messages, id to
    digest. `seen`: which messages the checkpoint's memory had. `left_out`: ids of summaries that are not written.
    `undone`: number of messages removed from the memory. `incarnation`: see `Store.incarnation`, of the thread in the
    middleware's store. `parent`: id of the stored memory that the call continues.
    """

    shown: Mapping[str, str]
    seen: Seen | None
    revision: Revision = field(default_factory=Revision)
    left_out: frozenset[str] = frozenset()
    undone: int = 0
    incarnation: str | None = None
    parent: str | None = None
    carried: InMemoryStore = field(default_factory=InMemoryStore)
    head: str | None = None
    objects: frozenset[str] = frozenset()
    thread: str = _THREAD


class DeltaMemMiddleware(AgentMiddleware[DeltaMemState, Any, Any]):
    """Keeps the memory of `create_agent`'s `ChatDeltaMem` in the graph's checkpoints.

    Resuming, time travel, forks, interrupts, retries and `delete_thread` then treat the memory as they treat the
    messages. If a message is edited, or deleted from the middle or the end, the memory is changed too. A message that
    is trimmed or summarised stays in the memory.

    `store`: None keeps the full state in every checkpoint, at most 100 KB each, however much was told. Then there are
    no separate statements: a reply reads the full state, reports no recalled statements, and none can be listed,
    forgotten or corrected. A Store, path or URL keeps the memory there, with its statements, and only its id in the
    checkpoint; deleting a thread then also needs `forget`.
    """

    state_schema = DeltaMemState

    def __init__(self, store: StoreLike = None) -> None:
        super().__init__()
        self.tools = []
        self._store = None if store is None else open_store(store)

    def before_agent(self, state: DeltaMemState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """If messages were edited or deleted, records the messages before other middleware trims them."""
        seen = Seen.of(state.get(SEEN_KEY))
        if seen is None:
            return None
        began = state.get(BEGAN_KEY) or []
        messages, _ = merged(began, state["messages"])
        revision = revise(seen, digests(messages), summaries(messages), began=True)
        return {BEGAN_KEY: messages} if began or revision.undone(seen) else None

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        with as_model_errors():
            start = self._start(request)
        with use_agent(_AGENT, thread=start.thread, store=start.carried):
            response = handler(request)
        with as_model_errors():
            return self._with_update(response, start, request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        with as_model_errors():
            start = await run_in_executor(None, self._start, request)
        with use_agent(_AGENT, thread=start.thread, store=start.carried):
            response = await handler(request)
        with as_model_errors():
            return await run_in_executor(None, self._with_update, response, start, request)

    def forget(self, thread_id: str) -> list[Receipt]:
        """Erases the memory of a LangGraph thread and its sub-agents from `store`. Call `delete_thread` as well.

        Without a store there is nothing to erase, because everything was in the checkpoints.
        """
        if self._store is None:
            return []
        kept = threads_of(thread_id, (agent.removeprefix(_STORED) for agent in self._stored()))
        return [self._store.forget(_STORED + name) for name in kept]

    def _stored(self) -> list[str]:
        assert self._store is not None
        return [agent for agent in self._store.agents() if agent.startswith(_STORED)]

    def _start(self, request: ModelRequest[Any]) -> _Start:
        """The start of a model call: the checkpoint's memory without messages that were edited or deleted since."""
        state = cast("DeltaMemState", request.state)
        shown, seen = digests(state["messages"]), Seen.of(state.get(SEEN_KEY))
        held = state.get(STATE_KEY)
        snapshot = None if held is None else self._snapshot(held)
        incarnation = None if self._store is None else self._store.incarnation(_stored_agent())
        parent = None if held is None else _address(held)
        start = self._with_memory(_Start(shown, seen, incarnation=incarnation, parent=parent), snapshot)
        model = _deltamem(request.model)
        if snapshot is None or seen is None or model is None or model.memory == "off":
            return start
        with use_agent(_AGENT, store=start.carried):
            engine = model.open_engine(_AGENT)
        began = state.get(BEGAN_KEY) or []
        messages, inserted = merged(began, state["messages"])
        revision = revise(seen, digests(messages), {*summaries(state["messages"]), *inserted}, began=bool(began))
        start = replace(start, revision=revision, left_out=frozenset({*revision.summaries, *inserted}))
        if model.memory == "readwrite" and (revision.undone(seen) or revision.inserted(seen)):
            start = self._revised(engine, snapshot, start, messages)
        return _aligned(engine, start, state["messages"])

    def _with_memory(self, start: _Start, snapshot: Snapshot | None) -> _Start:
        """The start with this memory, and with its statements from the middleware's store."""
        carried, objects = InMemoryStore(), dict[str, bytes]()
        if snapshot is not None:
            if snapshot.statements is not None:
                objects = self._require_store().objects(_stored_agent(), snapshot.statements)
            carried.save(_AGENT, snapshot, expected=None, objects=objects)
        return replace(start, carried=carried, head=carried.head(_AGENT), objects=frozenset(objects))

    def _revised(
        self, engine: DeltaMemEngine, current: Snapshot, start: _Start, messages: Sequence[BaseMessage]
    ) -> _Start:
        """Goes back to a memory without the undone messages, and writes the remaining messages again."""
        seen, revision = start.seen, start.revision
        assert seen is not None
        undone = revision.undone(seen)
        base: Snapshot | None = current
        has, parent = seen, start.parent
        if undone:
            base, has, parent = self._before(revision.unwanted(seen, start.shown))
        again = [each for each in revision.standing if not has.known.get(each)]
        told = [each for each in again if each not in revision.summaries]
        # Trimmed messages that the older memory does not have are lost. Then only a summary may still contain them.
        accounted = seen.count([*revision.deleted, *told], engine.policy.roles)
        lost = max(0, _count(current) - _count(base) - accounted) if undone else 0
        if not lost:
            again = told
        standing = {message.id: message for message in messages}
        start = replace(
            start,
            left_out=start.left_out - {*again},
            undone=len(revision.edited) + len(revision.deleted) + lost,
            parent=parent,
        )
        _report(revision, seen, lost)
        start = self._with_memory(start, None if base is None else replace(base, absorbed=ThreadLog()))
        return _absorbed(engine, start, to_messages([standing[each] for each in again]))

    def _before(self, undone: set[str]) -> tuple[Snapshot | None, Seen, str | None]:
        """The newest memory in this step's checkpoints without these texts, the messages it has, and its id."""
        for saved in lineage(ensure_config()):
            values = saved.checkpoint["channel_values"]
            held, seen = values.get(STATE_KEY), Seen.of(values.get(SEEN_KEY))
            if held is None:
                break
            if seen is None or seen.texts & undone:
                continue
            try:
                return self._snapshot(held), seen, _address(held)
            except AgentNotFoundError:  # pruned from the store
                continue
        return None, Seen({}), None

    def _snapshot(self, held: bytes | str) -> Snapshot:
        return decode(held) if isinstance(held, bytes) else self._require_store().load(_stored_agent(), held).snapshot

    def _with_update(
        self, response: ModelResponse[Any], start: _Start, request: ModelRequest[Any]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        if start.carried.head(_AGENT) == start.head:
            return response
        # Its parent in the temporary store is not the stored snapshot, which has another log.
        snapshot = replace(start.carried.load(_AGENT).snapshot, parent=start.parent, threads={})
        said = [message for message in response.result if isinstance(message, AIMessage)]
        for message in said:
            facts = message.response_metadata.get("deltamem")
            if start.undone and isinstance(facts, dict):
                facts["undone_messages"] = facts.get("undone_messages", 0) + start.undone
        held = encode(inline(snapshot)) if self._store is None else _keep(self._store, snapshot, start)
        seen = after(start.seen, start.revision, start.shown, digests(said), start.left_out)
        update: dict[str, Any] = {STATE_KEY: held, SEEN_KEY: seen.as_json()}
        if request.state.get(BEGAN_KEY):
            update[BEGAN_KEY] = []
        return ExtendedModelResponse(model_response=response, command=Command(update=update))

    def _require_store(self) -> Store:
        if self._store is None:
            raise ValueError(
                "this checkpoint holds the id of a memory, not the memory itself; give DeltaMemMiddleware the store "
                "that the checkpoint was made with"
            )
        return self._store


def _address(held: bytes | str) -> str:
    return held if isinstance(held, str) else snapshot_id(held)


def _deltamem(model: Any) -> ChatDeltaMem | None:
    """The `ChatDeltaMem` inside a model and its bindings, None if there is none."""
    while hasattr(model, "bound"):
        model = model.bound
    return model if isinstance(model, ChatDeltaMem) else None


def _absorbed(engine: DeltaMemEngine, start: _Start, messages: Sequence[Message]) -> _Start:
    """The start after absorbing these messages, all of which are new to the memory."""
    thread = _current_thread(start.carried, len(messages))
    engine.with_store(start.carried).absorb_into(_AGENT, messages, thread=thread)
    return replace(start, thread=thread)


def _aligned(engine: DeltaMemEngine, start: _Start, messages: Sequence[BaseMessage]) -> _Start:
    """The start with the memory's log set to the graph's messages as they are now, up to the first new one.

    Message ids say which messages are new. The engine knows only texts. With this log it comes to the same result, even
    if other middleware changed or trimmed the messages of the request.
    """
    known = {*start.left_out, *(() if start.seen is None else start.seen.known)}
    ends = [place for place, message in enumerate(messages) if message.id in known]
    standing = to_messages(messages[: 1 + max(ends, default=-1)])
    texts = [digest(each) for each in standing if each.role in engine.policy.roles]
    head = start.carried.head(_AGENT)
    if head is None:
        return start
    thread = _current_thread(start.carried, len(texts))
    log = ThreadLog(len(texts), tuple(texts[-ThreadLog.TAIL_MESSAGES :]))
    snapshot = replace(start.carried.load(_AGENT).snapshot, thread=thread, threads={}, absorbed=log)
    return replace(start, thread=thread, head=start.carried.save(_AGENT, snapshot, expected=head))


def _current_thread(carried: Store, count: int) -> str:
    """The thread in which the memory continues, if the graph shows `count` of its messages.

    A statement has a place in its thread. After messages were trimmed, places start again from 0, so a new thread is
    begun. Otherwise a new message could be mistaken for an older one.
    """
    if carried.head(_AGENT) is None:
        return _THREAD
    snapshot = carried.load(_AGENT).snapshot
    if snapshot.statements is None or snapshot.absorbed.count == count:
        return snapshot.thread
    name, _, number = snapshot.thread.partition(" ")
    return f"{name} {int(number or 1) + 1}"


def _count(snapshot: Snapshot | None) -> int:
    return 0 if snapshot is None else snapshot.counters.messages


def _report(revision: Revision, seen: Seen, lost: int) -> None:
    rewords = revision.only_rewords_the_newest_reply(seen) and not lost
    _log.log(
        logging.INFO if rewords else logging.WARNING,
        "thread %r: messages were edited (%d) or deleted (%d), and the memory went back to before them. "
        "The messages that the graph still shows were written again; %d messages are lost, because they were trimmed",
        thread_name(ensure_config()),
        len(revision.edited),
        len(revision.deleted),
        lost,
    )


def _stored_agent() -> str:
    """The agent id, in the middleware's store, of the running LangGraph thread."""
    return _STORED + (thread_name(ensure_config()) or "no thread")


def _keep(store: Store, snapshot: Snapshot, start: _Start) -> str:
    """Saves a snapshot and its new statements. All branches of a thread share one agent. Returns the snapshot's id.

    Raises AgentForgottenError if the thread was forgotten since the turn began.
    """
    agent, new = _stored_agent(), dict[str, bytes]()
    if snapshot.statements is not None:
        held = start.carried.objects(_AGENT, snapshot.statements)
        new = {at: data for at, data in held.items() if at not in start.objects}
    while True:
        head = store.head(agent)
        if start.incarnation not in (None, store.incarnation(agent)):
            raise AgentForgottenError(
                f"thread {thread_name(ensure_config())!r} was forgotten while this turn was running. Nothing of the "
                "turn was kept; delete the thread's checkpoints too, or start another thread"
            )
        try:
            return store.save(agent, snapshot, expected=head, objects=new)
        except StaleHeadError:
            continue
