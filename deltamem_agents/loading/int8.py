"""Int8 weights for forward passes with few tokens, as in decoding.

Such a pass spends more time loading weights from memory than computing, and int8 weights are a quarter of the size. A
prompt is computed with the model's own weights: with many tokens the arithmetic takes the time, and they are faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltamem_agents.errors import ConfigError

FEW = 16
"""Maximum number of tokens of one sequence in a pass for which the int8 weights are used, however many sequences."""

_STEP = 16
"""Number of inputs that the kernel multiplies at once. It reads past the end of a row that is not a multiple of it."""


class Int8Linear(nn.Linear):
    """A linear layer with a second, int8 copy of its weights and one scale per output.

    PyTorch's kernel multiplies bfloat16 inputs and rounds its result to bfloat16. Each row is computed separately, so
    it does not depend on the other rows of a batch.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        weights = linear.weight.detach().float()
        scales = (weights.abs().amax(dim=1) / 127).clamp_min(1e-12)
        # Not saved with the model: code that reads or hashes its weights finds only the original ones.
        self.register_buffer("codes", (weights / scales[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scales", scales.to(torch.bfloat16), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the input's dtype."""
        # Sequences are not counted, so that one alone is computed with the same weights as in a batch.
        if (input.ndim > 1 and input.shape[-2] > FEW) or input.requires_grad:
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        found = torch._weight_int8pack_mm(rows.to(torch.bfloat16), self.codes, self.scales).to(input.dtype)
        output = found if self.bias is None else found + self.bias
        return output.view(*input.shape[:-1], self.out_features)


def rounded_up_to(model: nn.Module) -> int:
    """Maximum number of tokens of a sequence that a model computes with int8 weights; 0 if it has none."""
    return FEW if any(isinstance(module, Int8Linear) for module in model.modules()) else 0


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
            if type(child) is nn.Linear and child.in_features % _STEP == 0:
                setattr(module, name, Int8Linear(child).requires_grad_(False))
                replaced += 1
    if not replaced:
        raise ConfigError(
            "decode_weights is 'int8', and no layer of this model is a torch.nn.Linear with a multiple of "
            f"{_STEP} inputs; leave it out, or give a quantization_config that is made for this model"
        )
