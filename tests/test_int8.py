"""Laws of decoding with int8 weights: prompts and stored memories are those of the model's own weights."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import QuantoConfig

from deltamem_agents import DeltaMemEngine, jit
from deltamem_agents.errors import ConfigError
from deltamem_agents.loading import load_model, weights_hash
from deltamem_agents.loading.int8 import FEW, Int8Linear, _products, decode_in_int8
from deltamem_agents.loading.packed import pack_weights
from deltamem_agents.types import Message, Sampling
from tiny_folders import Tiny

SHORT = Sampling(max_tokens=6)
needs_numba = pytest.mark.skipif(not jit.available(), reason="numba is not installed")


def opened(tiny: Tiny, store: str | Path = "memory:", **options: Any) -> DeltaMemEngine:
    return DeltaMemEngine.from_pretrained(
        tiny.model, adapter=tiny.adapter, store=store, dtype="float32", progress=False, **options
    )


def layers(width: int = 64, height: int = 24, *, bias: bool = False) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(width, height, bias=bias).requires_grad_(False)
    return plain, Int8Linear(plain)


@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_equal_the_layer_up_to_rounding(bias: bool) -> None:
    plain, rounded = layers(bias=bias)
    x = torch.randn(1, 3, 64)
    found, expected = rounded(x), plain(x)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # Bound: half a step, 1/127 of the largest weight, for each of 64 inputs, plus bfloat16 rounding without numba.
    assert (found - expected).abs().max() < 0.02 * x.norm()
    assert not torch.equal(found, expected)


@pytest.fixture(params=[pytest.param(True, marks=needs_numba), False], ids=["numba", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers made with numba's kernel and with PyTorch's."""
    if not request.param:
        monkeypatch.setattr(jit, "available", lambda: False)


@pytest.mark.parametrize("rows", [1, 2, 7, FEW, 3 * FEW])
def test_each_row_is_computed_alone(kernel: None, rows: int) -> None:
    _, rounded = layers()
    x = torch.randn(rows, 1, 64)
    torch.testing.assert_close(rounded(x), torch.cat([rounded(row[None]) for row in x]), rtol=1e-5, atol=1e-6)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_computes_the_product_with_the_rounded_weights(dtype: torch.dtype) -> None:
    _, rounded = layers(width=80, height=5, bias=True)
    x, weights = torch.randn(3, 2, 80).to(dtype), rounded.codes.float() * rounded.scales[:, None]
    rounded.to(dtype)
    expected = (x.float() @ weights.T).to(dtype) + rounded.bias
    close = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(rounded(x), expected, rtol=close, atol=close)


@pytest.mark.parametrize("count", range(6))
def test_the_kernel_is_the_same_as_plain_python(count: int) -> None:
    codes, scales = np.arange(-6, 6, dtype=np.int8).reshape(3, 4), np.array([0.5, 1, 2], np.float32)
    rows, products = (
        np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32),
        np.zeros((count, 3), np.float32),
    )
    _products(codes, scales, rows, products)
    np.testing.assert_allclose(products, rows @ (codes * scales[:, None]).T, rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_also_packed_is_saved_and_copied_as_before(kernel: None) -> None:
    plain, rounded = layers(bias=True)
    few, many = torch.randn(1, 3, 64), torch.randn(1, FEW + 1, 64)
    model = nn.Sequential(rounded)
    before = rounded(few), rounded(many)
    pack_weights(model)
    for layer in (rounded, deepcopy(rounded)):
        torch.testing.assert_close((layer(few), layer(many)), before, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.state_dict()["weight"], plain.weight)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight"]


def test_many_rows_use_the_layers_own_weights() -> None:
    plain, rounded = layers()
    x = torch.randn(1, FEW + 1, 64)
    assert torch.equal(rounded(x), plain(x))


def test_the_models_weights_and_names_do_not_change(tiny: Tiny) -> None:
    plain = load_model(tiny.model, dtype="float32", progress=False)
    rounded = load_model(tiny.model, dtype="float32", decode_weights="int8", progress=False)
    assert any(isinstance(module, Int8Linear) for module in rounded.model.modules())
    assert weights_hash(rounded.model) == weights_hash(plain.model)
    assert rounded.model_fingerprint == plain.model_fingerprint


def test_a_memory_opens_with_and_without_int8_weights(tiny: Tiny, tmp_path: Path) -> None:
    path, asked = tmp_path / "memory.sqlite", [Message("user", "What is my name?")]
    for first, then in ((None, "int8"), ("int8", None)):
        agent = f"told with {first}"
        with opened(tiny, path, decode_weights=first) as engine:
            engine.run_turn(agent, [Message("user", "My name is Ada.")], sampling=SHORT)
        with opened(tiny, path, decode_weights=then) as engine:
            assert engine.run_turn(agent, asked, sampling=SHORT).facts.tokens_read
            assert len(list(engine.store.log(agent))) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decode_weights": "int4"}, "decode_weights is 'int4'; expected 'int8', 'auto', or None"),
        ({"decode_weights": "int8", "quantization_config": QuantoConfig()}, "each rounds the weights; give one"),
    ],
)
def test_invalid_options_are_refused_by_name(tiny: Tiny, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(tiny, **options)


def test_a_model_without_a_supported_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no layer of this model is a torch\.nn\.Linear with a multiple of 16"):
        decode_in_int8(nn.Sequential(nn.Linear(24, 24)))
    with pytest.raises(ConfigError, match="which is for models on the CPU, and this one is on meta"):
        decode_in_int8(nn.Sequential(nn.Linear(16, 16, device="meta")))
