"""Decode a reply's tokens to text for streaming, and hold back text that may start a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltamem_agents.memory.state import MemoryState

Remembered: TypeAlias = tuple[MemoryState | None, int, int]
"""A state, the number of tokens written by then, and the number of chunks of the reply whose writes are pending."""


class StoppingText:
    """The text so far. Its end is held back while it may be the start of a stop string.

    Text that a stop string cuts off must not be remembered either. So the memory is kept after each token at which the
    text may still be cut: the tokens of a possible start of a stop string at the end of the text.
    `unstopped`: marker after which stop strings are ignored.
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
        """The memory after the text, without tokens that a stop string cut off."""
        return next(remembered for length, remembered in reversed(self._kept) if length <= len(self._all))

    @property
    def kept(self) -> int:
        """Number of states held: at least one, at most the number of characters of the longest stop string."""
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
        """Record the memory after the newest token went through the model."""
        length = len(self._all)
        kept = [*(one for one in self._kept if one[0] < length), (length, remembered)]
        certain = max(place for place, one in enumerate(kept) if one[0] <= max(0, length - self._held()))
        self._kept = kept[certain:]

    def finish(self) -> str:
        if not self.stopped:
            # The stream still holds back an incomplete character; a full decode shows a replacement character.
            whole = as_text(self._tokenizer, self._ids)
            if whole.startswith(self._all):
                self._all = whole
        return self._show(len(self._all))

    def _held(self) -> int:
        """Number of characters at the end that may be the start of a stop string."""
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
    """Position of the first stop string in `text`; None if there is none before `unstopped`."""
    end = len(text) if unstopped is None or unstopped not in text else text.index(unstopped)
    return min((at for at in (text.find(each, 0, end) for each in stop) if at >= 0), default=None)


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a reply's tokens, without control tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def spelled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; "" for a token that does not complete a character."""
    backend, stream = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer, DecodeStream(skip_special_tokens=True)
    return [stream.step(backend, token) or "" for token in ids]


def definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fast tokenizer serialised to the JSON of the tokenizers library."""
    return str(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())
