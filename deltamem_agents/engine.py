"""The engine: a frozen model with a memory, for any number of agents.

Each turn loads the agent's newest snapshot, reads it while answering, writes what is new, and commits once. Everything
else that the engine keeps is a cache. The cached data of an agent is dropped when the agent is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, Unpack

import torch

from deltamem_agents.chat.grammar import grammars_available, reply_grammar
from deltamem_agents.chat.schemas import as_tools
from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.errors import ConfigError, EngineClosedError, InvalidAgentIdError
from deltamem_agents.inference.batching import absorb_batch, greedy_batch, score_batch
from deltamem_agents.inference.compiled import CompiledStep
from deltamem_agents.inference.compressed import CacheKind, cache_maker
from deltamem_agents.inference.kept import KEPT_BYTES, KeptCaches
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.prompts import Prompts
from deltamem_agents.inference.reply_text import as_text
from deltamem_agents.inference.rows import Rows
from deltamem_agents.inference.scheduling import AT_ONCE, WAITING, Scheduler
from deltamem_agents.loading import (
    DecodeWeights,
    LoadedModel,
    ModelObject,
    ModelOptions,
    TokenizerObject,
    adapter_folder,
    load_model,
    pack_weights,
)
from deltamem_agents.memory.adapter_file import adapter_fingerprint, load_adapter
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.names import agent_name, thread_name
from deltamem_agents.processes import require_threads
from deltamem_agents.snapshots import (
    Fingerprint,
    LazyStore,
    Statement,
    StatementReceipt,
    Store,
    StoreLike,
    open_store,
)
from deltamem_agents.snapshots.watching import watch
from deltamem_agents.turns.editing import StatementEditor
from deltamem_agents.turns.explaining import explain
from deltamem_agents.turns.in_batches import recalled_replies, recollect_batch, remember_batch
from deltamem_agents.turns.memories import AgentMemory, Memories
from deltamem_agents.turns.migrating import Migration, migrate
from deltamem_agents.turns.off_loop import off_loop
from deltamem_agents.turns.planning import WritePolicy
from deltamem_agents.turns.queues import Queues
from deltamem_agents.turns.recalling import Recollection
from deltamem_agents.turns.running import TurnRequest, TurnRunner
from deltamem_agents.types import (
    MEMORY_MODES,
    Explanation,
    MemoryMode,
    MessageLike,
    Recall,
    Sampling,
    Score,
    Tool,
    ToolChoice,
    Turn,
    TurnChunk,
    TurnOptions,
    as_messages,
)

WINDOW_TOKENS = 4096


class DeltaMemEngine:
    """A frozen language model whose agents remember. Safe to use from many threads.

    `store`: where the agents' memories are stored. `window_tokens`: maximum of a prompt and its reply together; older
    messages are only in the memory. `turns_at_once`: how many turns share forward passes and hold keys and values.
    `turns_waiting`: how many more turns may wait; one more raises OverloadedError. `kept_cache_bytes`: memory for keys
    and values kept between turns, 0 for none. `cache`: how a turn holds its keys and values, "full" or "quantized" (8
    bits: a half to a quarter of the memory, but slower; such a turn decodes alone and keeps nothing for the next turn).
    `compile_decode`: compile the decoding of single turns with torch.compile, which takes a minute or more when the
    engine opens. `policy`: what is written. `recall`: how the memory is read. `progress`: show long work on stderr.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        adapter: Adapter,
        store: StoreLike | LazyStore,
        *,
        window_tokens: int | None = None,
        policy: WritePolicy = WritePolicy(),
        recall: Recall = Recall(),
        turns_at_once: int = AT_ONCE,
        turns_waiting: int = WAITING,
        kept_cache_bytes: int = KEPT_BYTES,
        cache: CacheKind = "full",
        compile_decode: bool = False,
        progress: bool = False,
    ) -> None:
        for name, count, least in (("turns_at_once", turns_at_once, 1), ("turns_waiting", turns_waiting, 0)):
            if count < least:
                raise ConfigError(f"{name} is {count}, expected at least {least}")
        context = loaded.context_tokens
        if window_tokens is not None and not 1 <= window_tokens <= context:
            raise ConfigError(f"window_tokens is {window_tokens}, expected 1 to the model's context of {context}")
        if kept_cache_bytes < 0:
            raise ConfigError(f"kept_cache_bytes is {kept_cache_bytes}, expected 0, which keeps none, or more")
        self.model_name = loaded.name
        self.lazy_store = LazyStore.of(store)
        self.policy = policy
        self.recall = recall
        self.adapter = adapter
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.window_tokens = window_tokens or min(WINDOW_TOKENS, context)
        self.fingerprint = Fingerprint(
            loaded.model_fingerprint, loaded.tokenizer_fingerprint, adapter_fingerprint(adapter)
        )
        self._prompts = Prompts(ChatTemplate(loaded.tokenizer), self.window_tokens, policy.roles, policy.message_tokens)
        scheduler = Scheduler(Rows(), turns_at_once, turns_waiting)
        new_cache = cache_maker(cache, loaded.model.config)
        self._speaker = MemoryModel(
            loaded.model, loaded.tokenizer, adapter, self._prompts, progress, scheduler, new_cache
        )
        self._attachment = attach(loaded.model, adapter)
        if compile_decode:
            try:
                self._speaker.compiled = CompiledStep.of(loaded.model, adapter, progress)
            except BaseException:
                self._attachment.detach()
                raise
        self._queues = Queues()
        self._memories = Memories(adapter.config.state_update_mode != "no_lambda")
        self._caches = KeptCaches(kept_cache_bytes if cache == "full" else 0)
        watch(self._memories)
        watch(self._caches)
        self._matcher, self._pointer = adapter.recall
        self._life = _Life()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        adapter: Adapter | str | os.PathLike[str] | None = None,
        store: StoreLike = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        decode_weights: DecodeWeights | None = None,
        window_tokens: int | None = None,
        policy: WritePolicy = WritePolicy(),
        recall: Recall = Recall(),
        turns_at_once: int = AT_ONCE,
        turns_waiting: int = WAITING,
        kept_cache_bytes: int = KEPT_BYTES,
        cache: CacheKind = "full",
        compile_decode: bool = False,
        progress: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        torch_dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Loads a model and an adapter by name and makes an engine.

        `model`: "smollm2-135m-instruct", a local folder or .gguf, or a Hub id. `adapter`: a folder or Hub id, or
        "small" for the 8×8 adapter that ships with the embedded model; None is the model's default adapter.
        `store`: a Store, a path or URL ("sqlite:///…", "folder:///…", "memory:"); None is memory.sqlite in
        $DELTAMEM_HOME or the user's data folder. It is opened by the first call that needs it.
        `policy`: what is written to the memory. `recall`: how it is read, unless a turn says otherwise.
        `turns_at_once`, `turns_waiting`, `kept_cache_bytes`, `cache`, `compile_decode`: as for the class.
        `device`: default "cpu". `dtype`: of the base model, "auto" for the dtype of its files, None for what this
        machine computes fastest; the memory is always float32. `decode_weights`: "int8" decodes with rounded weights,
        and prompts are computed with the model's own; "auto" does so if it is faster here. `progress`: show loading
        and absorbing on stderr. On an x86 CPU float32 weights are packed, which changes no number but their order; see
        `loading/packed.py`.

        The other arguments are those of transformers' `from_pretrained`. `revision`: of a model on the Hub. `token`:
        for the Hub, for model and adapter. `device_map`: instead of `device`; it must put the whole model on one
        device. `torch_dtype`: the older name of `dtype`. Code that comes with a model is never run.

        Raises UnsupportedModelError, AdapterError, DownloadError, ConfigError or StoreError.
        """
        if dtype is not None and torch_dtype is not None:
            raise ConfigError(f"dtype is {dtype!r} and torch_dtype {torch_dtype!r}, the same option; give only dtype")
        options = ModelOptions(revision, token, device_map, attn_implementation, quantization_config)
        chosen = torch_dtype if dtype is None else dtype
        loaded = load_model(
            model, device=device, dtype=chosen, decode_weights=decode_weights, progress=progress, options=options
        )
        pack_weights(loaded.model)
        # A path does not say which model it holds. The adapter's sizes are checked in any case.
        base_model = None if Path(loaded.name).exists() else loaded.name
        fitted = _fitted(adapter, loaded, base_model, token)
        opened = LazyStore.of(None if store is None else open_store(store))
        return cls(
            loaded,
            fitted,
            opened,
            window_tokens=window_tokens,
            policy=policy,
            recall=recall,
            turns_at_once=turns_at_once,
            turns_waiting=turns_waiting,
            kept_cache_bytes=kept_cache_bytes,
            cache=cache,
            compile_decode=compile_decode,
            progress=progress,
        )

    @classmethod
    def from_model(
        cls,
        model: ModelObject,
        tokenizer: TokenizerObject,
        *,
        adapter: Adapter | str | os.PathLike[str] | None = None,
        store: StoreLike = None,
        name: str | None = None,
        window_tokens: int | None = None,
        policy: WritePolicy = WritePolicy(),
        recall: Recall = Recall(),
        turns_at_once: int = AT_ONCE,
        turns_waiting: int = WAITING,
        kept_cache_bytes: int = KEPT_BYTES,
        cache: CacheKind = "full",
        compile_decode: bool = False,
        progress: bool = False,
    ) -> Self:
        """Makes an engine from a loaded transformers model and its tokenizer.

        The model object is frozen, and the memory stays attached to it until `close`. `adapter`: anything that
        `from_pretrained` takes, or an `Adapter` object. `Adapter.for_model(config, model)` builds one from an
        `AdapterConfig` with zero weights; load yours with `load_state_dict`. The adapter is moved to the model's
        device; do not change it while the engine is open. `name`: the model's name, None for the name in its config.

        Raises UnsupportedModelError, AdapterError, DownloadError, ConfigError or StoreError.
        """
        called = name or model.config.name_or_path or str(model.config.model_type)
        loaded = LoadedModel.of(model, tokenizer, called)
        fitted = _fitted(adapter, loaded, name, None)
        return cls(
            loaded,
            fitted,
            store,
            window_tokens=window_tokens,
            policy=policy,
            recall=recall,
            turns_at_once=turns_at_once,
            turns_waiting=turns_waiting,
            kept_cache_bytes=kept_cache_bytes,
            cache=cache,
            compile_decode=compile_decode,
            progress=progress,
        )

    def run_turn(self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """One reply of `agent` to `messages`. Returns when the memory is committed.

        Options and errors are those of `stream_turn`.
        """
        for chunk in self.stream_turn(agent, messages, **options):
            turn = chunk.turn
        assert turn is not None
        return turn

    def stream_turn(
        self,
        agent: str | None,
        messages: Sequence[MessageLike],
        *,
        thread: str | None = None,
        tools: Sequence[Tool] = (),
        sampling: Sampling = Sampling(),
        memory: MemoryMode = "readwrite",
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        response_schema: Mapping[str, Any] | None = None,
        recall: Recall | None = None,
    ) -> Generator[TurnChunk, None, None]:
        """Streams one reply of `agent` to `messages`: pieces of text and tool calls, and last the committed Turn.

        `messages`: the history as the caller has it: complete, trimmed, or only the new messages. `thread`: name of the
        conversation. Only in a named thread can the memory undo messages, when `messages` show that the conversation
        was edited or cut short (see `docs/memory-semantics.md`); `facts.undone_messages` says how many.
        `agent`: text, or a whole number or UUID, which is converted to text. None is a temporary memory that ends with
        the turn. `memory`: "readonly" reads and does not change the agent, "off" is the base model. `recall`: how the
        memory is read, None for the engine's setting; `facts.recalled` lists the statements used for the reply.

        `tool_choice`: "auto", "any" (call at least one of `tools`), "none" or the name of the tool to call.
        `parallel_tool_calls`: whether one reply may contain several calls. `response_schema`: a JSON schema that the
        reply has to fit, unless it calls tools. "any", a tool's name and `response_schema` are enforced by a grammar
        and need the extra "tools"; "auto" and "none" work without it. If `max_tokens` is too small, an enforced reply
        is truncated. A stop string ends text, never an enforced call.

        Closing the iterator early stops within one token and changes nothing. A turn that fails changes nothing either.
        Turns that run at the same time, in threads or on an event loop, share forward passes.
        Raises ConfigError, GrammarError, MessageError, WindowError, HistoryDivergedError, AgentForgottenError,
        OverloadedError, ForeignSnapshotError, InvalidAgentIdError, StoreError or DamagedSnapshotError.
        """
        request = self._request(
            agent,
            messages,
            thread=thread,
            tools=tools,
            sampling=sampling,
            memory=memory,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_schema=response_schema,
            recall=recall,
        )
        return self._turns().stream(request)

    async def arun_turn(
        self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]
    ) -> Turn:
        """`run_turn` for asyncio; it does not block the event loop. Cancelling it stops within one token.

        A cancelled turn changes nothing.
        """
        async for chunk in self.astream_turn(agent, messages, **options):
            turn = chunk.turn
        assert turn is not None
        return turn

    def astream_turn(
        self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]
    ) -> AsyncGenerator[TurnChunk, None]:
        """`stream_turn` for asyncio; it does not block the event loop."""
        return _heard(self.stream_turn(agent, messages, **options))

    def statements(self, agent: str, at: str | None = None, *, superseded: bool = False) -> list[Statement]:
        """The statements in the agent's memory, oldest first.

        A statement is a message that wrote to the memory. It has `id`, `text`, `role`, `thread`, `created`, and the
        write strength of each of its `tokens` (`strengths`). `at`: a snapshot, None for the newest. `superseded`:
        include the earlier versions of corrected statements.
        Raises AgentNotFoundError, ForeignSnapshotError, StoreError or DamagedSnapshotError.
        """
        return self._editor().listed(_name(agent), at, superseded=superseded)

    def search_statements(self, agent: str, query: str, *, limit: int = 4) -> list[tuple[Statement, float]]:
        """The statements that best match a query, with their scores, best first. A reply ranks them the same way.

        Returns up to `limit` statements, even with low scores. Raises ConfigError for a `limit` below 1, and the errors
        of `statements`.
        """
        if limit < 1:
            raise ConfigError(f"limit is {limit}, expected at least 1")
        return self._editor().matching(_name(agent), query, limit, self.recall)

    def forget_statement(self, agent: str, id: str) -> StatementReceipt:
        """Deletes one statement: no byte of its text or its writes stays in the store's files or in any state.

        `id`: as `statements` lists it, or its first six or more digits. The receipt names forks that still hold the
        statement, and other statements that say the same words, such as the reply to it, so that they can be forgotten
        too. The statement does not come back when a client sends the message again. Backups and exports are outside
        the store. Raises StatementNotFoundError, StateError for an adapter whose gates never close, and the errors of
        `statements`.
        """
        return self._editor().forget(_name(agent), id)

    def correct_statement(self, agent: str, id: str, text: str) -> Statement:
        """Replaces a statement with a corrected text. Returns the new statement.

        The earlier version is no longer read. It stays in the store until it or the new one is forgotten.
        Raises the errors of `forget_statement`, and ConfigError for a text that writes nothing to the memory.
        """
        return self._editor().correct(_name(agent), id, text)

    def adopt(
        self,
        source: Store,
        agent: str,
        *,
        name: str | None = None,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> Migration:
        """Moves a memory that another model or adapter made to this engine, by absorbing its texts again.

        `source`, `agent`: the store and agent to read from; they are not changed. `name`: the agent's id here, None for
        the same id. Threads, roles, order and times are kept. Statements without text cannot be moved; the report lists
        them. `advance(tokens)`: called with the number of tokens read since the last call.
        Raises AlreadyExistsError if the agent exists here, StateError if nothing can be moved, and the errors of
        `statements`. Nothing is changed after an error.
        """
        self._require_usable()
        return migrate(self._turns(), source, _name(agent), _name(agent if name is None else name), advance)

    def explain(
        self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]
    ) -> Explanation:
        """Runs a turn and reports which statements its reply used and which tokens of the reply the memory changed.

        Options and errors are those of `stream_turn`, but the default of `memory` is "readonly". It costs one turn, and
        processing the reply's tokens twice more.
        """
        asked: TurnOptions = {"memory": "readonly", **options}
        return explain(self._turns(), self._request(agent, messages, **asked))

    def new_state(self) -> MemoryState:
        """An empty memory, batch 1."""
        return self.adapter.zero_state()

    def absorb(
        self,
        state: MemoryState,
        messages: Sequence[MessageLike],
        *,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> MemoryState:
        """Returns the memory after writing `messages`. A pure function: no agent or store is involved.

        The messages are processed in segments of at most `window_tokens`, so the RAM it needs is bounded.
        `advance(tokens)`: called with the number of tokens read since the last call.
        """
        self._require_usable()
        run = self._speaker.begin(state)
        for tokens in self._speaker.absorbing(run, as_messages(messages), None):
            advance(tokens)
        assert run.state is not None
        return run.state.settled()

    def absorb_into(
        self,
        agent: str,
        messages: Sequence[MessageLike],
        *,
        thread: str | None = None,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> str | None:
        """Writes the messages that the agent's thread has not absorbed yet, without a reply, in one commit.

        For clients that drop old messages from their history. Returns the new snapshot's id, None if no message was
        new. `advance(tokens)`: called with the number of tokens read since the last call. Raises MessageError,
        AgentForgottenError, ForeignSnapshotError, InvalidAgentIdError, StoreError or DamagedSnapshotError. Nothing is
        changed after an error.
        """
        self._require_usable()
        return self._turns().absorb_into(_name(agent), thread_name(thread), as_messages(messages), advance)

    def absorb_batch(
        self,
        states: Sequence[MemoryState],
        conversations: Sequence[Sequence[MessageLike]],
        *,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> list[MemoryState]:
        """`absorb` for many states at once, each with its own conversation.

        `advance(tokens)`: called with the number of tokens read since the last call.
        """
        self._require_usable()
        spoken = [as_messages(messages) for messages in conversations]
        placed = [state.settled().to(self.model.device) for state in states]
        return absorb_batch(self.model, self._prompts, placed, spoken, advance)

    @property
    def selects(self) -> bool:
        """Whether a reply reads only statements selected for it, instead of one state of all statements."""
        return self._speaker.keeps_writes and self.recall.read == "selected"

    def remember_batch(
        self,
        conversations: Sequence[Sequence[MessageLike]],
        memories: Sequence[AgentMemory] | None = None,
        *,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> list[AgentMemory]:
        """The memories after conversations, each in its own thread. It is `absorb_batch` for statements.

        `memories`: the memories before; None for empty ones. `advance(tokens)`: called with the number of tokens read
        since the last call.
        """
        self._require_usable()
        before = [self._turns().empty] * len(conversations) if memories is None else memories
        return remember_batch(self._turns(), before, [as_messages(each) for each in conversations], advance)

    def recall_batch(
        self,
        memories: Sequence[AgentMemory],
        conversations: Sequence[Sequence[MessageLike]],
        *,
        whatever: bool = False,
    ) -> list[Recollection]:
        """The statements recalled for a reply to each conversation. `whatever`: recall some even if none matches."""
        self._require_usable()
        turns = self._turns()
        if whatever:
            turns = replace(turns, matcher=turns.matcher.without_floor())
        return recollect_batch(turns, memories, [as_messages(each) for each in conversations], self.recall)

    def recalled_replies(
        self,
        recollections: Sequence[Recollection],
        conversations: Sequence[Sequence[MessageLike]],
        *,
        max_tokens: int,
    ) -> list[str]:
        """`greedy_replies`, each using the statements that were recalled for it."""
        self._require_usable()
        spoken = [as_messages(messages) for messages in conversations]
        return recalled_replies(self._turns(), recollections, spoken, max_tokens)

    def score(self, state: MemoryState | None, messages: Sequence[MessageLike], answer: str) -> Score:
        """The log-probability of `answer` as the reply to `messages`, reading `state` (None: memory off).

        If the last message is the assistant's, `answer` continues it. Nothing is written.
        """
        return self.score_batch(None if state is None else [state], [messages], [answer])[0]

    def score_batch(
        self,
        states: Sequence[MemoryState] | None,
        conversations: Sequence[Sequence[MessageLike]],
        answers: Sequence[str],
    ) -> list[Score]:
        """`score` for several conversations at once, each reading its own state (None: memory off)."""
        self._require_usable()
        pairs = zip(conversations, answers, strict=True)
        prompts = [self._prompts.with_answer(as_messages(messages), answer) for messages, answer in pairs]
        return score_batch(self.model, self._joined(states), [p for p, _ in prompts], [tokens for _, tokens in prompts])

    def count_tokens(self, messages: Sequence[MessageLike]) -> int:
        """Number of tokens in the messages' contents, without the chat template's own tokens."""
        self._require_usable()
        return self._prompts.content_tokens(as_messages(messages))

    def greedy_replies(
        self, states: Sequence[MemoryState] | None, conversations: Sequence[Sequence[MessageLike]], *, max_tokens: int
    ) -> list[str]:
        """Greedy replies to several conversations in one batch, each reading its own state (None: memory off).

        If the last message is the assistant's, the reply continues it. Nothing is written.
        """
        self._require_usable()
        prompts = [self._prompts.reading(as_messages(messages)) for messages in conversations]
        ids = greedy_batch(
            self.model, self._joined(states), prompts, max_tokens=max_tokens, end_ids=self._prompts.end_ids
        )
        return [as_text(self.tokenizer, reply) for reply in ids]

    @property
    def store(self) -> Store:
        """The store of the agents' memories. Opens it if necessary, and raises what opening raises."""
        return self.lazy_store.open()

    def with_store(self, store: StoreLike | LazyStore) -> Self:
        """A second engine with another store. Model, adapter and tokenizer are shared.

        Closing the second engine closes its store, unless it is this engine's store, and nothing else. Closing this
        engine also closes the engines made from it.
        """
        twin = copy(self)
        twin.lazy_store = LazyStore.of(store)
        twin._life = _Life(self)
        return twin

    def close(self) -> None:
        """Detaches the memory from the model and closes the store. A turn that is running fails and changes nothing.

        Later calls raise EngineClosedError. Closing again does nothing.
        """
        if self._life.closed:
            return
        self._life.closed = True
        original = self._life.original
        if original is None:
            self._attachment.detach()
            self._caches.clear()
        if original is None or not self.lazy_store.is_same(original.lazy_store):
            self.lazy_store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_usable(self) -> None:
        """Raises EngineClosedError if the engine is closed, ForkedProcessError in a fork that cannot compute."""
        if self._life.over:
            raise EngineClosedError("this engine was closed; nothing was changed. Open a new engine")
        require_threads(needed=torch.get_num_threads() > 1 or self.model.device.type != "cpu")

    def _request(
        self,
        agent: str | None,
        messages: Sequence[MessageLike],
        *,
        thread: str | None = None,
        tools: Sequence[Tool] = (),
        sampling: Sampling = Sampling(),
        memory: MemoryMode = "readwrite",
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        response_schema: Mapping[str, Any] | None = None,
        recall: Recall | None = None,
    ) -> TurnRequest:
        """Checks the options of a turn and collects them in a request."""
        tools = as_tools(tools)
        if memory not in MEMORY_MODES:
            raise ConfigError(f"memory is {memory!r}, expected one of {', '.join(MEMORY_MODES)}")
        agent, thread = agent_name(agent), thread_name(thread)
        grammar = reply_grammar(tools, tool_choice, parallel=parallel_tool_calls, schema=response_schema)
        if tool_choice == "auto" and response_schema is None and not grammars_available():
            grammar = None
        self._require_usable()
        offered = () if tool_choice == "none" else tools
        spoken = as_messages(messages)
        return TurnRequest(
            agent, spoken, thread, offered, sampling, memory, tool_choice, grammar, recall or self.recall
        )

    def _turns(self) -> TurnRunner:
        return TurnRunner(
            self._speaker,
            self.lazy_store,
            self.policy,
            self.fingerprint,
            self._queues,
            self._memories,
            self._caches,
            self._matcher,
            self._pointer,
            self._require_usable,
        )

    def _editor(self) -> StatementEditor:
        self._require_usable()
        return StatementEditor(self._turns())

    def _joined(self, states: Sequence[MemoryState] | None) -> MemoryState | None:
        return None if states is None else MemoryState.cat([s.settled() for s in states]).to(self.model.device)


