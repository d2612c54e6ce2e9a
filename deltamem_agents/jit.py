"""Loops that numba compiles, for CPU arrays. numba is optional and imported on first use.

Kernels are plain Python until numba compiles them, so tests can run them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

Kind: TypeAlias = tuple[str, int]
"""An array argument: its dtype's name and its number of dimensions. Arrays are contiguous."""

# Allow reordered and fused sums, so that the loops vectorise. Infinities and NaNs keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}


def available() -> bool:
    """Whether loops can be compiled here. The first call imports numba."""
    return _numba() is not None


@cache
def _numba() -> Any | None:
    try:
        numba: Any = import_module("numba")
    except (ImportError, OSError):
        return None
    return None if numba.config.DISABLE_JIT else numba


@cache
def compiled(kernel: Callable[..., None], arguments: tuple[Kind, ...]) -> Callable[..., None]:
    """The kernel compiled for such arguments; loaded from disk if cached there. Only where `available()`."""
    numba = _numba()
    assert numba is not None
    signature = numba.void(*(numba.types.Array(getattr(numba, element), ndim, "C") for element, ndim in arguments))
    found: Callable[..., None]
    try:
        found = numba.njit(signature, nogil=True, fastmath=_FASTMATH, cache=True)(kernel)
    except Exception:
        # The on-disk cache has no folder, no space or a damaged file: compile for this process only.
        # If the kernel itself failed, it fails again here.
        found = numba.njit(signature, nogil=True, fastmath=_FASTMATH)(kernel)
    return found
