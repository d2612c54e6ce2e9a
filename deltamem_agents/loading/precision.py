"""What this machine's processor computes fastest: measured once with products like a model's, then kept in a file."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from deltamem_agents import jit
from deltamem_agents.loading.dense_copy import cache_dir
from deltamem_agents.loading.int8 import Int8Linear
from deltamem_agents.loading.packed import pack_weights

PROMPT_TOKENS, REPLY_TOKENS = 128, 64
"""The turn that is weighed: tokens of its prompt that are not cached yet, and tokens of its reply."""

GAIN = 1.25
"""How much faster rounded weights have to be, so that they are worth the rounding."""

_WIDTH = 1024
_BYTES = 2**26
"""Size of the weights that a decoding pass reads, in every precision: more than most caches hold, as a model's are."""

_PROMPT_LAYERS = 4
_FORMAT = 1


@dataclass(frozen=True)
class Precisions:
    """Seconds of a pass through a layer of 1,024 × 1,024: `prompt_…` over 128 tokens, `decode_…` over one.

    "Int8" has weights of 8 bits; see `int8.py`.
    """

    prompt_float32: float
    prompt_bfloat16: float
    decode_float32: float
    decode_bfloat16: float
    decode_int8: float

    def turn(self, dtype: torch.dtype) -> float:
        """Seconds of a whole turn in this precision, as far as it is spent in these layers."""
        if dtype == torch.bfloat16:
            return self.prompt_bfloat16 + REPLY_TOKENS * self.decode_bfloat16
        return self.prompt_float32 + REPLY_TOKENS * self.decode_float32

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 if a turn is faster in it by `GAIN`, else float32."""
        return torch.bfloat16 if self.turn(torch.bfloat16) * GAIN < self.turn(torch.float32) else torch.float32

    def int8_pays(self, dtype: torch.dtype) -> bool:
        """Whether a model of this precision decodes faster with int8 weights, by `GAIN`."""
        own = self.decode_bfloat16 if dtype == torch.bfloat16 else self.decode_float32
        return self.decode_int8 * GAIN < own


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products (AVX512-BF16, AMX).

    Others emulate them: a token may be decoded faster than in float32, but prompts take several times as long.
    """
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@cache
def precisions() -> Precisions:
    """What was measured on this machine, or is measured now, in about a second.

    The file is `precisions.json` in the cache folder. It has an entry for each processor, number of threads and version
    of torch. If it cannot be read or written, each process measures for itself.
    """
    path, machine = cache_dir() / "precisions.json", _machine()
    known = _read(path)
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        return Precisions(**{name: float(value) for name, value in known[machine].items()})
    found = measure()
    _write(path, {**known, machine: asdict(found)})
    return found


def measure() -> Precisions:
    """Times each precision. Of several passes the fastest counts, so that other load on the machine matters little."""
    prompt, one = torch.ones(PROMPT_TOKENS, _WIDTH), torch.ones(1, _WIDTH)
    layer = _layer(torch.float32)
    rounded = _fastest([Int8Linear(layer) for _ in range(_BYTES // _WIDTH**2)], one)
    halves = [_layer(torch.bfloat16) for _ in range(_BYTES // _WIDTH**2 // 2)]
    half_prompt = _fastest(halves[:_PROMPT_LAYERS], prompt.bfloat16(), passes=1)
    half = _fastest(halves, one.bfloat16())
    halves.clear()
    packed = nn.ModuleList(_layer(torch.float32) for _ in range(_BYTES // _WIDTH**2 // 4))
    pack_weights(packed)
    return Precisions(
        prompt_float32=_fastest(list(packed)[:_PROMPT_LAYERS], prompt, passes=2),
        prompt_bfloat16=half_prompt,
        decode_float32=_fastest(list(packed), one),
        decode_bfloat16=half,
        decode_int8=rounded,
    )


def _layer(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=dtype).requires_grad_(False)
    nn.init.constant_(layer.weight, 1 / _WIDTH)
    return layer


@torch.no_grad()
def _fastest(layers: Sequence[nn.Module], x: Tensor, passes: int = 4) -> float:
    """Seconds per layer of the fastest of several passes, after one that warms up."""
    seconds = []
    for _ in range(passes + 1):
        begun = time.perf_counter()
        for layer in layers:
            layer(x)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) / len(layers)


def _machine() -> str:
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    compiled = "numba" if jit.available() else "no numba"
    return f"{_FORMAT}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {compiled}"


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, entries: dict[str, dict[str, float]]) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(entries, file, indent=1)
        os.replace(file.name, path)
