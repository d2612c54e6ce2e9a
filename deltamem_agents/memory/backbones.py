"""Where each model family keeps its attention and that attention's projections.

A family is a row of `LAYOUTS`. Nothing else in the package knows a model's inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

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
    """One family: `layers` is an attribute of the decoder, `attention` of a layer, the rest of the attention.

    `fused` tells how one projection's output holds q, k and v: "split" as [q | k | v], "per_head" as
    [q | k | v] again for every head, None when each has a projection of its own.
    """

    layers: str = "layers"
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    fused: Literal["split", "per_head"] | None = None


KeyValueCache: TypeAlias = DynamicCache
"""Keys and values of the tokens that a model has read."""

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
        """The output of the projection of q, k or v with `delta` (…, width of the head) added to that part."""
        return output + self._spread(head, delta.to(output.dtype), output.shape[-1])

    def _spread(self, head: Head, delta: Tensor, total: int) -> Tensor:
        """`delta` where a projection that is `total` wide holds `head`, zero elsewhere."""
        if self.layout.fused is None:
            return delta
        if self.layout.fused == "split":
            before = {"q": 0, "k": self.widths.q, "v": self.widths.q + self.widths.k}[head]
            return F.pad(delta, (before, total - before - delta.shape[-1]))
        before = "qkv".index(head) * self.head_dim
        by_head = delta.unflatten(-1, (-1, self.head_dim))
        return F.pad(by_head, (before, 2 * self.head_dim - before)).flatten(-2)


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
    """Keys and values of no token, for `with_cache`. Full attention in every layer: a model masks its own window."""
    return KeyValueCache()


def layers_of(cache: KeyValueCache) -> list[tuple[Tensor, Tensor]] | None:
    """Each layer's keys and values (batch, heads, tokens, size); None for a cache that cannot be cut shorter."""
    found = []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            return None
        found.append((layer.keys, layer.values))
    return found


def cache_of(layers: Sequence[tuple[Tensor, Tensor]]) -> KeyValueCache:
    """A cache that begins with these keys and values. They stay as they are: it makes longer ones of them."""
    cache = empty_cache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def cuts_anywhere(config: PreTrainedConfig) -> bool:
    """Whether a token's keys and values are the same however many tokens follow, so that a cache can be cut.

    They are not where positions are scaled by the length of the whole.
    """
    given = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [one.get("rope_type") for one in (given, *given.values()) if isinstance(one, Mapping)]
    return not any(kind in ("dynamic", "longrope") for kind in kinds)


def with_cache(model: nn.Module, kept: KeyValueCache) -> dict[str, Any]:
    """The arguments that make `model` read its keys and values from `kept`, and add to them in place."""
    # Releases of transformers differ, and the later ones warn of the earlier name.
    named = inspect.signature(type(_decoder_of(model)).forward).parameters
    return {"cache" if "cache" in named else "past_key_values": kept, "use_cache": True}


def last_place(device: torch.device) -> Tensor:
    """What makes a model compute logits for the last position only.

    As an index, which copies one hidden state: behind the slice that a plain 1 stands for, torch copies the whole
    output matrix once for every row.
    """
    return torch.tensor([-1], device=device)


def no_place(device: torch.device) -> Tensor:
    """What makes a model compute no logits."""
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
