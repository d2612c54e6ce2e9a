"""Runs one sequence through the model: feeds its tokens, lets them read the memory, and collects their writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from deltamem_agents.config import AdapterConfig
from deltamem_agents.inference.compiled import CompiledStep
from deltamem_agents.inference.pointing import Pointing, pointed
from deltamem_agents.inference.prompt_rows import PromptChunk
from deltamem_agents.inference.rows import OneToken
from deltamem_agents.inference.scheduling import BETWEEN, Seat
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import LayerMemory, MemoryCall, read_and_write
from deltamem_agents.memory.backbones import (
    KeysAndValues,
    KeyValueCache,
    cache_of,
    empty_cache,
    last_place,
    layers_of,
    with_cache,
)
from deltamem_agents.memory.folding import FoldedCall, FoldedState
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import Writes, collected

_TOKENWISE = ("ids", "reads", "writes", "message_ids", "replies")

PREFILL_CHUNK = 512
"""Tokens per forward pass of a long prompt. It bounds the memory for activations and does not change the result."""

SHARED_CHUNK = BETWEEN
"""Tokens per forward pass of a long prompt while other turns run."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of one sequence. `reads` and `writes` mark the tokens that read and write the memory.

    `message_ids`: which message each token belongs to, −1 for none. `replies` marks the tokens that predict a token
    of a reply. `messages`: number of messages whose writing starts in this prompt. `unwritten`: tokens of these
    messages that are not written, because they are beyond the limit per message. `positions`: the position of each
    message id in the conversation; None if the ids are the positions.
    """

    ids: tuple[int, ...]
    reads: tuple[bool, ...]
    writes: tuple[bool, ...]
    message_ids: tuple[int, ...]
    replies: tuple[bool, ...]
    messages: int = 0
    unwritten: int = 0
    positions: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def last(self, tokens: int) -> Prompt:
        """The prompt's last tokens, at most `tokens` of them."""
        if len(self) <= tokens:
            return self
        return replace(self, **{part: getattr(self, part)[-tokens:] for part in _TOKENWISE})

    def cut(self, part: slice) -> Prompt:
        """A slice of its tokens."""
        if part.start == 0 and part.stop >= len(self):
            return self
        return replace(self, **{each: getattr(self, each)[part] for each in _TOKENWISE})

    def position(self, message: int) -> int:
        """A message's position among the messages that the prompt was rendered from; REPLY for the reply itself."""
        return message if message < 0 or self.positions is None else self.positions[message]


def joined(prompts: Iterable[Prompt]) -> Prompt:
    """Several prompts, concatenated."""
    parts = list(prompts)

    def flags(of: Callable[[Prompt], tuple[bool, ...]]) -> tuple[bool, ...]:
        return tuple(each for part in parts for each in of(part))

    return Prompt(
        ids=tuple(token for part in parts for token in part.ids),
        reads=flags(lambda part: part.reads),
        writes=flags(lambda part: part.writes),
        message_ids=tuple(message for part in parts for message in part.message_ids),
        replies=flags(lambda part: part.replies),
    )


REPLY = -1
"""Stands for a message position: the reply that is being decoded."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The writes of consecutive tokens of one message.

    `position`: the message's position. `tokens`: the token ids. `written`: indices of those that wrote, ascending.
    """

    position: int
    tokens: tuple[int, ...]
    written: tuple[int, ...]
    writes: Writes

    def then(self, more: Piece) -> Piece:
        """This piece followed by the next one of the same message."""
        written = (*self.written, *(len(self.tokens) + place for place in more.written))
        return Piece(self.position, self.tokens + more.tokens, written, Writes.cat([self.writes, more.writes]))


@dataclass
class Measures:
    """Running totals of a turn's forward passes: tokens that read, were written or prefilled; messages written."""

    read: int = 0
    written: int = 0
    messages: int = 0
    unwritten: int = 0
    prefilled: int = 0
    beta_sum: float = 0.0
    beta_count: int = 0
    ratio_sum: float = 0.0
    ratio_count: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, call: MemoryCall) -> None:
        for beta in call.betas:
            self.beta_sum += float(beta.sum())
            self.beta_count += beta.numel()
        for ratio in call.ratios:
            self.ratio_sum += float(ratio)
            self.ratio_count += 1

    @property
    def mean_beta(self) -> float | None:
        return self.beta_sum / self.beta_count if self.beta_count else None

    @property
    def correction_ratio(self) -> float | None:
        return self.ratio_sum / self.ratio_count if self.ratio_count else None


