"""Laws of prepacked weights: the same numbers in another order, multiplied to the same result up to rounding."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deltamem_agents import DeltaMemEngine
from deltamem_agents.loading import load_model, pack_weights, weights_hash
from deltamem_agents.loading.packed import PackedLinear
from deltamem_agents.types import Message, Sampling
from tiny_folders import Tiny

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.cpu.get_capabilities().get("architecture") == "aarch64",
    reason="weights are packed where oneDNN multiplies them, on x86",
)


def packed(layer: nn.Module) -> nn.Module:
    holder = nn.Sequential(layer)
    pack_weights(holder)
    return holder[0]


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 3), st.integers(0, 40), st.booleans(), st.integers(0, 99))
def test_a_packed_layer_computes_the_same(
    width: int, height: int, rows: int, tokens: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = nn.Linear(width, height, bias=bias).requires_grad_(False)
    weights = plain.weight.clone()
    found = packed(plain)
    assert isinstance(found, PackedLinear)
    x = torch.randn(rows, tokens, width)
    torch.testing.assert_close(found(x), plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.weight.to_dense(), weights)
    assert found.weight.shape == weights.shape


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_saved_and_copied_are_the_plain_weights(bias: bool) -> None:
    plain = nn.Linear(12, 7, bias=bias).requires_grad_(False)
    expected, x = {name: value.clone() for name, value in plain.state_dict().items()}, torch.randn(3, 12)
    found = packed(plain)
    saved = found.state_dict()
    assert saved.keys() == expected.keys() and all(torch.equal(saved[name], value) for name, value in expected.items())
    twin = deepcopy(found)
    assert isinstance(twin, PackedLinear) and torch.equal(twin(x), found(x))


def test_packing_does_not_change_the_hash_of_a_model(tiny: Tiny) -> None:
    plain = load_model(tiny.model, dtype="float32", progress=False)
    before = weights_hash(plain.model)
    pack_weights(plain.model)
    assert any(isinstance(module, PackedLinear) for module in plain.model.modules())
    assert weights_hash(plain.model) == before


def test_a_gradient_goes_through_a_packed_layer() -> None:
    plain = nn.Linear(8, 5).requires_grad_(False)
    found, x = packed(plain), torch.randn(3, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(plain(x).sum(), x)
    (gradient,) = torch.autograd.grad(found(x).sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 5, dtype=torch.bfloat16), nn.Linear(8, 5, device="meta"), nn.Embedding(8, 5)]
)
def test_everything_else_is_left_as_it_is(layer: nn.Module) -> None:
    assert packed(layer) is layer


def test_an_engine_opened_by_name_is_packed_and_replies_as_one_that_is_not(tiny: Tiny) -> None:
    messages, sampling = [Message("user", "My name is Ada. What is my name?")], Sampling(max_tokens=8, temperature=0)
    loaded = load_model(tiny.model, dtype="float32", progress=False)
    with (
        DeltaMemEngine.from_model(loaded.model, loaded.tokenizer, adapter=tiny.adapter, store="memory:") as plain,
        DeltaMemEngine.from_pretrained(
            tiny.model, adapter=tiny.adapter, store="memory:", dtype="float32", progress=False
        ) as engine,
    ):
        assert not any(isinstance(module, PackedLinear) for module in plain.model.modules())
        assert any(isinstance(module, PackedLinear) for module in engine.model.modules())
        one, other = (each.run_turn("ada", messages, sampling=sampling) for each in (plain, engine))
        assert one.message == other.message
        assert loaded.model_fingerprint == engine.fingerprint.model
