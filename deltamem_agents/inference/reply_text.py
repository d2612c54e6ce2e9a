"""A reply's tokens as text, held back where a stop string may begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltamem_agents.memory.state import MemoryState

Remembered: TypeAlias = tuple[MemoryState | None, int, int]
"""A state, how many tokens had been written by then, and how many stretches of the reply wait to be written."""


class StoppingText:
    """Text of the tokens so far, held back while it may be the start of a stop string.

    What a stop string cuts off is not to be remembered either. So what was remembered is kept for each token behind
    which the text may still be cut: for those within the beginning of a stop string at the end of the text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: tuple[str, ...],
        unstopped: str | None,
        remembered: Remembered,
    ) -> None:
        self._tokenizer, self._stop, self._unstopped = tokenizer, stop, unstopped
        self._backend: Tokenizer = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._all, self._shown = "", 0
        self._kept: list[tuple[int, Remembered]] = [(0, remembered)]
        self.stopped = False

    @property
    def text(self) -> str:
        return self._all

    @property
    def remembered(self) -> Remembered:
        """What is remembered once the text is over."""
        return next(remembered for length, remembered in reversed(self._kept) if length <= len(self._all))

    @property
    def kept(self) -> int:
        """How many states are held: at most as many as the longest stop string has characters, and at least one."""
        return len(self._kept)

    def push(self, token: int) -> str:
        self._ids.append(token)
        self._all += self._stream.step(self._backend, token) or ""
        stop = stop_place(self._all, self._stop, self._unstopped)
        if stop is not None:
            self._all, self.stopped = self._all[:stop], True
            return self._show(len(self._all))
        return self._show(len(self._all) - self._held())

    def passed(self, remembered: Remembered) -> None:
        """The newest token went through the model."""
        length = len(self._all)
        kept = [*(one for one in self._kept if one[0] < length), (length, remembered)]
        certain = max(place for place, one in enumerate(kept) if one[0] <= max(0, length - self._held()))
        self._kept = kept[certain:]

    def finish(self) -> str:
        if not self.stopped:
            # What the stream still holds back is an incomplete character; decoding marks it as such.
            whole = as_text(self._tokenizer, self._ids)
            if whole.startswith(self._all):
                self._all = whole
        return self._show(len(self._all))

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        if self._unstopped is not None and self._unstopped in self._all:
            return 0
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._all)), 0, -1):
            if any(stop.startswith(self._all[-length:]) for stop in self._stop):
                return length
        return 0

    def _show(self, end: int) -> str:
        piece, self._shown = self._all[self._shown : end], max(self._shown, end)
        return piece


def stop_place(text: str, stop: Sequence[str], unstopped: str | None) -> int | None:
    """Where the first stop string stands in `text`, None if there is none before `unstopped`."""
    end = len(text) if unstopped is None or unstopped not in text else text.index(unstopped)
    return min((at for at in (text.find(each, 0, end) for each in stop) if at >= 0), default=None)


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a reply's tokens, without control tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def spelled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; "" for one that does not complete a character."""
    backend, stream = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer, DecodeStream(skip_special_tokens=True)
    return [stream.step(backend, token) or "" for token in ids]


def definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fast tokenizer in the JSON form of the tokenizers library."""
    return str(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())