@dataclass(frozen=True, eq=False)
class Heard:
    """By slot, the attention inputs (1, tokens, hidden) of a prompt's tokens from position `start` on."""

    start: int
    inputs: dict[int, Tensor]


@dataclass
class Pass:
    """One sequence going through the model: its KV cache, and its memory (None for the base model).

    `replies_read`: only tokens that predict a reply's token read the memory (the adapter's read scope).
    `pieces`: if given, collects the writes. `applies`: whether writes change `state`.
    `layers`, `config`: of the adapter; for folding a constant state, and for computing writes after the pass.
    `later`: the writes of tokens that are fed are computed by `write_waiting`.
    `pointing`: if given, raises the logits of recalled tokens.
    `cached`: how many tokens of the next prompt `cache` holds already. `heard`: attention inputs of the last of them,
    if they were run for this turn by `hear`.
    `seat`: access to a model that other sequences use too. `shares`: whether single tokens go through the model
    together with those of other sequences. `rounded_up_to`: as in `PromptChunk`. `compiled`: runs single tokens.
    """

    model: PreTrainedModel
    state: MemoryState | None
    replies_read: bool = False
    measures: Measures = field(default_factory=Measures)
    collect: bool = False
    cache: KeyValueCache = field(default_factory=empty_cache)
    pieces: list[Piece] | None = None
    applies: bool = True
    pointing: Pointing | None = None
    layers: Sequence[LayerMemory] = ()
    config: AdapterConfig | None = None
    later: bool = False
    cached: int = 0
    heard: Heard | None = None
    seat: Seat[OneToken] | None = None
    shares: bool = False
    rounded_up_to: int = 0
    compiled: CompiledStep | None = None
    _folded: FoldedState | None = None
    _waiting: list[tuple[Prompt, dict[int, Tensor]]] = field(default_factory=list)
    _carry: Tensor | None = None
    _looked_at: MemoryState | None = None
    _is_zero: bool = False

    @property
    def defers(self) -> bool:
        """Whether writes can be computed after the pass: the state that the tokens read does not change."""
        return self.pieces is not None and not self.applies

    @property
    def kept(self) -> int:
        """Number of cached tokens that were computed in earlier turns."""
        return self.cached if self.heard is None else self.heard.start

    @property
    def fed(self) -> int:
        """Number of chunks of the reply whose writes are pending."""
        return len(self._waiting)

    def feed(self, prompt: Prompt) -> Tensor:
        """Run `prompt` after the tokens so far; returns the last position's logits (vocabulary,) float32."""
        feeding = self.feeding(prompt)
        while True:
            try:
                next(feeding)
            except StopIteration as done:
                logits: Tensor = done.value
                return logits

    def feeding(self, prompt: Prompt) -> Generator[str, None, Tensor]:
        """`feed` as a generator that yields "" between two chunks of the prompt."""
        start, self.cached = self.cached, 0
        if start and self.state is not None and not self._quiet(prompt):
            self.measures.read += self._reading(prompt, slice(0, start))
        self._write_heard(prompt, start)
        if start and len(prompt) - start == 1:
            # A single new token costs as little as a token of a reply, so it may share a pass.
            self.share()
        begun = start
        while start < len(prompt):
            if start > begun:
                yield ""
            size = PREFILL_CHUNK if self.seat is None or self.seat.alone else SHARED_CHUNK
            logits = self._chunk(prompt, slice(start, start + size))
            start += size
        if self.state is not None:
            self.measures.messages += prompt.messages
            self.measures.unwritten += prompt.unwritten
        return logits

    @torch.no_grad()
    def _write_heard(self, prompt: Prompt, end: int) -> None:
        """Compute the writes of the cached tokens in `heard`, and the carry for the next token's key.

        The other cached tokens must have nothing to write.
        """
        heard, self.heard = self.heard, None
        if heard is None or self.state is None or self.pieces is None:
            return
        part = slice(heard.start, end)
        if not any(prompt.writes):
            return
        call = MemoryCall(
            self.state,
            write_mask=self._row(prompt.writes[part], torch.bool),
            collect=self.collect,
            written={},
            applies=False,
        )
        for slot, layer in enumerate(self.layers):
            read_and_write(layer, call, slot, heard.inputs[slot])
        self.state = call.new_state()
        self.pieces.extend(pieces_of(*collected(call)[0], prompt, part))
        self.measures.written += sum(prompt.writes[part])
        self.measures.add(call)

    @torch.no_grad()
    def write_waiting(self, stretches: int) -> None:
        """Compute the writes of the reply's first `stretches` pending chunks at once, and drop the rest."""
        waiting, self._waiting = self._waiting[:stretches], []
        if not waiting or self.state is None or self.pieces is None:
            return
        whole = joined(prompt for prompt, _ in waiting)
        mask = torch.tensor([whole.writes], device=self.model.device)
        state = MemoryState(self.state.matrices, self._carry)
        call = MemoryCall(state, write_mask=mask, collect=self.collect, written={}, applies=False)
        for slot, layer in enumerate(self.layers):
            read_and_write(layer, call, slot, torch.cat([inputs[slot] for _, inputs in waiting], dim=1))
        self.pieces.extend(pieces_of(*collected(call)[0], whole, slice(0, len(whole))))
        self.measures.add(call)

    def seconds(self) -> float:
        """A clock in seconds that stops while this sequence waits for others."""
        return time.perf_counter() - (0.0 if self.seat is None else self.seat.waited)

    def share(self) -> None:
        """From now on, single tokens share passes with those of other turns."""
        self.shares = self.seat is not None and self.seat.admitted

    def part(self) -> None:
        """Stop sharing passes and take `cache` back."""
        if self.shares and self.seat is not None:
            self.shares = False
            with self.seat.exclusively(self, 0):
                pass

    def forward(self, ids: Sequence[int], call: MemoryCall | FoldedCall | None) -> Tensor:
        """The last position's logits (vocabulary,) float32 after more tokens, in a pass of this sequence alone."""
        if self.compiled is not None and self.compiled.fits(ids, self.cache, call):
            return self.compiled(ids[0], self.cache, cast("FoldedCall | None", call))
        out = self.model(
            input_ids=self._row(ids, torch.long),
            logits_to_keep=last_place(self.model.device),
            **with_cache(self.model, self.cache),
            **({} if call is None else {CALL_KEYWORD: call}),
        )
        logits: Tensor = out.logits[0, -1].float()
        return logits

    def _logits(self, ids: Sequence[int], call: MemoryCall | FoldedCall | None, pointing: Pointing | None) -> Tensor:
        """The last position's logits (vocabulary,) float32 with what `pointing` adds, perhaps from a shared pass."""
        if self.shares and len(ids) == 1 and self.seat is not None:
            return self.seat.share(OneToken(self, ids[0], call, pointing))
        return pointed(self._own_logits(ids, call), pointing, call, ids[-1])

    def _own_logits(self, ids: Sequence[int], call: MemoryCall | FoldedCall | None) -> Tensor:
        if self.seat is None:
            return self.forward(ids, call)
        past = self._past
        if past is not None and not isinstance(call, FoldedCall):
            chunk = PromptChunk(self.model, ids, past, call, speaks=True, rounded_up_to=self.rounded_up_to)
            self.seat.run_job(chunk)
            self.cache = cache_of(chunk.layers)
            assert chunk.logits is not None
            return chunk.logits
        with self.seat.exclusively(self, len(ids)):
            return self.forward(ids, call)

    @property
    def _past(self) -> KeysAndValues | None:
        """The cached keys and values, if the next tokens may share a pass with prompts of other turns, else None."""
        if self.seat is None or not self.seat.admitted or self.later or self.shares:
            return None
        return layers_of(self.cache) if type(self.cache) is KeyValueCache else None

    @torch.no_grad()
    def _chunk(self, prompt: Prompt, part: slice) -> Tensor:
        call, later = self._call(prompt, part), self.later
        logits = self._logits(prompt.ids[part], call, self.pointing if part.stop >= len(prompt) else None)
        if call is None:
            return logits
        if later and any(prompt.writes):
            assert call.inputs is not None
            self._waiting.append((prompt.cut(part), call.inputs))
        if isinstance(call, FoldedCall):
            self.measures.read += len(prompt)
            self.measures.written += sum(prompt.writes)
            return logits
        if not later and not call.quiet:
            self.state = call.new_state()
        if not call.quiet:
            self.measures.read += self._reading(prompt, part)
        self.measures.written += sum(prompt.writes[part])
        self.measures.add(call)
        if call.written is not None and self.pieces is not None:
            self.pieces.extend(pieces_of(*collected(call)[0], prompt, part))
        return logits

    def _call(self, prompt: Prompt, part: slice) -> MemoryCall | FoldedCall | None:
        """The memory call of a forward pass; None for the base model."""
        if self.state is None:
            return None
        later = self.later
        if later and not self._waiting:
            self._carry = self.state.carry
        queries: dict[int, Tensor] | None = None if self.pointing is None else {}
        quiet = self._quiet(prompt)
        if later and len(prompt) == 1 and not quiet:
            self._fold()
            if self._folded is not None:
                return FoldedCall(self._folded, {} if any(prompt.writes) else None, queries)
        writes = self._row(prompt.writes[part], torch.bool) if any(prompt.writes[part]) and not later else None
        return MemoryCall(
            self.state,
            self._row(prompt.reads[part], torch.bool),
            writes,
            None if writes is None else self._row(prompt.message_ids[part], torch.long),
            self._row(prompt.replies[part], torch.bool),
            unfinished=part.stop < len(prompt),
            # For single tokens, measuring would take as long as the memory itself.
            collect=self.collect and not later,
            inputs={} if later else None,
            queries=queries,
            written=None if self.pieces is None or writes is None else {},
            applies=self.applies,
            quiet=quiet,
            later=later,
            reads_from=0 if self.applies else self._reads_from(prompt, part),
        )

    def _reads_from(self, prompt: Prompt, part: slice) -> int:
        """The first position in `part` of a token that reads; the prompt's last token always may, for the pointer."""
        may = self._may_read(prompt, part)
        may[-1] |= part.stop >= len(prompt)
        return may.index(True) if any(may) else len(may)

    def _fold(self) -> None:
        """Fold the state into the adapter's layers: it does not change for the rest of the reply."""
        if self._folded is None and self.config is not None and self.state is not None:
            self._folded = FoldedState.of(self.config, self.layers, self.state)
            self.config = None

    @property
    def _reads_nothing(self) -> bool:
        """Whether nothing was recalled, so that the reply is the base model's, bit for bit."""
        if not self.defers or self.pointing is not None:
            return False
        assert self.state is not None
        if self._looked_at is not self.state:
            # Once for a state: looking at it for every token would make a GPU wait.
            self._looked_at, self._is_zero = self.state, not bool(self.state.matrices.any())
        return self._is_zero

    def _quiet(self, prompt: Prompt) -> bool:
        return self._reads_nothing and (self.later or not any(prompt.writes))

    def _reading(self, prompt: Prompt, part: slice) -> int:
        """Number of these tokens that read the memory."""
        return sum(self._may_read(prompt, part))

    def _may_read(self, prompt: Prompt, part: slice) -> list[bool]:
        """Which of these tokens read the memory."""
        flags = zip(prompt.reads[part], prompt.replies[part], strict=True)
        return [reads and (says or not self.replies_read) for reads, says in flags]

    def _row(self, values: Sequence[int] | Sequence[bool], dtype: torch.dtype) -> Tensor:
        return torch.tensor([values], dtype=dtype, device=self.model.device)


def pieces_of(places: Tensor, writes: Writes, prompt: Prompt, part: slice) -> Iterator[Piece]:
    """The writes of a slice of a prompt, as one piece per message.

    `places`: (N,), positions within `part` of the tokens that wrote. `writes`: their writes.
    """
    wrote, owners = set(places.tolist()), prompt.message_ids[part]
    writable = [place for place, may in enumerate(prompt.writes[part]) if may]
    for owner in dict.fromkeys(owners[place] for place in writable):
        own = [place for place in writable if owners[place] == owner]
        yield Piece(
            prompt.position(owner),
            tuple(prompt.ids[part][place] for place in own),
            tuple(number for number, place in enumerate(own) if place in wrote),
            writes.select(torch.tensor([owners[place] == owner for place in places.tolist()], dtype=torch.bool)),
        )
