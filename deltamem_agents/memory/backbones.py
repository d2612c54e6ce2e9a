"""The places of attention modules and their projections in each model family.

Each family is an entry of `LAYOUTS`. No other module depends on a model's internals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from deltamem_agents.config import Head
from deltamem_agents.errors import UnsupportedModelError
from deltamem_agents.memory.attention import HEADS, AttentionWidths


@dataclass(frozen=True)
class Layout:
    """Attribute names of one family: `layers` of the decoder, `attention` of a layer, the others of the attention.

    `fused`: how one projection's output holds q, k and v. "split": [q | k | v]; "per_head": [q | k | v] for each head;
    None: three separate projections.
    """

    layers: str = "layers"
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    fused: Literal["split", "per_head"] | None = None


KeyValueCache: TypeAlias = DynamicCache
"""Keys and values of the tokens that a model has processed."""

KeysAndValues: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""Each layer's keys and values, each (rows, heads, tokens, size)."""

_SEPARATE = Layout()
LAYOUTS: Mapping[str, Layout] = {
    "llama": _SEPARATE,
    "mistral": _SEPARATE,
    "qwen2": _SEPARATE,
    "qwen3": _SEPARATE,
    "qwen3_moe": _SEPARATE,
    "smollm3": _SEPARATE,
    "gemma2": _SEPARATE,
    "gemma3_text": _SEPARATE,
    "phi3": Layout(q="qkv_proj", k="qkv_proj", v="qkv_proj", fused="split"),
    "gpt2": Layout("h", "attn", "c_attn", "c_attn", "c_attn", "c_proj", "split"),
    "gpt_neox": Layout(
        attention="attention",
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        fused="per_head",
    ),
}


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a model: the module, its projections, and its sizes."""

    attention: nn.Module
    projections: Mapping[Head, nn.Module]
    widths: AttentionWidths
    layout: Layout
    head_dim: int

    def correct(self, head: Head, output: Tensor, delta: Tensor) -> Tensor:
        """A projection's output with `delta` (…, width of the head) added to its part for q, k or v."""
        return corrected_by(output, self._spread(head, delta, output.shape[-1]))

    def _spread(self, head: Head, delta: Tensor, total: int) -> Tensor:
        """`delta` padded with zeros to a projection's output of width `total`, at the columns of `head`."""
        if self.layout.fused is None:
            return delta
        if self.layout.fused == "split":
            before = {"q": 0, "k": self.widths.q, "v": self.widths.q + self.widths.k}[head]
            return F.pad(delta, (before, total - before - delta.shape[-1]))
        before = "qkv".index(head) * self.head_dim
        by_head = delta.unflatten(-1, (-1, self.head_dim))
        return F.pad(by_head, (before, 2 * self.head_dim - before)).flatten(-2)


def corrected_by(output: Tensor, delta: Tensor) -> Tensor:
    """A module's output (B, T, width) with `delta` added to its last tokens, which may be all of them.

    A shorter `delta` is added in place.
    """
    delta = delta.to(output.dtype)
    if delta.shape[1] == output.shape[1]:
        return output + delta
    output[:, -delta.shape[1] :] += delta
    return output


def find_sites(model: nn.Module) -> tuple[AttentionSite, ...]:
    """Every attention layer of a supported model, in order.

    `model` is a transformers model of any task, its bare decoder, or a wrapper such as peft's that passes
    attributes through.
    Raises UnsupportedModelError naming the family found and those supported.
    """
    supported = ", ".join(sorted(LAYOUTS))
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model; supported are the model types {supported}"
        )
    text_config = config.get_text_config(decoder=True)
    layout = LAYOUTS.get(text_config.model_type)
    if layout is None:
        raise UnsupportedModelError(
            f"model type {text_config.model_type!r} is not supported; supported are {supported}"
        )
    try:
        layers = getattr(_decoder_of(model), layout.layers)
        return tuple(_site(layer, layout, text_config) for layer in layers)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is of type {text_config.model_type!r} but lacks that family's usual modules "
            f"({error}); pass the causal language model as transformers loads it"
        ) from None


