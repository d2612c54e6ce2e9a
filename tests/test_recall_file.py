"""Laws of the recall file: loading returns what was saved, or a uniform matcher without a file; damage is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deltamem_agents.errors import AdapterError
from deltamem_agents.memory.matcher import Matcher, Replacing
from deltamem_agents.memory.pointer import STATIC_FEATURES, STEP_FEATURES, Pointer
from deltamem_agents.memory.recall_file import RECALL_FILE, load_recall, save_recall

GEOMETRY = LAYERS, HEADS, RANK = 3, 2, 4
MATCHER = Matcher(
    torch.rand(LAYERS, HEADS),
    newest=0.5,
    asking=torch.rand(LAYERS, HEADS, RANK),
    asking_bias=-0.25,
    overview=torch.rand(LAYERS, HEADS, RANK),
    overview_bias=0.75,
    floor_rise=0.5,
    coverage=1.5,
    sure=7.5,
    margin=0.5,
    margin_from=4,
    owned_from=6,
    overview_most=5,
    most=3,
    commonness={7: 0.5, 2**32 - 1: 0.25},
    advice=torch.rand(LAYERS, HEADS, RANK),
    advice_bias=-0.5,
    advised=1.25,
    replacing=Replacing(alike=0.5, alike_long=0.75, alike_owner=0.25, long=3, missing=0.25, behind=2.0),
    relations=frozenset({5, 2**32 - 1}),
    openers=frozenset({6}),
)
FEATURES = STATIC_FEATURES + STEP_FEATURES + 2 * LAYERS * HEADS
POINTER = Pointer(torch.rand(5, FEATURES), torch.rand(5), torch.rand(5), -2.5, frozenset({3, 9}))
EAGER = Pointer(torch.rand(4, FEATURES), torch.rand(4), torch.rand(4), 1.5)


def test_loading_returns_what_was_saved(tmp_path: Path) -> None:
    save_recall(tmp_path, MATCHER, POINTER)
    matcher, pointer = load_recall(tmp_path, *GEOMETRY)
    assert pointer is not None
    for name in ("weights", "asking", "overview", "advice"):
        assert torch.equal(getattr(matcher, name), getattr(MATCHER, name))
    for name in (
        "words",
        "near",
        "assistant",
        "newest",
        "floor",
        "floor_rise",
        "coverage",
        "sure",
        "margin",
        "margin_from",
        "owned_from",
        "overview_most",
        "most",
        "asking_bias",
        "advice_bias",
        "advised",
        "commonness",
        "replacing",
        "relations",
        "openers",
    ):
        assert getattr(matcher, name) == getattr(MATCHER, name)
    for name in ("hidden", "hidden_bias", "out"):
        assert torch.equal(getattr(pointer, name), getattr(POINTER, name))
    assert (pointer.out_bias, pointer.common, pointer.eager) == (POINTER.out_bias, POINTER.common, None)


def test_a_file_of_an_earlier_version_gets_defaults_for_what_it_lacks(tmp_path: Path) -> None:
    save_recall(tmp_path, MATCHER, POINTER)
    path = tmp_path / RECALL_FILE
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers = json.loads(metadata["numbers"])
    for later in (
        "coverage",
        "sure",
        "margin_from",
        "overview_most",
        "advice_bias",
        "advised",
        "owned_from",
        "alike_owner",
    ):
        del numbers[later]
    for later in ("matcher.advice", "matcher.relations", "matcher.openers"):
        del tensors[later]
    save_file(tensors, path, metadata=metadata | {"numbers": json.dumps(numbers)})
    matcher, _ = load_recall(tmp_path, *GEOMETRY)
    assert matcher.floor_rise == MATCHER.floor_rise
    assert (matcher.coverage, matcher.sure, matcher.margin_from, matcher.overview_most) == (0, math.inf, 0, 8)
    assert (matcher.advice, matcher.relations, matcher.openers, matcher.owned_from) == (
        None,
        frozenset(),
        frozenset(),
        0,
    )
    assert matcher.replacing is not None and matcher.replacing.alike_owner == math.inf


def test_an_eager_pointer_is_saved_with_the_other(tmp_path: Path) -> None:
    save_recall(tmp_path, MATCHER, replace(POINTER, eager=EAGER))
    _, pointer = load_recall(tmp_path, *GEOMETRY)
    assert pointer is not None and pointer.eager is not None
    assert torch.equal(pointer.eager.hidden, EAGER.hidden) and pointer.eager.out_bias == EAGER.out_bias
    assert torch.equal(pointer.hidden, POINTER.hidden)


def test_without_a_file_the_matcher_is_uniform_and_there_is_no_pointer(tmp_path: Path) -> None:
    matcher, pointer = load_recall(tmp_path, *GEOMETRY)
    assert pointer is None and len(matcher.weights.unique()) == 1 and matcher.asking is None


def test_a_matcher_is_saved_without_a_pointer(tmp_path: Path) -> None:
    save_recall(tmp_path, Matcher.uniform(LAYERS, HEADS), None)
    matcher, pointer = load_recall(tmp_path, *GEOMETRY)
    assert pointer is None and torch.equal(matcher.weights, Matcher.uniform(LAYERS, HEADS).weights)


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    save_recall(tmp_path, MATCHER, POINTER)
    path = tmp_path / RECALL_FILE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AdapterError, match=r"recall\.safetensors is damaged"):
        load_recall(tmp_path, *GEOMETRY)


@pytest.mark.parametrize("geometry", [(LAYERS + 1, HEADS, RANK), (LAYERS, HEADS, RANK + 1)])
def test_a_file_for_another_geometry_is_refused(tmp_path: Path, geometry: tuple[int, int, int]) -> None:
    save_recall(tmp_path, MATCHER, POINTER)
    with pytest.raises(AdapterError, match="other \\(layers, heads, r\\)"):
        load_recall(tmp_path, *geometry)
