"""Loads a frozen model, its tokenizer and their fingerprints by the model's name.

A name is the embedded model's alias, a local folder, a .gguf file or a Hub id. A .gguf is converted once to ordinary
weights in the cache folder (the dense copy) and opened from there afterwards. Nothing is downloaded unless a caller
names a model that has to be.
"""

from deltamem_agents.loading.adapters import adapter_folder, shipped_adapters, shipped_presets
from deltamem_agents.loading.dense_copy import CACHE_VARIABLE, cache_dir
from deltamem_agents.loading.embedded import EMBEDDED_MODEL, embedded_copy, installed_gguf
from deltamem_agents.loading.fingerprints import model_fingerprint, tokenizer_fingerprint, weights_hash
from deltamem_agents.loading.models import (
    DecodeWeights,
    LoadedModel,
    ModelObject,
    ModelOptions,
    TokenizerObject,
    default_dtype,
    load_model,
)
from deltamem_agents.loading.packed import make_opaque, pack_weights
from deltamem_agents.loading.precision import Precisions, precisions

__all__ = [
    "CACHE_VARIABLE",
    "EMBEDDED_MODEL",
    "DecodeWeights",
    "LoadedModel",
    "ModelObject",
    "ModelOptions",
    "Precisions",
    "TokenizerObject",
    "adapter_folder",
    "cache_dir",
    "default_dtype",
    "embedded_copy",
    "installed_gguf",
    "load_model",
    "make_opaque",
    "model_fingerprint",
    "pack_weights",
    "precisions",
    "shipped_adapters",
    "shipped_presets",
    "tokenizer_fingerprint",
    "weights_hash",
]
