"""The words of a text as numbers, for matching. Words with the same beginning have the same number."""

from __future__ import annotations

import re
import unicodedata
from zlib import crc32

STEM_LETTERS = 5
"""Number of leading letters that identify a word, so that most languages' endings do not matter."""


def terms_of(text: str) -> list[int]:
    """A number for each word, in order. Case, accents and endings are ignored."""
    plain = text.casefold()
    if not plain.isascii():
        folded = unicodedata.normalize("NFKD", plain)
        plain = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return [crc32(word[:STEM_LETTERS].encode()) for word in re.findall(r"\w+", plain)]