def _name(agent: str) -> str:
    """The agent's id as text. Raises InvalidAgentIdError for None, which stands for a temporary memory."""
    name = agent_name(agent)
    if name is None:
        raise InvalidAgentIdError("agent id is None, expected the id of an agent")
    return name


async def _heard(chunks: Generator[TurnChunk, None, None]) -> AsyncGenerator[TurnChunk, None]:
    async with aclosing(off_loop(chunks)) as heard:
        async for chunk in heard:
            if chunk.text or chunk.call or chunk.turn:
                yield chunk


@dataclass
class _Life:
    """Whether an engine is closed. `original`: the engine whose model it shares, None if it has its own model."""

    original: DeltaMemEngine | None = None
    closed: bool = False

    @property
    def over(self) -> bool:
        return self.closed or (self.original is not None and self.original._life.over)


def _fitted(
    adapter: Adapter | str | os.PathLike[str] | None,
    loaded: LoadedModel,
    base_model: str | None,
    token: str | bool | None,
) -> Adapter:
    """The adapter on the model's device. `base_model`: see `load_adapter`."""
    if isinstance(adapter, Adapter):
        return adapter.to(loaded.model.device, torch.float32)
    return load_adapter(adapter_folder(adapter, loaded.name, token=token), loaded.model, base_model=base_model)
