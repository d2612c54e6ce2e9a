"""The fitted matcher (chooses statements) and pointer (copies their tokens) on disk: one file beside the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltamem_agents.errors import AdapterError
from deltamem_agents.memory.matcher import Matcher, Replacing
from deltamem_agents.memory.pointer import STATIC_FEATURES, STEP_FEATURES, Pointer

RECALL_FILE = "recall.safetensors"
FORMAT = 1

_NUMBERS = ("words", "near", "assistant", "newest", "floor", "floor_rise", "margin", "asking_bias", "overview_bias")
_LATER_NUMBERS = ("coverage", "sure", "margin_from", "overview_most", "advice_bias", "advised", "owned_from")
"""Numbers that earlier files lack. The matcher's defaults stand in for them."""

_REPLACING = ("alike", "alike_long", "long", "missing", "behind")
_WORD_LISTS = ("relations", "openers")
_CLASSIFIERS = ("asking", "overview", "advice")
_POINTER = ("hidden", "hidden_bias", "out")
_INTEGERS = ("most", "show_tokens", "show_from")


def save_recall(folder: Path, matcher: Matcher, pointer: Pointer | None) -> None:
    """Write both into `folder`, replacing the file atomically."""
    common = sorted(matcher.commonness.items())
    tensors: dict[str, Tensor] = {
        "matcher.weights": matcher.weights,
        "matcher.common_terms": torch.tensor([term for term, _ in common], dtype=torch.int64),
        "matcher.commonness": torch.tensor([weight for _, weight in common], dtype=torch.float32),
    }
    tensors |= {
        f"matcher.{name}": torch.tensor(sorted(getattr(matcher, name)), dtype=torch.int64) for name in _WORD_LISTS
    }
    judges = {name: getattr(matcher, name) for name in _CLASSIFIERS}
    tensors |= {f"matcher.{name}": judge for name, judge in judges.items() if judge is not None}
    numbers = {name: getattr(matcher, name) for name in (*_NUMBERS, *_LATER_NUMBERS, *_INTEGERS)}
    if matcher.replacing is not None:
        numbers |= {name: getattr(matcher.replacing, name) for name in (*_REPLACING, "alike_owner")}
    for name, each in (("pointer", pointer), ("eager", pointer and pointer.eager)):
        if each is not None:
            tensors |= {f"{name}.{part}": getattr(each, part) for part in _POINTER}
            tensors[f"{name}.out_bias"] = torch.tensor(each.out_bias)
    if pointer is not None:
        tensors["pointer.common"] = torch.tensor(sorted(pointer.common), dtype=torch.int64)
    path = folder / RECALL_FILE
    partial = path.with_suffix(".partial")
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(kept, partial, metadata={"format": str(FORMAT), "numbers": json.dumps(numbers)})
    partial.replace(path)


def load_recall(folder: Path, layers: int, heads: int, rank: int) -> tuple[Matcher, Pointer | None]:
    """The matcher and pointer in `folder`, for an adapter with these numbers of layers and heads and this rank.

    Without a file: a uniform matcher and no pointer.
    Raises AdapterError for a file that is damaged, of a later version, or made for other sizes.
    """
    path = folder / RECALL_FILE
    if not path.is_file():
        return Matcher.uniform(layers, heads), None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != str(FORMAT):
            raise AdapterError(
                f"{path} is of format {metadata.get('format')}, this version reads {FORMAT}; update deltamem-agents"
            )
        matcher, pointer = _from_parts(tensors, json.loads(metadata["numbers"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path} is damaged: {error}; install the adapter again") from error
    _check(path, matcher, pointer, (layers, heads, rank))
    return matcher, pointer


def _from_parts(tensors: dict[str, Tensor], numbers: dict[str, float]) -> tuple[Matcher, Pointer | None]:
    terms, weights = (tensors[f"matcher.{name}"].tolist() for name in ("common_terms", "commonness"))
    matcher = Matcher(
        tensors["matcher.weights"],
        asking=tensors.get("matcher.asking"),
        overview=tensors.get("matcher.overview"),
        advice=tensors.get("matcher.advice"),
        most=int(numbers["most"]),
        show_tokens=int(numbers["show_tokens"]),
        show_from=int(numbers["show_from"]),
        commonness=dict(zip(terms, weights, strict=True)),
        **{name: numbers[name] for name in _NUMBERS},
        coverage=numbers.get("coverage", Matcher.coverage),
        sure=numbers.get("sure", Matcher.sure),
        margin_from=int(numbers.get("margin_from", Matcher.margin_from)),
        owned_from=int(numbers.get("owned_from", Matcher.owned_from)),
        overview_most=int(numbers.get("overview_most", Matcher.overview_most)),
        advice_bias=numbers.get("advice_bias", Matcher.advice_bias),
        advised=numbers.get("advised", Matcher.advised),
        replacing=_replacing(numbers),
        relations=_numbers(tensors, "matcher.relations"),
        openers=_numbers(tensors, "matcher.openers"),
    )
    pointer = _pointer("pointer", tensors)
    return matcher, None if pointer is None else replace(pointer, eager=_pointer("eager", tensors))


def _replacing(numbers: dict[str, float]) -> Replacing | None:
    """The `Replacing` of the matcher; None if the file has none."""
    if "alike" not in numbers:
        return None
    alike, alike_long, long, missing, behind = (numbers[name] for name in _REPLACING)
    alike_owner = numbers.get("alike_owner", Replacing.alike_owner)
    return Replacing(alike, alike_long, alike_owner, int(long), missing, behind)


def _numbers(tensors: dict[str, Tensor], name: str) -> frozenset[int]:
    """The numbers of a list; none if the file lacks it, as earlier files do."""
    return frozenset(tensors.get(name, torch.zeros(0, dtype=torch.int64)).tolist())


def _pointer(name: str, tensors: dict[str, Tensor]) -> Pointer | None:
    """The pointer of that name; None if the file has none."""
    if f"{name}.hidden" not in tensors:
        return None
    hidden, bias, out, out_bias = (tensors[f"{name}.{part}"] for part in (*_POINTER, "out_bias"))
    return Pointer(hidden, bias, out, float(out_bias), _numbers(tensors, f"{name}.common"))


def _check(path: Path, matcher: Matcher, pointer: Pointer | None, geometry: tuple[int, int, int]) -> None:
    layers, heads, _ = geometry
    judges = [judge for name in _CLASSIFIERS if (judge := getattr(matcher, name)) is not None]
    wrong = any(tuple(each.shape) != geometry[: each.ndim] for each in (matcher.weights, *judges))
    features = STATIC_FEATURES + STEP_FEATURES + 2 * layers * heads
    pointers = [each for each in (pointer, pointer and pointer.eager) if each is not None]
    if wrong or any(each.hidden.shape[1] != features for each in pointers):
        raise AdapterError(
            f"{path} was made for an adapter of other (layers, heads, r) than {geometry}; fit it again for this one"
        )
