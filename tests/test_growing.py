"""A cache that grows in place equals one that copies, and never modifies tensors that others hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from deltamem_agents.memory import backbones
from deltamem_agents.memory.backbones import GrowingLayer, cache_of


def some(tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 2, tokens, 3), torch.randn(1, 2, tokens, 3)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "LONG", 2)
    monkeypatch.setattr(backbones, "SPARE", 3)


@torch.no_grad()
def test_growing_is_copying_over_prompts_single_tokens_and_cuts() -> None:
    growing, copying = GrowingLayer(), DynamicLayer()
    for tokens in (4, 1, 1, 1, 1, 1, 3, 1, -2, 1, 1, -1, 1):
        for layer, new in zip((growing, copying), [some(max(tokens, 1))] * 2, strict=True):
            if tokens < 0:
                layer.crop(tokens)
            else:
                layer.update(*new)
        assert growing.keys is not None and growing.values is not None
        assert torch.equal(growing.keys, copying.keys) and torch.equal(growing.values, copying.values)
        assert growing.get_seq_length() == copying.get_seq_length()


@torch.no_grad()
def test_tensors_that_were_given_or_cut_are_never_modified() -> None:
    given = some(6)
    (first,), (second,) = (cache_of([(given[0][:, :, :4], given[1][:, :, :4])]).layers for _ in range(2))
    before = [part.clone() for part in given]
    first.update(*some(1))
    held = [part.clone() for part in first.update(*some(1))]
    whole = first.keys, first.values
    first.crop(-1)
    first.update(*some(1))
    second.update(*some(1))
    assert all(map(torch.equal, given, before))
    assert all(map(torch.equal, whole, held))


def test_with_gradients_nothing_is_written_in_place() -> None:
    layer = GrowingLayer()
    keys, values = (part.requires_grad_() for part in some(4))
    layer.update(keys, values)
    for _ in range(2):
        layer.update(*some(1))
    assert layer.keys is not None
    layer.keys.sum().backward()
    assert keys.grad is not None and torch.equal(keys.grad, torch.ones_like(keys))
