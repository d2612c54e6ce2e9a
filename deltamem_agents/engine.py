"""The engine: a frozen model with a memory, serving any number of agents.

Each turn loads the agent's newest snapshot, reads it while it answers, writes what is new, and commits
once. The engine itself keeps nothing of any conversation.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self, Unpack

from deltamem_agents.chat.grammar import Grammar, Vocabulary, grammars_available, reply_grammar
from deltamem_agents.chat.history import Alignment, digest
from deltamem_agents.chat.reply_stream import ReplyStream, reply_message
from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.chat.tool_calls import OPEN
from deltamem_agents.errors import ConfigError, StaleHead
from deltamem_agents.inference.batching import absorb_batch, greedy_batch, score_batch
from deltamem_agents.inference.decode import Decoding, Measures, Pass, Reply, as_text, definition
from deltamem_agents.inference.prompts import Prompts, Window
from deltamem_agents.loading import LoadedModel, adapter_folder, load_model
from deltamem_agents.memory.adapter_file import adapter_fingerprint, load_adapter
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Fingerprint, Store, open_store
from deltamem_agents.turns.off_loop import off_loop
from deltamem_agents.turns.planning import DEFAULT_THREAD, Plan, WritePolicy, plan_absorption, plan_turn
from deltamem_agents.turns.queues import Queues
from deltamem_agents.types import (
    MEMORY_MODES,
    CallChunk,
    MemoryMode,
    Message,
    MessageLike,
    Sampling,
    Score,
    ThreadLog,
    Tool,
    ToolChoice,
    Turn,
    TurnChunk,
    TurnFacts,
    TurnOptions,
    Usage,
    as_messages,
)

WINDOW_TOKENS = 4096
COMMIT_ATTEMPTS = 100


@dataclass(frozen=True)
class TurnRequest:
    """One turn as it was asked for."""

    agent: str | None
    messages: tuple[Message, ...]
    thread: str | None
    tools: tuple[Tool, ...]
    sampling: Sampling
    memory: MemoryMode
    tool_choice: ToolChoice
    grammar: Grammar | None

    @property
    def unstopped(self) -> str | None:
        """What opens a call that is held to its end by a grammar: a stop string would only break it off."""
        return OPEN if self.tools and self.grammar is not None else None

    @property
    def salt(self) -> str:
        """What tells this turn's tool calls from equal ones of another turn; the same when it is run again."""
        return "\n".join([self.agent or "", self.thread or "", *map(digest, self.messages)])


