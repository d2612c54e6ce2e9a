"""Runs a turn: plan, prompt, reply, commit. If another writer came first, it runs again on the new head."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.chat.grammar import Grammar
from deltamem_agents.chat.history import digest
from deltamem_agents.chat.reply_stream import ReplyStream, reply_message
from deltamem_agents.chat.tool_calls import OPEN
from deltamem_agents.errors import AgentForgottenError, StaleHeadError, StateError
from deltamem_agents.inference.collecting import Hearing
from deltamem_agents.inference.decode import Decoding, Reply
from deltamem_agents.inference.kept import CacheKey, CacheUse, KeptCaches
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.passes import Pass
from deltamem_agents.inference.prompts import Window
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import Seat
from deltamem_agents.memory.matcher import Matcher
from deltamem_agents.memory.pointer import Pointer
from deltamem_agents.snapshots import Fingerprint, LazyStore, Store
from deltamem_agents.turns.listing import COMMIT_ATTEMPTS
from deltamem_agents.turns.memories import AgentMemory, Memories, without
from deltamem_agents.turns.planning import DEFAULT_THREAD, Kept, Plan, Planner, WritePolicy
from deltamem_agents.turns.queues import Queues
from deltamem_agents.turns.recalling import Recollection, pointing, recollect, shown_tokens
from deltamem_agents.turns.recording import Recorder
from deltamem_agents.types import (
    CallChunk,
    MemoryMode,
    Message,
    Recall,
    Sampling,
    Tool,
    ToolChoice,
    Turn,
    TurnChunk,
    TurnFacts,
    Usage,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TurnRequest:
    """The arguments of one turn."""

    agent: str | None
    messages: tuple[Message, ...]
    thread: str | None
    tools: tuple[Tool, ...]
    sampling: Sampling
    memory: MemoryMode
    tool_choice: ToolChoice
    grammar: Grammar | None
    recall: Recall

    @property
    def unstopped(self) -> str | None:
        """Marker after which stop strings are ignored, because the grammar must finish the call."""
        return OPEN if self.tools and self.grammar is not None else None

    @property
    def salt(self) -> str:
        """Salt of this turn's tool call ids: equal calls of two turns get different ids, a repeated turn the same."""
        return "\n".join([self.agent or "", self.thread or "", *map(digest, self.messages)])


@dataclass(frozen=True)
class Outcome:
    """A finished turn that is not committed yet."""

    plan: Plan | None
    window: Window
    run: Pass
    reply: Reply
    message: Message
    cut_call: CallChunk | None
    absorbed_tokens: int
    attempts: int
    recollection: Recollection | None
    recorder: Recorder
    cache_use: CacheUse | None


@dataclass
class _Prepared:
    """A turn's prompt and what was recalled for it. `absorbed`: number of tokens absorbed before the prompt."""

    window: Window
    recollection: Recollection | None = None
    heard: Hearing | None = None
    absorbed: int = 0


