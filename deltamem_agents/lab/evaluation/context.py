"""The part of a long history that a prompt shows: the most recent messages, search results, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, Protocol

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.matching import words


class Shown(StrEnum):
    """The kind of text that the prompt shows before the question."""

    WINDOW = "recent window"
    NOTHING = "question only"
    SNIPPETS = "BM25 snippets"


class Line(NamedTuple):
    """One piece of a history. `head`: a heading shown once above the lines that share it, such as a date; may be ""."""

    text: str
    head: str = ""


class Index(Protocol):
    """The part of a search index that is used."""

    def get_scores(self, query: list[str]) -> Sequence[float]: ...


class History:
    """The lines of one history, oldest first, with token counts and a search index."""

    def __init__(self, engine: DeltaMemEngine, lines: Sequence[Line]) -> None:
        self._tokenizer, self._lines = engine.tokenizer, lines
        # One more token for the line break.
        self._sizes = [self._count(line.text) + 1 for line in lines]
        self._heads = {head: self._count(head) + 1 for head in {line.head for line in lines} if head}

    def prompt(self, shown: Shown, text: str, query: str, budget: int) -> str:
        """As much of the history as fits into `budget` tokens, followed by `text`. `query`: what to search for.

        Raises ConfigError when `text` alone does not fit, or when the search library is missing.
        """
        room = budget - self._count(text) - 1
        if room < 0:
            raise ConfigError(
                f"the question {text!r} takes {budget - room - 1} tokens, the prompt budget is {budget}; raise it"
            )
        kept = sorted(self._chosen(shown, query, room))
        prompt = _joined([self._lines[place] for place in kept], text)
        # Joined lines can have a token more than the sum of the separate lines.
        while kept and self._count(prompt) > budget:
            kept = kept[1:]
            prompt = _joined([self._lines[place] for place in kept], text)
        return prompt

    def _chosen(self, shown: Shown, query: str, room: int) -> list[int]:
        match shown:
            case Shown.NOTHING:
                return []
            case Shown.WINDOW:
                order: Sequence[int] = range(len(self._lines) - 1, -1, -1)
            case Shown.SNIPPETS:
                order = self._found(query)
        kept: list[int] = []
        heads: set[str] = set()
        for place in order:
            head = self._lines[place].head
            size = self._sizes[place] + (0 if head in heads else self._heads.get(head, 0))
            if size <= room:
                kept.append(place)
                heads.add(head)
                room -= size
            elif shown is Shown.WINDOW:
                break
        return kept

    def _found(self, query: str) -> Sequence[int]:
        """Indices of lines that match the query, best first; newest first among equals."""
        if not self._lines:
            return []
        scores = self._index.get_scores(_terms(query))
        return sorted((place for place, score in enumerate(scores) if score > 0), key=lambda at: (-scores[at], -at))

    @cached_property
    def _index(self) -> Index:
        return bm25()([_terms(f"{line.head} {line.text}") for line in self._lines])

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


def bm25() -> Callable[[list[list[str]]], Index]:
    """Returns the function that builds a BM25 index from tokenised texts.

    Raises ConfigError, saying what to install, if the library is missing.
    """
    try:
        from rank_bm25 import BM25Okapi
    except ImportError as error:
        raise ConfigError(
            f"the arm with BM25 snippets needs rank-bm25, which cannot be imported ({error}); "
            "pip install 'deltamem-agents[eval]'"
        ) from None
    make: Callable[[list[list[str]]], Index] = BM25Okapi
    return make


def _joined(lines: Sequence[Line], text: str) -> str:
    shown: list[str] = []
    head = ""
    for line in lines:
        if line.head != head:
            head = line.head
            shown.append(head)
        shown.append(line.text)
    return "\n".join([*shown, "", text]) if shown else text


def _terms(text: str) -> list[str]:
    return words(text.casefold())
