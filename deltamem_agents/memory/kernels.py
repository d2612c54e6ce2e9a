"""The scan and its gradient as a compiled loop over tokens, for CPU tensors.

Without numba only speed changes; see `jit.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltamem_agents.errors import ConfigError
from deltamem_agents.jit import available, compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# The backward pass needs the state before every token. Storing every sixteenth state and recomputing
# those between them is faster than the memory traffic of storing all.
MARK_EVERY = 16

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def _forward(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    write: Array,
    erase: Array,
    keep: Array,
    reads: Array,
    final: Array,
    marks: Array,
) -> None:
    """Fill `reads`, `final` and `marks`: the states before tokens 0, 16, 32, … An empty `marks` stores none.

    The local state is s[j, i], key dimension first, so that the inner loops run over independent rows.
    """
    sequences, tokens, rank = q.shape
    keeps_marks = marks.shape[1] > 0
    s = np.empty((rank, rank), state.dtype)
    found = np.empty(rank, state.dtype)
    change = np.empty(rank, state.dtype)
    for n in range(sequences):
        for j in range(rank):
            for i in range(rank):
                s[j, i] = state[n, i, j]
        for t in range(tokens):
            if keeps_marks and t % MARK_EVERY == 0:
                marks[n, t // MARK_EVERY] = s
            for i in range(rank):
                reads[n, t, i] = 0
                found[i] = 0
            for j in range(rank):
                for i in range(rank):
                    reads[n, t, i] += s[j, i] * q[n, t, j]
                    found[i] += s[j, i] * k[n, t, j]
            for i in range(rank):
                change[i] = write[n, t, i] * v[n, t, i] - erase[n, t, i] * found[i]
            for j in range(rank):
                for i in range(rank):
                    s[j, i] = keep[n, t, i] * s[j, i] + change[i] * k[n, t, j]
        for j in range(rank):
            for i in range(rank):
                final[n, i, j] = s[j, i]


def _backward(
    q: Array,
    k: Array,
    v: Array,
    write: Array,
    erase: Array,
    keep: Array,
    marks: Array,
    d_reads: Array,
    d_state: Array,
    d_q: Array,
    d_k: Array,
    d_v: Array,
    d_write: Array,
    d_erase: Array,
    d_log_keep: Array,
) -> None:
    """Fill the gradients. `d_state` is the final state's gradient on entry and the initial state's on return.

    Recomputes sixteen steps at a time from a mark, then goes through them backwards. g[j, i] is the gradient of
    the state after the current token, s[j, i] the state before it.
    """
    sequences, tokens, rank = q.shape
    g = np.empty((rank, rank), q.dtype)
    states = np.empty((MARK_EVERY, rank, rank), q.dtype)
    founds = np.empty((MARK_EVERY, rank), q.dtype)
    change = np.empty(rank, q.dtype)
    d_change = np.empty(rank, q.dtype)
    d_found = np.empty(rank, q.dtype)
    d_keep = np.empty(rank, q.dtype)
    for n in range(sequences):
        for j in range(rank):
            for i in range(rank):
                g[j, i] = d_state[n, i, j]
        for mark in range(marks.shape[1] - 1, -1, -1):
            start = mark * MARK_EVERY
            steps = min(MARK_EVERY, tokens - start)
            states[0] = marks[n, mark]
            for step in range(steps):
                t = start + step
                for i in range(rank):
                    founds[step, i] = 0
                for j in range(rank):
                    for i in range(rank):
                        founds[step, i] += states[step, j, i] * k[n, t, j]
                if step + 1 < steps:
                    for i in range(rank):
                        change[i] = write[n, t, i] * v[n, t, i] - erase[n, t, i] * founds[step, i]
                    for j in range(rank):
                        for i in range(rank):
                            states[step + 1, j, i] = keep[n, t, i] * states[step, j, i] + change[i] * k[n, t, j]
            for step in range(steps - 1, -1, -1):
                t = start + step
                s = states[step]
                for i in range(rank):
                    d_change[i] = 0
                    d_keep[i] = 0
                for j in range(rank):
                    for i in range(rank):
                        d_change[i] += g[j, i] * k[n, t, j]
                        d_keep[i] += g[j, i] * s[j, i]
                for i in range(rank):
                    change[i] = write[n, t, i] * v[n, t, i] - erase[n, t, i] * founds[step, i]
                    d_write[n, t, i] = d_change[i] * v[n, t, i]
                    d_v[n, t, i] = d_change[i] * write[n, t, i]
                    d_erase[n, t, i] = -d_change[i] * founds[step, i]
                    d_log_keep[n, t, i] = d_keep[i] * keep[n, t, i]
                    d_found[i] = -erase[n, t, i] * d_change[i]
                for j in range(rank):
                    key, query = k[n, t, j], q[n, t, j]
                    from_key = q.dtype.type(0)
                    from_query = q.dtype.type(0)
                    for i in range(rank):
                        from_key += g[j, i] * change[i] + d_found[i] * s[j, i]
                        from_query += d_reads[n, t, i] * s[j, i]
                    for i in range(rank):
                        g[j, i] = keep[n, t, i] * g[j, i] + d_found[i] * key + d_reads[n, t, i] * query
                    d_k[n, t, j] = from_key
                    d_q[n, t, j] = from_query
        for j in range(rank):
            for i in range(rank):
                d_state[n, i, j] = g[j, i]


def _run(kernel: Callable[..., None], *tensors: Tensor) -> None:
    element = _DTYPES[tensors[0].dtype]
    compiled(kernel, tuple((element, x.ndim) for x in tensors))(*(x.numpy() for x in tensors))


def compiled_scan(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, write: Tensor, erase: Tensor, log_keep: Tensor
) -> tuple[Tensor, Tensor]:
    """`delta_rule.delta_scan` as a compiled loop; all gates (N, T, r). Differentiable once.

    Raises ConfigError if numba is missing or the tensors are not on the CPU.
    """
    if state.device.type != "cpu":
        raise ConfigError(f'form "compiled" runs on the CPU, the state is on {state.device}; use form "auto"')
    if not available():
        raise ConfigError(
            'form "compiled" needs numba, which cannot be imported here or has its compiler turned off; '
            'install deltamem-agents[fast], or use form "auto"'
        )
    inputs = (state, q, k, v, write, erase, log_keep)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        reads, final = _CompiledScan.apply(*inputs)
        return reads, final
    reads, final, _ = _scan_forward(state, q, k, v, write, erase, log_keep.exp(), marks=0)
    return reads, final


def _scan_forward(state: Tensor, q: Tensor, *rest: Tensor, marks: int) -> tuple[Tensor, Tensor, Tensor]:
    reads, final = torch.empty(q.shape, dtype=q.dtype), torch.empty(state.shape, dtype=q.dtype)
    kept = torch.empty(q.shape[0], marks, q.shape[2], q.shape[2], dtype=q.dtype)
    _run(_forward, *(x.detach().contiguous() for x in (state, q, *rest)), reads, final, kept)
    return reads, final, kept


class _CompiledScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, q: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        k, v, write, erase, log_keep = rest
        tokens = tuple(x.detach().contiguous() for x in (q, k, v, write, erase, log_keep.exp()))
        reads, final, marks = _scan_forward(state, *tokens, marks=-(-q.shape[1] // MARK_EVERY))
        ctx.save_for_backward(*tokens, marks)
        return reads, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_reads: Tensor, d_final: Tensor) -> tuple[Tensor, ...]:
        *tokens, marks = ctx.saved_tensors
        d_state = d_final.clone(memory_format=torch.contiguous_format)
        d_tokens = tuple(torch.empty_like(x) for x in tokens)
        _run(_backward, *tokens, marks, d_reads.contiguous(), d_state, *d_tokens)
        return d_state, *d_tokens
