"""Keeps quoted words whole: a reply that has said a told word does not go on with it ("Bramble" as "Brambleble")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

LONGEST = 16
"""Maximum number of tokens of a word that is looked for at the end of a reply."""

_WORD = re.compile(r"[^\W_]+")
_LAST_WORD = re.compile(r"[^\W_]+$")
_ANCHOR = "x"

Told = tuple[str, Sequence[tuple[int, int]]]
"""A text, and the start and end of each of its parts that are to be quoted exactly."""


@dataclass(frozen=True)
class Spelling:
    """The text of each token of a vocabulary, with the space before it if it has one; "" for part of a character."""

    pieces: Sequence[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int) -> Spelling:
        """Takes a fifth of a second for 50,000 tokens; make it once per model. `size`: the model's number of logits."""
        backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        # Some tokenizers drop the space of a text's first token, so each token is decoded behind another.
        before = backend.encode(_ANCHOR, add_special_tokens=False).ids
        known = min(len(tokenizer), size)
        texts = backend.decode_batch([[*before, token] for token in range(known)], skip_special_tokens=False)
        start = len(backend.decode(before, skip_special_tokens=False))
        return cls((*(text[start:] for text in texts), *[""] * (size - known)))

    @cached_property
    def goes_on(self) -> Tensor:
        """Ids (n,) of the tokens that begin with a letter or a digit, so that they continue a word."""
        return torch.tensor([token for token, piece in enumerate(self.pieces) if _WORD.match(piece)], dtype=torch.long)


class QuotedWords:
    """The words of some texts that a reply quotes as they are."""

    def __init__(self, spelling: Spelling, told: Iterable[Told]) -> None:
        self._spelling = spelling
        self._quoted: set[str] = set()
        self._all: set[str] = set()
        self._doubled: set[str] = set()
        for text, parts in told:
            words = [(found[0].casefold(), found.span()) for found in _WORD.finditer(text)]
            self._all |= {word for word, _ in words}
            self._quoted |= {
                word for word, (start, end) in words if any(first < end and last > start for first, last in parts)
            }
            self._doubled |= {one for (one, _), (other, _) in pairwise(words) if one == other}

    def barred(self, said: Sequence[int]) -> Tensor | None:
        """Ids (n,) of the tokens that should not follow the reply's tokens `said`; None if any may.

        If the reply ends with a quoted word, these are the tokens that would continue it or say it again. A word may
        continue if a longer word of the texts begins with it.
        """
        pieces = [self._spelling.pieces[token] for token in said[-LONGEST:]]
        found = _LAST_WORD.search("".join(pieces))
        if found is None or (word := found[0].casefold()) not in self._quoted:
            return None
        if any(each != word and each.startswith(word) for each in self._all):
            return None
        if word in self._doubled:
            return self._spelling.goes_on
        left = len(word)
        for token, piece in zip(reversed(said), reversed(pieces), strict=False):
            left -= len(piece)
            if left <= 0:
                return torch.cat([self._spelling.goes_on, torch.tensor([token])])
        return self._spelling.goes_on
