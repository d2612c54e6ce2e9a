"""Words from a model's vocabulary, as values with a known number of tokens."""

from __future__ import annotations

import random
import re
from typing import Any

TRIES_A_WORD = 4


def open_words(tokenizer: Any) -> list[str]:
    """Every word that is one token after a space, in lower case or capitalised."""
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    return sorted({text[1:] for text in texts if re.fullmatch(r" [A-Z]?[a-z]{2,}", text)})


def made_up_words(tokenizer: Any, count: int) -> list[str]:
    """Up to `count` invented words of two or three tokens, like most names. The same on every call."""
    rng = random.Random("made up")
    begins = [word for word in open_words(tokenizer) if len(word) <= 6]
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    ends = sorted({text for text in texts if re.fullmatch(r"[a-z]{2,5}", text)})
    found: dict[str, None] = {}
    # Most pairs are encoded as their two parts. Skip those that become one token or more than three.
    for _ in range(TRIES_A_WORD * count):
        if not begins or not ends or len(found) == count:
            break
        word = rng.choice(begins) + rng.choice(ends)
        if 2 <= len(tokenizer.encode(f" {word}", add_special_tokens=False)) <= 3:
            found[word] = None
    return list(found)
