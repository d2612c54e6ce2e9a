"""Int8 weights for forward passes with few tokens, as in decoding.

Such a pass spends more time loading weights from memory than computing, and int8 weights are a quarter of the size. A
prompt is computed with the model's own weights: with many tokens the arithmetic takes the time, and they are faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from deltamem_agents import jit
from deltamem_agents.errors import ConfigError
from deltamem_agents.loading.packed import PackedLinear, opaque

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

FEW = 16
"""Maximum number of tokens of one sequence in a pass for which the int8 weights are used, however many sequences."""

_STEP = 16
"""Number of inputs that PyTorch's kernel multiplies at once. It reads past the end of a row that is not a multiple of
it."""

_ARGUMENTS: tuple[jit.Kind, ...] = (("int8", 2), ("float32", 1), ("float32", 2), ("float32", 2))


def _products(codes: Array, scales: Array, rows: Array, products: Array) -> None:
    """Fills `products` (rows, out) with rows (rows, in) times the weights: codes (out, in) times scales (out,).

    Four rows at a time, so that each weight is loaded and converted once for all four.
    """
    count = rows.shape[0]
    for r in range(0, count - 3, 4):
        for o in range(codes.shape[0]):
            first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for i in range(codes.shape[1]):
                code = np.float32(codes[o, i])
                first += code * rows[r, i]
                second += code * rows[r + 1, i]
                third += code * rows[r + 2, i]
                fourth += code * rows[r + 3, i]
            products[r, o] = first * scales[o]
            products[r + 1, o] = second * scales[o]
            products[r + 2, o] = third * scales[o]
            products[r + 3, o] = fourth * scales[o]
    for r in range(count - count % 4, count):
        for o in range(codes.shape[0]):
            total = np.float32(0)
            for i in range(codes.shape[1]):
                total += np.float32(codes[o, i]) * rows[r, i]
            products[r, o] = total * scales[o]


class Int8Linear(PackedLinear):
    """A linear layer with a second, int8 copy of its weights and one scale per output.

    With numba inputs and sums are float32. Without it PyTorch's kernel is used, which rounds inputs, scales and results
    to bfloat16. The result for a row depends on the other rows of a batch by no more than the rounding of the sum.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weights = linear.weight.detach().float()
        scales = (weights.abs().amax(dim=1) / 127).clamp_min(1e-12)
        self._multiply = jit.compiled(_products, _ARGUMENTS) if jit.available() else None
        codes = (weights / scales[:, None]).round().to(torch.int8)
        # What the kernel reads stays as it is when the module is moved to another dtype.
        self._arrays = (codes.numpy(), scales.numpy())
        # Not saved with the model: code that reads or hashes its weights finds only the original ones.
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales if self._multiply else scales.to(torch.bfloat16), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the input's dtype."""
        if self.number is not None and torch.compiler.is_compiling():
            return opaque(input, self)
        # Sequences are not counted, so that one alone is computed with the same weights as in a batch.
        if (input.ndim > 1 and input.shape[-2] > FEW) or input.requires_grad:
            return super().forward(input)
        found = self._product(input.reshape(-1, self.in_features)).to(input.dtype)
        output = found if self.bias is None else found + self.bias
        return output.view(*input.shape[:-1], self.out_features)

    def _product(self, rows: Tensor) -> Tensor:
        if self._multiply is None:
            return torch._weight_int8pack_mm(rows.to(torch.bfloat16), self.codes, self.scales)
        products = np.empty((len(rows), self.out_features), np.float32)
        self._multiply(*self._arrays, rows.detach().float().contiguous().numpy(), products)
        return torch.from_numpy(products)


def rounded_up_to(model: nn.Module) -> int:
    """Maximum number of tokens of a sequence that a model computes with int8 weights; 0 if it has none."""
    return FEW if any(isinstance(module, Int8Linear) for module in model.modules()) else 0


def can_decode_in_int8(model: nn.Module) -> bool:
    """Whether a model is on the CPU and has a linear layer that int8 weights can be made of."""
    on_cpu = {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    return on_cpu and any(map(_fits, model.modules()))


def decode_in_int8(model: nn.Module) -> None:
    """Adds int8 weights to each linear layer of `model`. The original weights keep their names and shapes.

    Raises ConfigError if the model is not on the CPU or has no suitable linear layer.
    """
    places = {parameter.device.type for parameter in model.parameters()}
    if places != {"cpu"}:
        raise ConfigError(
            "decode_weights is 'int8', which is for models on the CPU, and this one is on "
            f"{', '.join(sorted(places))}; leave it out, or give device='cpu'"
        )
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _fits(child):
                setattr(module, name, Int8Linear(child).requires_grad_(False))
                replaced += 1
    if not replaced:
        raise ConfigError(
            "decode_weights is 'int8', and no layer of this model is a torch.nn.Linear with a multiple of "
            f"{_STEP} inputs; leave it out, or give a quantization_config that is made for this model"
        )


def _fits(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.in_features % _STEP == 0
