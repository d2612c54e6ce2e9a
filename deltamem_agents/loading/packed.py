"""Prepacked weights: the layout in which oneDNN multiplies float32 matrices fastest on an x86 CPU.

PyTorch's products bring the weights into such a layout in every call, which for a few tokens takes longer than the
product itself. Packed once, weights are multiplied up to twice as fast, and are the same numbers in another order.
"""

from __future__ import annotations

import platform
from copy import deepcopy
from functools import cache
from itertools import count
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOKENS = 16
"""Number of tokens that the layout is chosen for. All products of a model together were faster with it than PyTorch's
own for 1 to 512 tokens."""


class PackedLinear(nn.Linear):
    """A linear layer whose weights can be packed. `weight.to_dense()` gives them back, bit for bit.

    What is saved, hashed or copied are the plain weights. `number`: given by `make_opaque`.
    """

    number: int | None = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def pack(self) -> Self:
        """Packs the weights, which must be float32 and on the CPU."""
        packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), _TOKENS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the input's dtype."""
        if self.number is not None and torch.compiler.is_compiling():
            return opaque(input, self)
        if not self.weight.is_mkldnn:
            return F.linear(input, self.weight, self.bias)
        if input.requires_grad:
            return F.linear(input, self.weight.to_dense(), self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        packed = self.weight.is_mkldnn
        plain.weight = (
            nn.Parameter(self.weight.to_dense(), requires_grad=False) if packed else deepcopy(self.weight, memo)
        )
        plain.bias = deepcopy(self.bias, memo)
        copied = type(self)(plain).train(self.training)
        return copied.pack() if packed else copied

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[f"{prefix}weight"] = self.weight.detach().to_dense()


def pack_weights(model: nn.Module) -> None:
    """Packs the weights of each float32 linear layer on an x86 CPU in place; leaves everything else as it is.

    Embeddings that share their weights with a layer keep them, so that layer takes its size in memory a second time.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and _fits(child):
                setattr(module, name, PackedLinear(child).eval().pack())
            elif isinstance(child, PackedLinear) and _fits(child):
                child.pack()


def _fits(linear: nn.Linear) -> bool:
    weight = linear.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_mkldnn


_numbered: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_numbers = count()


def make_opaque(model: nn.Module) -> None:
    """Lets torch.compile call these layers of `model` without looking inside, where it finds what it cannot trace."""
    _library()
    for module in model.modules():
        if isinstance(module, PackedLinear) and module.number is None:
            module.number = next(_numbers)
            _numbered[module.number] = module


def opaque(input: Tensor, layer: PackedLinear) -> Tensor:
    """`layer.forward(input)` as one operation of a compiled graph."""
    output: Tensor = torch.ops.deltamem.linear(input, layer.number, layer.out_features)
    return output


@cache
def _library() -> torch.library.Library:
    """Registers the operation with torch, which forgets it when the returned object is gone."""

    def linear(input: Tensor, number: int, width: int) -> Tensor:
        return _numbered[number](input)  # type: ignore[no-any-return]

    def shape_of_linear(input: Tensor, number: int, width: int) -> Tensor:
        return input.new_empty(*input.shape[:-1], width)

    library = torch.library.Library("deltamem", "FRAGMENT")
    library.define("linear(Tensor input, int number, int width) -> Tensor")
    library.impl("linear", linear, "CPU")
    torch.library.register_fake("deltamem::linear", shape_of_linear, lib=library)
    return library
