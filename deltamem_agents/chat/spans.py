"""Finds each message's content in the text that a chat template renders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deltamem_agents.errors import UnsupportedModelError


@dataclass(frozen=True)
class Located:
    """Rendered text with the (start, end) of each content, None for an empty content.

    `faithful`: False if the template changed contents in a way that could not be followed. Then the unchanged contents
    were inserted where the template puts contents.
    """

    text: str
    spans: tuple[tuple[int, int] | None, ...]
    faithful: bool


def locate(render: Callable[[Sequence[str]], str], contents: Sequence[str]) -> Located:
    """Renders a conversation and finds its contents.

    `render`: returns the template's text for a list of contents, with everything else fixed. It is called with marks in
    place of contents to find the scaffolding (the template's own text), then with the contents. Raises
    UnsupportedModelError if the template drops, repeats or reorders contents.
    """
    stem = unused_mark(contents)
    marks = [f"{stem}{index}z" if content else "" for index, content in enumerate(contents)]
    scaffold = _split(render(marks), marks)
    text = render(contents)
    spans = _follow(render, text, contents, marks, scaffold)
    if spans is not None:
        return Located(text, tuple(spans), True)
    return _assemble(contents, scaffold)


def unused_mark(texts: Sequence[str]) -> str:
    """A mark of letters and digits that occurs in none of the texts and is unchanged by trimming and JSON."""
    number = 0
    while any(f"zq{number}x" in text for text in texts):
        number += 1
    return f"zq{number}x"


def _split(skeleton: str, marks: Sequence[str]) -> list[str]:
    """The text before, between and after the marks."""
    scaffold = []
    cursor = 0
    for index, mark in enumerate(marks):
        if not mark:
            continue
        at = skeleton.find(mark, cursor)
        if at < 0 or skeleton.count(mark) != 1:
            raise UnsupportedModelError(
                f"the chat template drops, repeats or moves the content of message {index}; "
                "expected each content once and in order. Use a tokenizer with a simpler chat_template"
            )
        scaffold.append(skeleton[cursor:at])
        cursor = at + len(mark)
    return [*scaffold, skeleton[cursor:]]


def _follow(
    render: Callable[[Sequence[str]], str],
    text: str,
    contents: Sequence[str],
    marks: Sequence[str],
    scaffold: Sequence[str],
) -> list[tuple[int, int] | None] | None:
    """Finds the contents by following the scaffolding through the text. None if that fails before the end."""
    spans: list[tuple[int, int] | None] = [None] * len(contents)
    pieces = iter(scaffold)
    before = next(pieces)
    cursor = 0
    for index, content in enumerate(contents):
        if not content:
            continue
        behind = next(pieces)
        start = cursor + len(before)
        known = (form for form in _forms(content) if text.startswith(form + behind, start))
        form = next(known, None) if text.startswith(before, cursor) else None
        span = (start, start + len(form)) if form is not None else _changed(render, text, contents, marks, index)
        if span[0] < cursor:
            return None
        spans[index] = span
        cursor = span[1]
        before = behind
    return spans if text[cursor:] == before else None


def _forms(content: str) -> Iterator[str]:
    """Common forms of a content in a template: unchanged, trimmed, or without the reasoning before the answer."""
    yield content
    yield content.strip()
    yield content.rpartition("</think>")[2].lstrip("\n")


def _changed(
    render: Callable[[Sequence[str]], str], text: str, contents: Sequence[str], marks: Sequence[str], index: int
) -> tuple[int, int]:
    """The part of the text that changes when only this content is replaced by its mark."""
    other = render([*contents[:index], marks[index], *contents[index + 1 :]])
    ahead, _, behind = other.partition(marks[index])
    start = shared_length(ahead, text)
    end = len(text) - shared_length(behind[::-1], text[::-1])
    return start, max(start, end)


def shared_length(first: str, second: str) -> int:
    """Length of the common beginning of two texts."""
    differing = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


def _assemble(contents: Sequence[str], scaffold: Sequence[str]) -> Located:
    pieces = iter(scaffold)
    text = next(pieces)
    spans: list[tuple[int, int] | None] = []
    for content in contents:
        spans.append((len(text), len(text) + len(content)) if content else None)
        text += content + (next(pieces) if content else "")
    return Located(text, tuple(spans), False)