def empty_cache() -> KeyValueCache:
    """An empty cache for `with_cache`. Every layer caches all tokens: the model applies its sliding window by masks."""
    cache = KeyValueCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


LONG = 192
"""Number of cached tokens from which appending in place is faster than copying."""

SPARE = 64
"""Number of tokens for which newly allocated keys and values have room."""


class GrowingLayer(DynamicLayer):
    """A cache layer that appends single tokens in place, to tensors with spare room, if no gradient is needed.

    `keys` and `values` are views of these tensors. Tensors that came from outside, or were cut, are never modified.
    """

    _room: tuple[Tensor, Tensor] | None = None
    _shown: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        at = self.get_seq_length()
        if at < LONG or key_states.shape[-2] > 1 or torch.is_grad_enabled():
            self._room = None
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return found
        assert self.keys is not None and self.values is not None
        if self._room is None or self.keys is not self._shown or at >= self._room[0].shape[-2]:
            self._room = _with_room(self.keys), _with_room(self.values)
        keys, values = self._room
        keys.narrow(-2, at, 1).copy_(key_states)
        values.narrow(-2, at, 1).copy_(value_states)
        self.keys, self.values = keys.narrow(-2, 0, at + 1), values.narrow(-2, 0, at + 1)
        self._shown = self.keys
        return self.keys, self.values


def _with_room(held: Tensor) -> Tensor:
    *outer, tokens, size = held.shape
    room = held.new_empty(*outer, tokens + SPARE, size)
    room[..., :tokens, :] = held
    return room


def is_plain(layer: object) -> TypeGuard[DynamicLayer]:
    """Whether a cache's layer holds the unchanged keys and values of all tokens."""
    return type(layer) in (DynamicLayer, GrowingLayer)


def layers_of(cache: KeyValueCache) -> KeysAndValues | None:
    """A cache's keys and values; None for a cache that cannot be truncated."""
    found = []
    for layer in cache.layers:
        if not is_plain(layer) or layer.keys is None or layer.values is None:
            return None
        found.append((layer.keys, layer.values))
    return found


def cache_of(layers: KeysAndValues) -> KeyValueCache:
    """A cache that starts with these keys and values. The given tensors are not modified: appending makes new ones."""
    cache = empty_cache()
    for keys, values in layers:
        layer = GrowingLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def cuts_anywhere(config: PreTrainedConfig) -> bool:
    """Whether a cache can be truncated: a token's keys and values do not depend on how many tokens follow.

    They do if position embeddings are scaled by the total length (dynamic and longrope scaling).
    """
    given = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [one.get("rope_type") for one in (given, *given.values()) if isinstance(one, Mapping)]
    return not any(kind in ("dynamic", "longrope") for kind in kinds)


def with_cache(model: nn.Module, kept: KeyValueCache) -> dict[str, Any]:
    """The arguments that make `model` use the cache `kept` and append to it in place."""
    return {_cache_keyword(type(_decoder_of(model)).forward): kept, "use_cache": True}


@cache
def _cache_keyword(forward: Callable[..., object]) -> str:
    """Depends on the transformers release, and later releases warn about the old name."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def last_place(device: torch.device) -> Tensor:
    """The `logits_to_keep` for logits of the last position only.

    An index tensor copies one hidden state. A plain 1 becomes a slice, after which torch copies the whole output
    matrix for every row.
    """
    return torch.tensor([-1], device=device)


def no_place(device: torch.device) -> Tensor:
    """The `logits_to_keep` for no logits at all."""
    return torch.tensor([], dtype=torch.long, device=device)


def _decoder_of(model: nn.Module) -> nn.Module:
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return decoder


def _site(layer: nn.Module, layout: Layout, config: PreTrainedConfig) -> AttentionSite:
    attention = getattr(layer, layout.attention)
    heads: int = config.num_attention_heads
    hidden: int = config.hidden_size
    head_dim: int = getattr(config, "head_dim", None) or hidden // heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    return AttentionSite(
        attention=attention,
        projections={head: getattr(attention, getattr(layout, head)) for head in HEADS},
        widths=AttentionWidths(hidden, heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, hidden),
        layout=layout,
        head_dim=head_dim,
    )
