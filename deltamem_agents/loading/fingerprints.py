"""What identifies a model, a tokenizer, and a set of weights. Knows nothing about files or names."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLED = 4096
_NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def model_fingerprint(model: nn.Module) -> str:
    """What a memory was made with: sha256 over the architecture's numbers and a sample of the weights.

    Of every parameter up to 4,096 evenly spaced elements enter, by their sign bit. Rounding from one
    floating-point type to another never changes a sign, not even of a weight that underflows, so the
    fingerprint is the same in float32, bfloat16 and float16. A fine-tuned model differs: among hundreds of
    thousands of sampled weights some lie close enough to zero to change sides. Weights stored as integers
    enter as their codes, so a quantised model is another model.

    Take it before attaching a memory. Raises ConfigError for weights that were never materialised.
    """
    config = getattr(model, "config", None)
    config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    described = {key: getattr(config, key, None) for key in ("model_type", *_NUMBERS)}
    digest = hashlib.sha256(b"deltamem model 1\n")
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ConfigError(
                f"parameter {name} is on the meta device and has no values; load the model whole, "
                "without offloading, before taking its fingerprint"
            )
        digest.update(f"\n{tuple(parameter.shape)}".encode())
        digest.update(_bytes_of(_sample(parameter.detach())))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what turns text into ids: vocabulary, merges, normalisation, chat template.

    The padding and truncation a caller may have left switched on are no part of it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: object = sorted(tokenizer.get_vocab().items())
    else:
        parsed = json.loads(backend.to_str())
        rules = {key: value for key, value in parsed.items() if key not in ("padding", "truncation")}
    described = [len(tokenizer), rules, getattr(tokenizer, "chat_template", None)]
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(f"deltamem tokenizer 1\n{text}".encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """sha256 over every byte of the parameters and saved buffers, with names, dtypes and shapes.

    Unlike the fingerprint it depends on the dtype. Equal before and after, it proves that a model was not
    modified.
    """
    digest = hashlib.sha256(b"deltamem weights 1\n")
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes_of(tensor.detach()))
    return digest.hexdigest()


def _sample(weights: Tensor) -> Tensor:
    """Sign bits of evenly spaced elements, or the elements themselves where they are integers."""
    # An odd step visits every column of a matrix whose width is a power of two.
    step = -(-weights.numel() // _SAMPLED) | 1
    chosen = weights.reshape(-1)[::step]
    return torch.signbit(chosen) if chosen.is_floating_point() else chosen


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
