"""The decode loop: a prompt and a state go in, tokens and a new state come out.

`model.generate` rejects the keyword argument that carries the memory, so this package has its own loop. The logits
processors are transformers'. Nothing here knows about agents or stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.inference.reply_text import Remembered, StoppingText
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Sampling


class Constraint(Protocol):
    """Restricts which token may come next, for grammars."""

    def allowed(self) -> NDArray[np.bool_]:
        """Bool (vocabulary,): True where the next token may be."""
        ...

    def accept(self, token: int) -> None: ...

    @property
    def finished(self) -> bool: ...


@dataclass(frozen=True)
class Reply:
    """A finished reply. `state`: the memory after the writes of prompt and reply; None for the base model."""

    ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    state: MemoryState | None


class Decoding:
    """Decodes one reply after `prompt`. Iterate for pieces of text; `reply` is set when the iteration ends.

    `writes_reply`: whether the reply's tokens are written to the memory. `forced`: use these tokens instead of
    sampling. `unstopped`: marker after which stop strings are ignored. An abandoned iteration leaves nothing behind.
    """

    def __init__(
        self,
        run: Pass,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        writes_reply: bool,
        end_ids: frozenset[int],
        message_id: int = -1,
        constraint: Constraint | None = None,
        forced: Sequence[int] | None = None,
        unstopped: str | None = None,
    ) -> None:
        self._run, self._prompt, self._tokenizer, self._sampling = run, prompt, tokenizer, sampling
        self._writes_reply, self._end_ids, self._message_id = writes_reply, end_ids, message_id
        self._constraint, self._forced, self._unstopped = constraint, forced, unstopped
        self.reply: Reply | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._pieces()
        finally:
            self._run.part()

    def _pieces(self) -> Iterator[str]:
        run, clock = self._run, self._run.seconds
        begun = clock()
        run.measures.prefilled = len(self._prompt) - run.kept
        logits = yield from run.feeding(self._prompt)
        run.measures.prefill_seconds += clock() - begun
        run.share()
        begun = clock()
        draw = self._drawing()
        text = StoppingText(self._tokenizer, self._sampling.stop, self._unstopped, self._remembered())
        run.later = run.defers
        ids: list[int] = []
        waiting: list[int] = []
        reason: Literal["stop", "length"] = "length"
        while len(ids) < self._sampling.max_tokens:
            with nullcontext() if run.seat is None else run.seat.drawing():
                token = draw(ids, logits)
            if token is None:
                reason = "stop"
                break
            ids.append(token)
            piece = text.push(token)
            if piece:
                yield piece
            if text.stopped:
                reason = "stop"
                break
            if self._constraint is not None and self._constraint.finished:
                reason = "stop"
            waiting.append(token)
            if reason == "stop":
                break
            if self._one_by_one and len(ids) < self._sampling.max_tokens:
                logits, waiting = run.feed(self._spoken(waiting)), []
                text.passed(self._remembered())
        if waiting and self._writes_reply:
            run.feed(self._spoken(waiting))
            text.passed(self._remembered())
        rest = text.finish()
        if rest:
            yield rest
        run.measures.decode_seconds += clock() - begun
        run.state, run.measures.written, stretches = text.remembered
        run.write_waiting(stretches)
        run.later = False
        self.reply = Reply(tuple(ids), text.text, reason, run.state)

    def _remembered(self) -> Remembered:
        return self._run.state, self._run.measures.written, self._run.fed

    @property
    def _one_by_one(self) -> bool:
        """Whether tokens go through the model one by one; forced tokens go through it in one pass at the end.

        Forced tokens go one by one if there are stop strings: the state before a cut is then needed.
        """
        return self._forced is None or bool(self._sampling.stop)

    def _spoken(self, ids: Sequence[int]) -> Prompt:
        count = len(ids)
        return Prompt(
            tuple(ids), (True,) * count, (self._writes_reply,) * count, (self._message_id,) * count, (True,) * count
        )

    def _drawing(self) -> Callable[[list[int], Tensor], int | None]:
        """A function from the tokens so far and the logits to the next token; None at the end of the turn."""
        if self._forced is not None:
            forced = self._forced
            return lambda ids, _: forced[len(ids)] if len(ids) < len(forced) else None
        processors = _processors(self._sampling)
        generator = torch.Generator(device="cpu")
        if self._sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self._sampling.seed)
        prompt = list(self._prompt.ids)

        def draw(ids: list[int], logits: Tensor) -> int | None:
            scores = logits.cpu()
            if self._constraint is not None:
                scores = scores.masked_fill(torch.from_numpy(~self._constraint.allowed()), -torch.inf)
            # Processors run after the mask: top-p and top-k then choose among what is allowed.
            if processors:
                scores = processors(torch.LongTensor([prompt + ids]), cast(torch.FloatTensor, scores[None]))[0]
            if self._sampling.temperature == 0:
                # NumPy, because PyTorch would use a pool of threads for each turn's thread.
                token = int(scores.numpy().argmax())
            else:
                token = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
            if self._constraint is not None:
                self._constraint.accept(token)
            return None if token in self._end_ids else token

        return draw


def _processors(sampling: Sampling) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if sampling.repetition_penalty is not None:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return chain
    chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k is not None:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        chain.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p is not None:
        chain.append(MinPLogitsWarper(float(sampling.min_p)))
    return chain
