"""What a text is about, as numbers: one for each of its words, equal for words that are spelled almost alike."""

from __future__ import annotations

import re
import unicodedata
from zlib import crc32

STEM_LETTERS = 5
"""Letters by which a word is known: an ending more or less changes nothing, in most languages that have endings."""


def terms_of(text: str) -> list[int]:
    """A number for each word in order, without case, accents and endings."""
    plain = text.casefold()
    if not plain.isascii():
        folded = unicodedata.normalize("NFKD", plain)
        plain = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return [crc32(word[:STEM_LETTERS].encode()) for word in re.findall(r"\w+", plain)]
