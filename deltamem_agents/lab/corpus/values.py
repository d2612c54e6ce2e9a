"""Lists of values by kind.

`word_values` are mostly single words. `COMPOSED_VALUES` are numbers, dates, times and values of several words, composed
of parts; there are thousands of each kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from typing import Literal, TypeAlias

from deltamem_agents.lab.corpus.splits import Split, split_values
from deltamem_agents.lab.corpus.tables import corpus_table

ValueKind: TypeAlias = Literal["word", "number", "date", "time", "phrase"]


def word_values() -> Mapping[str, tuple[str, ...]]:
    """Word lists by name."""
    found: Mapping[str, tuple[str, ...]] = corpus_table("word_values")
    return found


def _parts() -> Mapping[str, tuple[str, ...]]:
    """The parts of composed values."""
    found: Mapping[str, tuple[str, ...]] = corpus_table("value_parts")
    return found


def _joined(*parts: Iterable[str]) -> tuple[str, ...]:
    """Every combination of the parts, joined by spaces."""
    return tuple(" ".join(combination) for combination in product(*parts))


def _titled(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word.title() for word in words)


@cache
def composed_values(name: str) -> tuple[str, ...]:
    """All values of one of the COMPOSED_VALUES lists."""
    parts = _parts()
    looks, sights = _titled(parts["looks"]), _titled(parts["sights"])
    match name:
        case "age":
            return tuple(str(years) for years in range(11, 100))
        case "number":
            return tuple(str(number) for number in range(10, 1000))
        case "code":
            return tuple(str(code) for code in range(1000, 10_000))
        case "date":
            months = word_values()["month"][:12]  # The rest of the list is "early May", "summer" and similar.
            long = {"April": 30, "June": 30, "September": 30, "November": 30, "February": 28}
            return tuple(f"{day} {month}" for month in months for day in range(1, long.get(month, 31) + 1))
        case "time":
            return tuple(f"{hour}:{minute:02d}" for hour in range(1, 24) for minute in range(60))
        case "full name":
            return _joined(word_values()["person"][::2], parts["last_names"])
        case "restaurant":
            return (*_joined(looks, sights), *_joined(looks, sights, parts["houses"]))
        case "title":
            return (
                *_joined(("The",), looks, sights),
                *(f"The {one} and the {two}" for one in sights for two in sights if one != two),
            )
        case "thing":
            return _joined(parts["styles"], parts["goods"])
        case "address":
            return _joined([str(number) for number in range(2, 100, 3)], sights, parts["roads"])
    raise KeyError(name)


COMPOSED_VALUES: Mapping[str, ValueKind] = {
    "age": "number",
    "number": "number",
    "code": "number",
    "date": "date",
    "time": "time",
    "full name": "phrase",
    "restaurant": "phrase",
    "title": "phrase",
    "thing": "phrase",
    "address": "phrase",
}


def kind_of(name: str) -> ValueKind:
    """The kind of a list's values. Word lists, and "word" for any word, have the kind "word"."""
    return COMPOSED_VALUES.get(name, "word")


@cache
def values_of(name: str, split: Split) -> tuple[str, ...]:
    """The values of a list that belong to the split."""
    words = word_values()
    values = words[name] if name in words else composed_values(name)
    return split_values(values, split)