class DeltaMemEngine:
    """A frozen language model whose agents remember. Safe to use from many threads.

    `store` keeps the agents' memories; `window_tokens` bounds every prompt and its reply together, older
    messages living in the state only.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        adapter: Adapter,
        store: Store,
        *,
        window_tokens: int | None = None,
        policy: WritePolicy = WritePolicy(),
    ) -> None:
        context = loaded.context_tokens
        if window_tokens is not None and not 1 <= window_tokens <= context:
            raise ConfigError(f"window_tokens is {window_tokens}, expected 1 to the model's context of {context}")
        self.model_name = loaded.name
        self.store = store
        self.policy = policy
        self.adapter = adapter
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.window_tokens = window_tokens or min(WINDOW_TOKENS, context)
        self.fingerprint = Fingerprint(
            loaded.model_fingerprint, loaded.tokenizer_fingerprint, adapter_fingerprint(adapter)
        )
        self._prompts = Prompts(ChatTemplate(loaded.tokenizer), self.window_tokens, policy.roles)
        self._per_message = adapter.config.memory_write_granularity == "message_mean"
        self._attachment = attach(loaded.model, adapter)
        self._queues = Queues()
        # Slow to make, so it waits for the first grammar, and twins share it.
        self._vocabulary = cache(self._read_vocabulary)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        device: str = "cpu",
        dtype: Any = None,
        window_tokens: int | None = None,
        policy: WritePolicy = WritePolicy(),
        progress: bool = True,
    ) -> DeltaMemEngine:
        """An engine from names.

        `model`: "smollm2-135m-instruct", a local folder or .gguf, or a Hub id. `adapter`: a folder or Hub
        id, or "small" for the 8×8 one that ships for the embedded model; None takes the model's default.
        `store`: a Store, a path or URL ("sqlite:///…", "folder:///…", "memory:"); None is the SQLite file in
        the user's data folder. `dtype`: of the base model; the memory is always float32.

        Raises UnsupportedModelError, AdapterError, DownloadError, ConfigError or StoreError.
        """
        loaded = load_model(model, device=device, dtype=dtype, progress=progress)
        # A path says nothing about which model lies there; the adapter's own sizes are checked in any case.
        base_model = None if Path(loaded.name).exists() else loaded.name
        fitted = load_adapter(adapter_folder(adapter, loaded.name), loaded.model, base_model=base_model)
        return cls(loaded, fitted, open_store(store), window_tokens=window_tokens, policy=policy)

    def run_turn(self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """One reply of `agent` to `messages`; returns once the memory is committed.

        Takes the options of `stream_turn`, and raises what it raises.
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
    ) -> Generator[TurnChunk, None, None]:
        """One reply of `agent` to `messages`, text and tool calls as they are decided; the committed Turn last.

        `messages`: the history as the caller has it, whole, trimmed, or only what is new. `thread`: names
        the conversation when an agent has several; with a name, `messages` is taken as that conversation's
        history (so that cutting it short goes back), without one as possibly only what is new.
        `agent` None: a memory that ends with the turn. `memory`: "readonly" reads and leaves the agent as
        it was, "off" is the base model.

        `tool_choice`: "auto", "any" (call at least one of `tools`), "none" or the name of the tool to call.
        `parallel_tool_calls`: whether one reply may hold several. `response_schema`: a JSON schema which the
        reply has to fit, unless it calls tools. These are held by a grammar and need the extra "tools";
        "auto" and "none" work without it. A forced reply for which `max_tokens` is too short is cut off; a
        stop string ends text only, never a call that is held.

        Closing the iterator early stops within a token and changes nothing, nor does a turn that fails.
        Raises ConfigError, GrammarError, MessageError, WindowError, HistoryDiverged, ForeignSnapshot,
        InvalidAgentId, StoreError or DamagedSnapshot.
        """
        if memory not in MEMORY_MODES:
            raise ConfigError(f"memory is {memory!r}, expected one of {', '.join(MEMORY_MODES)}")
        grammar = reply_grammar(tools, tool_choice, parallel=parallel_tool_calls, schema=response_schema)
        if tool_choice == "auto" and response_schema is None and not grammars_available():
            grammar = None
        offered = () if tool_choice == "none" else tuple(tools)
        spoken = as_messages(messages)
        return self._stream(TurnRequest(agent, spoken, thread, offered, sampling, memory, tool_choice, grammar))

    async def arun_turn(
        self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]
    ) -> Turn:
        """`run_turn` off the event loop. Cancelling it stops within a token and changes nothing."""
        async for chunk in self.astream_turn(agent, messages, **options):
            turn = chunk.turn
        assert turn is not None
        return turn

    async def astream_turn(
        self, agent: str | None, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]
    ) -> AsyncIterator[TurnChunk]:
        """`stream_turn` off the event loop."""
        async for chunk in off_loop(self.stream_turn(agent, messages, **options)):
            if chunk.text or chunk.call or chunk.turn:
                yield chunk

    def new_state(self) -> MemoryState:
        """An empty memory, batch 1."""
        return self.adapter.zero_state()

    def absorb(self, state: MemoryState, messages: Sequence[MessageLike]) -> MemoryState:
        """The memory after reading and writing `messages`. Pure: no agent or store is involved.

        Works in bounded memory: the messages are processed in segments of at most `window_tokens`.
        """
        run = self._pass(state)
        self._absorb(run, as_messages(messages), None)
        assert run.state is not None
        return run.state.settled()

    def absorb_into(self, agent: str, messages: Sequence[MessageLike], *, thread: str | None = None) -> str | None:
        """Write what the agent's thread has not absorbed of `messages`, without asking for a reply. One commit.

        For clients whose messages leave their window. Returns the id of the new snapshot, None where nothing
        was new. Raises MessageError, ForeignSnapshot, InvalidAgentId, StoreError or DamagedSnapshot, and then
        nothing was changed.
        """
        spoken = as_messages(messages)
        for _ in range(COMMIT_ATTEMPTS):
            plan = plan_absorption(
                self.store,
                agent,
                thread,
                spoken,
                empty=self.new_state(),
                fingerprint=self.fingerprint,
                policy=self.policy,
            )
            new = [spoken[position] for position in plan.new]
            if not new:
                return None
            name = DEFAULT_THREAD if thread is None else thread
            state, tokens = self.absorb(plan.state, new), self.count_tokens(new)
            try:
                snapshot = plan.commit(state, self.fingerprint, name, None, tokens, "absorb")
                return self.store.save(agent, snapshot, expected=plan.head)
            except StaleHead:
                continue
        raise StaleHead(
            f"agent {agent!r} was written by others during each of {COMMIT_ATTEMPTS} attempts; "
            "nothing was absorbed; try again"
        )

    def absorb_batch(
        self,
        states: Sequence[MemoryState],
        conversations: Sequence[Sequence[MessageLike]],
        *,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> list[MemoryState]:
        """Each state after its conversation, as `absorb` gives it, many at once.

        `advance(tokens)` is called as tokens have been read.
        """
        spoken = [as_messages(messages) for messages in conversations]
        placed = [state.settled().to(self.model.device) for state in states]
        return absorb_batch(self.model, self._prompts, placed, spoken, advance)

    def score(self, state: MemoryState | None, messages: Sequence[MessageLike], answer: str) -> Score:
        """How likely `answer` is as the reply to `messages`, reading `state` (None: memory off).

        When the last message is the assistant's, `answer` continues it. Nothing is written.
        """
        return self.score_batch(None if state is None else [state], [messages], [answer])[0]

    def score_batch(
        self,
        states: Sequence[MemoryState] | None,
        conversations: Sequence[Sequence[MessageLike]],
        answers: Sequence[str],
    ) -> list[Score]:
        """`score` of several conversations at once, each reading its own state (None: memory off)."""
        pairs = zip(conversations, answers, strict=True)
        prompts = [self._prompts.with_answer(as_messages(messages), answer) for messages, answer in pairs]
        return score_batch(self.model, self._joined(states), [p for p, _ in prompts], [tokens for _, tokens in prompts])

    def count_tokens(self, messages: Sequence[MessageLike]) -> int:
        """Tokens of the messages' own contents, without the template's scaffolding."""
        return self._prompts.content_tokens(as_messages(messages))

    def greedy_replies(
        self, states: Sequence[MemoryState] | None, conversations: Sequence[Sequence[MessageLike]], *, max_tokens: int
    ) -> list[str]:
        """Greedy replies to several conversations in one batch, each reading its own state (None: memory off).

        Where the last message is the assistant's, the reply continues it. Nothing is written.
        """
        prompts = [self._prompts.reading(as_messages(messages)) for messages in conversations]
        ids = greedy_batch(
            self.model, self._joined(states), prompts, max_tokens=max_tokens, end_ids=self._prompts.end_ids
        )
        return [as_text(self.tokenizer, reply) for reply in ids]

    def with_store(self, store: Store) -> Self:
        """This engine over another store. Model, adapter and tokenizer are shared; close the original only."""
        twin = copy(self)
        twin.store = store
        return twin

    def close(self) -> None:
        """Take the memory off the model and close the store."""
        self._attachment.detach()
        self.store.close()

    def _read_vocabulary(self) -> Vocabulary:
        width = self.model.get_output_embeddings().weight.shape[0]
        return Vocabulary(definition(self.tokenizer), width, self._prompts.end_ids)

    def _joined(self, states: Sequence[MemoryState] | None) -> MemoryState | None:
        return None if states is None else MemoryState.cat([s.settled() for s in states]).to(self.model.device)

    def _pass(self, state: MemoryState | None, measures: Measures | None = None, *, collect: bool = False) -> Pass:
        placed = None if state is None else state.settled().to(self.model.device)
        return Pass(self.model, placed, measures or Measures(), collect)

    def _absorb(self, run: Pass, messages: Sequence[Message], positions: Sequence[int] | None) -> int:
        """Write `messages` into the run's state, segment by segment; returns how many tokens that took.

        `positions`: which of them are written, None for all that the policy allows.
        """
        tokens = 0
        for prompt in self._prompts.segments(messages, positions):
            part = Pass(run.model, None if run.state is None else run.state.settled(), run.measures, run.collect)
            part.feed(prompt)
            run.state = part.state
            tokens += len(prompt)
        return tokens

    def _stream(self, request: TurnRequest) -> Generator[TurnChunk, None, None]:
        """Chunks as they are decided, at least one a token so that closing is noticed; the Turn last."""
        attempt = self._attempt(request, 1)
        shown = ReplyStream(bool(request.tools), request.grammar is not None, request.salt)
        try:
            while True:
                yield from shown.push(next(attempt))
        except StopIteration as done:
            outcome: Outcome = done.value
        finally:
            attempt.close()
        yield from shown.finish(outcome.message.content, outcome.message.tool_calls, outcome.cut_call)
        yield TurnChunk(turn=self._commit(request, outcome))

    def _attempt(self, request: TurnRequest, number: int, forced: Reply | None = None) -> Generator[str, None, Outcome]:
        """Everything of a turn but the commit."""
        constraint = None
        if request.grammar is not None and forced is None:
            constraint = self._vocabulary().matcher(request.grammar, max_tokens=request.sampling.max_tokens)
        plan = self._plan(request)
        writes = request.memory == "readwrite"
        run = self._pass(None if plan is None else plan.state, collect=True)
        new = plan.new if plan is not None and writes else ()
        window = self._prompts.window(request.messages, request.tools, request.sampling.max_tokens, new)
        overflow = self._absorb(run, request.messages[: window.start], window.overflow) if window.overflow else 0
        if run.state is not None:
            run.state = run.state.settled()
        decoding = Decoding(
            run,
            window.prompt,
            self.tokenizer,
            replace(request.sampling, stop=(*request.sampling.stop, *self._prompts.stop_texts)),
            writes_reply=writes and plan is not None and "assistant" in self.policy.roles and not self._per_message,
            end_ids=self._prompts.end_ids,
            constraint=constraint,
            forced=None if forced is None else forced.ids,
            unstopped=request.unstopped,
        )
        yield from decoding
        reply = decoding.reply
        assert reply is not None
        if forced is not None:
            reply = replace(reply, finish_reason=forced.finish_reason, text=forced.text)
        message, cut = Message("assistant", reply.text), None
        if request.tools:
            names = [tool.name for tool in request.tools]
            message, cut = reply_message(reply.text, names, request.salt, held=request.grammar is not None)
        if self._per_message and writes and plan is not None and "assistant" in self.policy.roles:
            self._absorb(run, (message,), None)
        return Outcome(plan, window, run, reply, message, cut, overflow, number)

    def _plan(self, request: TurnRequest) -> Plan | None:
        """None when the memory is off."""
        if request.memory == "off":
            return None
        if request.agent is None:
            writable = tuple(i for i, m in enumerate(request.messages) if m.role in self.policy.roles)
            return Plan(None, None, self.new_state(), ThreadLog(), Alignment.FRESH, writable)
        return plan_turn(
            self.store,
            request.agent,
            request.thread,
            request.messages,
            empty=self.new_state(),
            fingerprint=self.fingerprint,
            policy=self.policy,
        )

    def _commit(self, request: TurnRequest, outcome: Outcome) -> Turn:
        """Save the turn. When another writer came first, do it again on the new head with the same reply.

        The reply is kept because it may have been shown already.
        """
        if request.agent is None or request.memory != "readwrite":
            return self._turn(request, outcome, None)
        try:
            return self._turn(request, outcome, self._save(request, outcome))
        except StaleHead:
            pass
        # Those who lost line up, so that none of them is beaten by another one over and over.
        with self._queues.of(request.agent):
            for number in range(2, COMMIT_ATTEMPTS + 2):
                outcome = _run_through(self._attempt(request, number, outcome.reply))
                try:
                    return self._turn(request, outcome, self._save(request, outcome))
                except StaleHead:
                    continue
        raise StaleHead(
            f"agent {request.agent!r} was written by others during each of {COMMIT_ATTEMPTS} attempts; "
            "nothing was changed by this turn; try again"
        )

    def _save(self, request: TurnRequest, outcome: Outcome) -> str:
        assert outcome.plan is not None and outcome.run.state is not None and request.agent is not None
        snapshot = outcome.plan.commit(
            outcome.run.state,
            self.fingerprint,
            DEFAULT_THREAD if request.thread is None else request.thread,
            outcome.message if "assistant" in self.policy.roles else None,
            outcome.run.measures.written,
            "turn",
        )
        return self.store.save(request.agent, snapshot, expected=outcome.plan.head)

    def _turn(self, request: TurnRequest, outcome: Outcome, snapshot: str | None) -> Turn:
        measures, state, reply = outcome.run.measures, outcome.run.state, outcome.reply
        calls = outcome.message.tool_calls
        writes = request.memory == "readwrite" and outcome.plan is not None
        return Turn(
            text=outcome.message.content,
            tool_calls=calls,
            usage=Usage(len(outcome.window.prompt), len(reply.ids), outcome.overflow_tokens),
            snapshot=snapshot,
            facts=TurnFacts(
                agent=request.agent or "",
                thread=request.thread,
                memory=request.memory,
                alignment="off" if outcome.plan is None else outcome.plan.outcome.value,
                tokens_read=0 if state is None else sum(outcome.window.prompt.reads) + len(reply.ids),
                tokens_written=measures.written,
                messages_written=len(outcome.plan.new) + 1 if writes and outcome.plan is not None else 0,
                state_bytes=0 if state is None else state.nbytes,
                state_norm=0.0 if state is None else state.norm(),
                mean_beta=measures.mean_beta,
                half_life_tokens=self.adapter.config.half_life(measures.mean_beta),
                correction_ratio=measures.correction_ratio,
                prefill_seconds=measures.prefill_seconds,
                decode_seconds=measures.decode_seconds,
                attempts=outcome.attempts,
            ),
            finish_reason="tool_calls" if calls and outcome.cut_call is None else reply.finish_reason,
            cut_call=outcome.cut_call,
        )


@dataclass(frozen=True)
class Outcome:
    """A turn that is over but not committed."""

    plan: Plan | None
    window: Window
    run: Pass
    reply: Reply
    message: Message
    cut_call: CallChunk | None
    overflow_tokens: int
    attempts: int


def _run_through(attempt: Generator[str, None, Outcome]) -> Outcome:
    try:
        while True:
            next(attempt)
    except StopIteration as done:
        outcome: Outcome = done.value
        return outcome
