"""Fingerprints of models, tokenizers and weights. They do not depend on files or names."""

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
    """Identifies the model that made a memory: sha256 over the architecture's sizes and a sample of the weights.

    The sample is the sign bits of up to 4,096 evenly spaced elements of every parameter. Rounding to another
    floating-point type never changes a sign, not even of a weight that underflows, so the fingerprint is the same in
    float32, bfloat16 and float16. A fine-tuned model has another fingerprint, because some of the hundreds of thousands
    of sampled weights are close enough to zero to change sign. For weights stored as integers, the integers are
    sampled, so a quantised model is a different model.

    Compute it before attaching a memory. Raises ConfigError for weights on the meta device, which have no values.
    """
    config = getattr(model, "config", None)
    config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    described = {key: getattr(config, key, None) for key in ("model_type", *_NUMBERS)}
    digest = hashlib.sha256(b"deltamem model 1\n")
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ConfigError(
                f"parameter {name} is on the meta device and has no values; load the complete model, "
                "without offloading, before computing its fingerprint"
            )
        digest.update(f"\n{tuple(parameter.shape)}".encode())
        digest.update(_bytes_of(_sample(parameter.detach())))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over everything that turns text into ids: vocabulary, merges, normalisation, chat template.

    Padding and truncation settings are left out, because a caller may have changed them.
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

    Unlike the fingerprint it depends on the dtype. Equal hashes before and after prove that a model was not modified.
    """
    digest = hashlib.sha256(b"deltamem weights 1\n")
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes_of(tensor.detach()))
    return digest.hexdigest()


def _sample(weights: Tensor) -> Tensor:
    """Sign bits of evenly spaced elements, or the elements themselves if they are integers."""
    # An odd step visits every column of a matrix whose width is a power of two.
    step = -(-weights.numel() // _SAMPLED) | 1
    chosen = weights.reshape(-1)[::step]
    return torch.signbit(chosen) if chosen.is_floating_point() else chosen


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
