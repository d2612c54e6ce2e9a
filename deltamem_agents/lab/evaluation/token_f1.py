"""Token F1 as in LoCoMo: words without articles and punctuation, stemmed, compared as a multiset."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from deltamem_agents.errors import ConfigError

Stem: TypeAlias = Callable[[str], str]

_ARTICLES = re.compile(r"\b(a|an|the|and)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@cache
def porter_stem() -> Stem:
    """The stemmer that the benchmark uses.

    Raises ConfigError when nltk is missing: unstemmed scores are lower and would be mistaken for the benchmark's.
    """
    try:
        from nltk.stem import PorterStemmer
    except ImportError as error:
        raise ConfigError(
            f"LoCoMo's token F1 needs the Porter stemmer of nltk, which cannot be imported ({error}); "
            "pip install 'deltamem-agents[eval]'"
        ) from None
    return cache(PorterStemmer().stem)


def normalised(text: str) -> str:
    """The text in lower case, without punctuation, articles and "and", with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(reply: str, gold: str) -> float:
    """F1 of the tokens in common; 0 if there are none. Symmetric."""
    stem = porter_stem()
    said, expected = ([stem(word) for word in normalised(text).split()] for text in (reply, gold))
    common = sum((Counter(said) & Counter(expected)).values())
    return 2 * common / (len(said) + len(expected)) if common else 0.0


def listed_f1(reply: str, gold: str) -> float:
    """For comma-separated lists: the mean over gold items of the best F1 with any item of the reply."""
    said = [item.strip() for item in reply.split(",")]
    golds = [item.strip() for item in gold.split(",")]
    return sum(max(token_f1(item, wanted) for item in said) for wanted in golds) / len(golds)
