"""Key–value caches that take less memory: quantised to 8 bits, or bounded to the first and the newest tokens.

Such a cache belongs to one sequence. It is not kept between turns and not batched with others, because both need
unchanged keys and values. The engine offers quantised caches. Bounded caches are only measured
(`benchmarks/compression.py`), because a shorter window holds as few tokens, computes a shorter prompt and can be kept.
The memory has what falls out of either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from deltamem_agents.errors import ConfigError
from deltamem_agents.memory.backbones import KeyValueCache, empty_cache

CacheKind: TypeAlias = Literal["full", "quantized"]

SINKS = 4
"""Number of first tokens that a bounded cache also holds, because attention falls back on them (attention sinks)."""


class CompressedCache(KeyValueCache):
    """`tokens`: number of newest tokens held besides the sinks, None for all. `quantized`: hold them in 8 bits."""

    def __init__(self, layers: int, *, tokens: int | None = None, quantized: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.layers[:] = [_Layer(tokens, quantized) for _ in range(layers)]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, _Layer))


@dataclass
class _Held:
    """Keys or values (1, heads, tokens, size): unchanged, or int8 with one scale for each token and head."""

    values: Tensor
    scales: Tensor | None

    @classmethod
    def of(cls, plain: Tensor, quantized: bool) -> _Held:
        if not quantized:
            return cls(plain, None)
        scales = (plain.abs().amax(-1, keepdim=True).float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return cls((plain / scales).round().to(torch.int8), scales)

    def plain(self, dtype: torch.dtype) -> Tensor:
        return self.values if self.scales is None else (self.values * self.scales).to(dtype)

    def then(self, more: _Held) -> _Held:
        return self._each(lambda own, other: torch.cat([own, other], dim=-2), more)

    def without_middle(self, first: int, last: int) -> _Held:
        return self._each(lambda own, _: torch.cat([own[..., :first, :], own[..., -last:, :]], dim=-2), self)

    def _each(self, change: Callable[[Tensor, Tensor], Tensor], other: _Held) -> _Held:
        if self.scales is None or other.scales is None:
            return _Held(change(self.values, other.values), None)
        return _Held(change(self.values, other.values), change(self.scales, other.scales))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)


class _Layer(DynamicLayer):
    """One layer of a `CompressedCache`. Tokens keep their original positions."""

    is_croppable = False

    def __init__(self, tokens: int | None, quantized: bool) -> None:
        super().__init__()
        self._tokens, self._quantized, self._seen = tokens, quantized, 0
        self._held: list[_Held] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        given = (key_states, value_states)
        new = [_Held.of(each, self._quantized) for each in given]
        seen = list(given)
        if self._held:
            seen = [
                torch.cat([held.plain(each.dtype), each], dim=-2) for held, each in zip(self._held, given, strict=True)
            ]
            new = [held.then(more) for held, more in zip(self._held, new, strict=True)]
        if self._tokens is not None and new[0].values.shape[-2] > SINKS + self._tokens:
            new = [each.without_middle(SINKS, self._tokens) for each in new]
        self._held, self._seen = new, self._seen + key_states.shape[-2]
        return seen[0], seen[1]

    def get_seq_length(self) -> int:
        return self._seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset for the mask: the held tokens count as the positions just before the query."""
        held = self._held[0].values.shape[-2] if self._held else 0
        return held + query_length, self._seen - held

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._held)


def cache_maker(kind: CacheKind, config: PreTrainedConfig) -> Callable[[], KeyValueCache]:
    """A function that makes an empty cache of this kind. Raises ConfigError for an unknown kind."""
    if kind not in get_args(CacheKind):
        raise ConfigError(
            f"cache is {kind!r}, expected 'full' or 'quantized'; to hold fewer tokens lower window_tokens: the memory "
            "has what falls out of it"
        )
    layers = int(config.get_text_config(decoder=True).num_hidden_layers)
    return empty_cache if kind == "full" else lambda: CompressedCache(layers, quantized=True)