@dataclass(frozen=True)
class TurnRunner:
    """Runs the turns of one engine over one store. `queues`: shared by all engines that write to that store.

    `memories`, `caches`: caches of agents' memories and of keys and values. `matcher`: selects statements. `pointer`:
    raises the probability of their exact tokens. `require_usable`: called before each step and each commit; it raises
    an error if the engine is closed or cannot compute in this process.
    """

    speaker: MemoryModel
    lazy_store: LazyStore
    policy: WritePolicy
    fingerprint: Fingerprint
    queues: Queues
    memories: Memories
    caches: KeptCaches
    matcher: Matcher
    pointer: Pointer | None
    require_usable: Callable[[], None]

    @property
    def store(self) -> Store:
        return self.lazy_store.open()

    def stream(self, request: TurnRequest) -> Generator[TurnChunk, None, None]:
        """Yields chunks, at least one per token so that closing takes effect quickly, and last the Turn."""
        self.require_usable()
        attempt = self.attempt(request, 1)
        shown = ReplyStream(bool(request.tools), request.grammar is not None, request.salt)
        try:
            while True:
                yield from shown.push(self._step(attempt))
        except StopIteration as done:
            outcome: Outcome = done.value
        finally:
            attempt.close()
        yield from shown.finish(outcome.message.content, outcome.message.tool_calls, outcome.cut_call)
        yield TurnChunk(turn=self._commit(request, outcome))

    def whole(self, request: TurnRequest) -> tuple[Outcome, Turn]:
        """Runs a turn without streaming. Returns its outcome and the Turn."""
        self.require_usable()
        outcome = self._run_through(self.attempt(request, 1))
        return outcome, self._commit(request, outcome)

    def writes_reply(self, request: TurnRequest) -> bool:
        """Whether the reply's tokens are written to the memory while they are decoded."""
        return request.memory == "readwrite" and "assistant" in self.policy.roles and not self.speaker.per_message

    def _step(self, attempt: Generator[str, None, Outcome]) -> str:
        """The attempt's next piece of text. Raises EngineClosedError if the engine was closed meanwhile."""
        try:
            return next(attempt)
        except StateError:
            # If the memory was detached during the forward pass, report that instead of this consequence.
            self.require_usable()
            raise
        finally:
            self.require_usable()

    def _run_through(self, attempt: Generator[str, None, Outcome]) -> Outcome:
        try:
            while True:
                self._step(attempt)
        except StopIteration as done:
            outcome: Outcome = done.value
            return outcome

    def attempt(self, request: TurnRequest, number: int, forced: Reply | None = None) -> Generator[str, None, Outcome]:
        """Runs a turn up to its commit. `forced`: a reply to use instead of sampling one."""
        scheduler = self.speaker.scheduler
        seat = scheduler.seat()
        try:
            # Only the first attempt can be refused for overload, not a repetition.
            if number == 1:
                yield from scheduler.admitted(seat)
            return (yield from self._attempt(request, number, forced, seat))
        finally:
            scheduler.leave(seat)

    def _attempt(
        self, request: TurnRequest, number: int, forced: Reply | None, seat: Seat[OneToken]
    ) -> Generator[str, None, Outcome]:
        speaker = self.speaker
        constraint = None
        if request.grammar is not None and forced is None:
            constraint = speaker.vocabulary.matcher(request.grammar, max_tokens=request.sampling.max_tokens)
        plan = self._plan(request)
        writes = request.memory == "readwrite"
        # If the memory is a list of statements, new writes do not change the state that is read.
        reads_all = not speaker.keeps_writes or request.recall.read == "all"
        run = speaker.begin(None if plan is None else plan.memory.base, collect=True, applies=reads_all, seat=seat)
        recorder = self.recorder(request.messages, request.thread or DEFAULT_THREAD)
        ready = yield from self._prepare(request, plan, run, recorder, seat)
        window, recollection = ready.window, ready.recollection
        writes_reply = writes and plan is not None and "assistant" in self.policy.roles
        key = CacheKey.of(self.lazy_store.place, request.agent, request.thread or DEFAULT_THREAD)
        use = self.caches.begin(run, window.prompt, key, writes_reply=writes_reply, heard=ready.heard)
        ready.heard = None  # Large, and the reply may be long.
        decoding = Decoding(
            run,
            window.prompt,
            speaker.tokenizer,
            replace(request.sampling, stop=(*request.sampling.stop, *speaker.prompts.stop_texts)),
            writes_reply=writes_reply and not speaker.per_message,
            end_ids=speaker.prompts.end_ids,
            constraint=constraint,
            forced=None if forced is None else forced.ids,
            unstopped=request.unstopped,
        )
        if recollection is not None and forced is None:
            run.pointing = pointing(self.pointer, recollection, speaker.spelling)
        yield from decoding
        reply = decoding.reply
        assert reply is not None
        if forced is not None:
            reply = replace(reply, finish_reason=forced.finish_reason, text=forced.text)
        message, cut = Message("assistant", reply.text), None
        if request.tools:
            names = [tool.name for tool in request.tools]
            message, cut = reply_message(reply.text, names, request.salt, held=request.grammar is not None)
        if writes_reply and speaker.per_message:
            deque(speaker.absorbing(run, (message,), None), maxlen=0)
        elif writes_reply and reply.ids:
            run.measures.messages += 1
        if plan is not None and writes:
            recorder.record(run, plan, plan.new, message if writes_reply else None)
        return Outcome(plan, window, run, reply, message, cut, ready.absorbed, number, recollection, recorder, use)

    def _prepare(
        self, request: TurnRequest, plan: Plan | None, run: Pass, recorder: Recorder, seat: Seat[OneToken]
    ) -> Generator[str, None, _Prepared]:
        """Recalls, fits the prompt, and absorbs new messages that the prompt does not show."""
        new = plan.new if plan is not None and request.memory == "readwrite" else ()
        if not self.speaker.keeps_writes or plan is None:
            ready = _Prepared(self.window(request, new))
        else:
            reserve = shown_tokens(request.recall, self.matcher) if plan.memory.listed.newest else 0
            fitted = self.window(request, new, reserve=reserve)
            ahead = fitted.absorbed
            absorbed = yield from self._absorbing(run, request, ahead)
            recorder.record(run, plan, ahead)
            fresh, asked, recall = recorder.statements, request.messages, request.recall
            recollection, heard = recollect(
                self.speaker, plan.memory, fresh, asked, recall, self.matcher, self.caches, seat
            )
            run.state = recollection.state.to(self.speaker.model.device)
            if ahead or recollection.shown or fitted.unshown:
                new = tuple(position for position in new if position not in ahead)
                # The same start whatever returns to the window, so that the prompt continues the previous one.
                start = None if fitted.unshown else fitted.start
                fitted = self.window(request, new, recollection=recollection, start=start)
            ready = _Prepared(fitted, recollection, heard, absorbed)
        ready.absorbed += yield from self._absorbing(run, request, ready.window.absorbed)
        if run.state is not None:
            run.state = run.state.settled()
        return ready

    def window(
        self,
        request: TurnRequest,
        new: Sequence[int],
        *,
        recollection: Recollection | None = None,
        reserve: int = 0,
        start: int | None = None,
    ) -> Window:
        """The prompt of a turn; its positions are those of the request's messages.

        `reserve`: tokens to leave free. `start`: where to begin, if that fits.
        """
        prompts, tokens = self.speaker.prompts, request.sampling.max_tokens
        if recollection is None or not recollection.shown:
            reserve = max(0, min(reserve, (prompts.tokens - tokens) // 2))
            return prompts.window(request.messages, request.tools, tokens + reserve, new, start=start)
        messages, at = recollection.shown_in(request.messages)
        more = len(recollection.shown)
        moved = {position + more if position >= at else position for position in new}
        start = None if start is None or start > at else start
        window = prompts.window(messages, request.tools, tokens, moved, start=start)

        def back(positions: Sequence[int]) -> tuple[int, ...]:
            return tuple(position - more if position >= at + more else position for position in positions)

        prompt = replace(window.prompt, positions=back(window.prompt.positions or ()))
        begins = window.start - more if window.start >= at + more else min(window.start, at)
        return replace(window, prompt=prompt, absorbed=back(window.absorbed), start=begins)

    def _absorbing(self, run: Pass, request: TurnRequest, positions: Sequence[int]) -> Generator[str, None, int]:
        """Writes messages that are not in the prompt. Returns the number of their tokens."""
        absorbed = 0
        if positions:
            for tokens in self.speaker.absorbing(run, request.messages, positions):
                absorbed += tokens
                yield ""
        return absorbed

    def absorb_into(
        self, agent: str, thread: str | None, messages: Sequence[Message], advance: Callable[[int], None]
    ) -> str | None:
        """See `DeltaMemEngine.absorb_into`."""
        first: Plan | None = None
        for _ in range(COMMIT_ATTEMPTS):
            plan = self._planner.absorption(agent, thread, messages)
            first = first or plan
            _require_same_agent(agent, first, plan)
            if not plan.new:
                return None
            run = self.speaker.begin(plan.memory.base, applies=not self.speaker.keeps_writes)
            for read in self.speaker.absorbing(run, messages, plan.new):
                advance(read)
                self.require_usable()
            name = DEFAULT_THREAD if thread is None else thread
            recorder = self.recorder(messages, name, "absorb")
            recorder.record(run, plan, plan.new)
            try:
                return self._save(agent, name, plan, run, recorder, None)
            except StaleHeadError:
                continue
        raise StaleHeadError(
            f"agent {agent!r} was written by others during each of {COMMIT_ATTEMPTS} attempts; "
            "nothing was absorbed; try again"
        )

    @property
    def empty(self) -> AgentMemory:
        """The memory of a new agent."""
        return AgentMemory(self.speaker.adapter.zero_state().to("cpu"), fades=self.memories.fades)

    def recorder(
        self, messages: Sequence[Message], thread: str, origin: str = "turn", times: Sequence[str] = ()
    ) -> Recorder:
        """The recorder that makes statements of these messages. `times`: time of each message, default now."""
        speaker = self.speaker
        return Recorder(messages, thread, self.policy.keep_text, speaker.no_writes, speaker.tokenizer, origin, times)

    @property
    def _planner(self) -> Planner:
        drops = self.speaker.keeps_writes
        return Planner(self.lazy_store, self.empty, self.memories, self.fingerprint, self.policy, drops)

    def _plan(self, request: TurnRequest) -> Plan | None:
        """The plan of a turn, None if the memory is off."""
        if request.memory == "off":
            return None
        if request.agent is None:
            return self._planner.without_agent(request.messages)
        return self._planner.turn(request.agent, request.thread, request.messages)

    def _commit(self, request: TurnRequest, outcome: Outcome) -> Turn:
        """Saves the turn. If another writer came first, runs it again on the new head with the same reply.

        The reply is the same because the user may have seen it already.
        """
        if request.agent is None or request.memory != "readwrite":
            return self._turn(request, outcome, None)
        first = outcome.plan
        try:
            return self._saved(request, outcome)
        except StaleHeadError:
            pass
        # Turns that lost the race queue up, so that they do not keep losing to each other.
        with self.queues.of(request.agent):
            for number in range(2, COMMIT_ATTEMPTS + 2):
                outcome = self._run_through(self.attempt(request, number, outcome.reply))
                _require_same_agent(request.agent, first, outcome.plan)
                try:
                    return self._saved(request, outcome)
                except StaleHeadError:
                    continue
        raise StaleHeadError(
            f"agent {request.agent!r} was written by others during each of {COMMIT_ATTEMPTS} attempts; "
            "nothing was changed by this turn; try again"
        )

    def _saved(self, request: TurnRequest, outcome: Outcome) -> Turn:
        """Saves the turn and returns it when the snapshot is durable. Raises StaleHeadError if another came first."""
        plan = outcome.plan
        assert plan is not None and request.agent is not None
        thread = DEFAULT_THREAD if request.thread is None else request.thread
        reply = outcome.message if "assistant" in self.policy.roles else None
        saved = self._save(request.agent, thread, plan, outcome.run, outcome.recorder, reply)
        if saved is None:
            return self._turn(request, _nothing_written(outcome, plan), plan.head)
        if plan.undone:
            _log.warning(
                "agent %r, thread %r: the client's history was edited or cut short; messages undone: %d. "
                "Snapshot %s still holds them; Store.rewind goes back to it",
                request.agent,
                request.thread,
                plan.undone,
                plan.head,
            )
        return self._turn(request, outcome, saved)

    def _save(
        self, agent: str, thread: str, plan: Plan, run: Pass, recorder: Recorder, reply: Message | None
    ) -> str | None:
        """Commits the recorded statements. Returns None if the newest snapshot already holds exactly these messages.

        Raises StaleHeadError if another writer came first.
        """
        undone = plan.undone_statements(thread)
        most = self.policy.statements
        after, objects, gone = plan.memory.changed(self.store, agent, recorder.statements, undone, most=most)
        if self.speaker.keeps_writes:
            kept = Kept.of(after)
        else:
            assert run.state is not None
            state = run.state.settled().detach().to("cpu")
            after = AgentMemory(state, after.listed, store=self.store, agent=agent, went=after.went)
            kept = Kept(state, after.listed, went=after.went)
        objects |= without(recorder.objects, gone)
        snapshot = plan.commit(kept, self.fingerprint, thread, reply, run.measures.written, recorder.origin)
        if snapshot is None:
            return None
        self.require_usable()
        saved = self.store.save(agent, snapshot, expected=plan.head, objects=objects)
        if gone:
            _log.warning(
                "agent %r: its memory held more than %s statements; %d of them are now only in its full state",
                agent,
                most,
                len(gone),
            )
        self.memories.keep(self.store, agent, saved, after)
        return saved

    def _turn(self, request: TurnRequest, outcome: Outcome, snapshot: str | None) -> Turn:
        measures, state, reply = outcome.run.measures, outcome.run.state, outcome.reply
        calls = outcome.message.tool_calls
        self.caches.keep(outcome.cache_use, outcome.run, reply.ids)
        tokens = len(outcome.window.prompt)
        undone = outcome.plan.undone if outcome.plan is not None and request.memory == "readwrite" else 0
        return Turn(
            text=outcome.message.content,
            tool_calls=calls,
            usage=Usage(tokens, len(reply.ids), outcome.absorbed_tokens, tokens - measures.prefilled),
            snapshot=snapshot,
            facts=TurnFacts(
                agent=request.agent or "",
                thread=request.thread,
                memory=request.memory,
                alignment="off" if outcome.plan is None else outcome.plan.outcome.value,
                tokens_read=measures.read,
                tokens_written=measures.written,
                messages_written=measures.messages,
                state_bytes=0 if state is None else state.nbytes,
                state_norm=0.0 if state is None else state.norm(),
                mean_beta=measures.mean_beta,
                half_life_tokens=self.speaker.adapter.config.half_life(measures.mean_beta),
                correction_ratio=measures.correction_ratio,
                prefill_seconds=measures.prefill_seconds,
                decode_seconds=measures.decode_seconds,
                prefilled_tokens=measures.prefilled,
                attempts=outcome.attempts,
                tokens_unshown=outcome.window.unshown,
                tokens_unwritten=measures.unwritten,
                undone_messages=undone,
                recalled=() if outcome.recollection is None else outcome.recollection.recalled,
            ),
            finish_reason="tool_calls" if calls and outcome.cut_call is None else reply.finish_reason,
            cut_call=outcome.cut_call,
        )


def _nothing_written(outcome: Outcome, plan: Plan) -> Outcome:
    """The outcome of a turn that the memory already holds: the client repeated it and got the same reply."""
    measures = replace(outcome.run.measures, written=0, messages=0, unwritten=0)
    state = plan.memory.base if outcome.recollection is None else outcome.run.state
    return replace(outcome, run=replace(outcome.run, state=state, measures=measures))


def _require_same_agent(agent: str, first: Plan | None, now: Plan | None) -> None:
    """Raises AgentForgottenError if the agent was forgotten or replaced since the turn began."""
    if first is None or now is None or first.incarnation in (None, now.incarnation):
        return
    raise AgentForgottenError(
        f"agent {agent!r} was forgotten, or replaced by an import, while this turn was running. Nothing of the turn "
        "was kept, although its text may have been shown; call again to start a new memory"
    )
