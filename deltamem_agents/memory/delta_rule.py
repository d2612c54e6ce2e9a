"""The gated delta rule: a batch of small matrices read and rewritten token by token.

    read_t = S_{t-1} q_t                                                       before the write of the same token
    S_t    = Diag(λ_t) S_{t-1} - Diag(e_t) (S_{t-1} k_t) k_tᵀ + Diag(w_t) v_t k_tᵀ

Row i of S is a value dimension, column j a key dimension. Rows do not depend on each other. `_step` is that
formula; the chunked and the compiled form are tested against it. docs/maths.md derives them.
This module knows nothing about models, tokens or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from deltamem_agents import jit
from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory import kernels

UpdateMode: TypeAlias = Literal["standard", "lambda_outside", "no_lambda"]
ScanForm: TypeAlias = Literal["auto", "loop", "chunked", "compiled"]

UPDATE_MODES: tuple[UpdateMode, ...] = ("standard", "lambda_outside", "no_lambda")
SCAN_FORMS: tuple[ScanForm, ...] = ("auto", "loop", "chunked", "compiled")

CHUNK = 16

# The chunked form makes fewer torch calls but does more arithmetic. The plain loop is faster for up to
# LOOP_TOKENS tokens, and on a CPU for more than LOOP_ROWS_ON_CPU state rows; benchmarks/scan.py measures it.
LOOP_TOKENS = 8
LOOP_ROWS_ON_CPU = 128

# The chunked form holds several (rows, chunk, chunk) tensors. Longer sequences are split into spans of
# SPAN tokens, so that memory use does not grow with their length.
SPAN = 64 * CHUNK


@dataclass(frozen=True, eq=False)
class Gates:
    """How strongly each token writes, erases and keeps each state row.

    All float32 (float64 in checks), shape (..., T, r), or (..., T, 1) for one gate per state.
    """

    write: Tensor
    erase: Tensor
    log_keep: Tensor
    """log λ, at most 0."""


def floored_gate(logits: Tensor, floor: float) -> Tensor:
    """Sigmoid gates with a floor: values below `floor` become exactly 0, the others are rescaled to 0..1.

    A closed gate is exactly 0, so its tokens have no effect on the state, however many there are. (A separate keep gate
    has no floor and still lets the state fade.) The gradient is that of the plain sigmoid (straight-through);
    otherwise a closed gate could never open again.
    """
    gate = logits.sigmoid()
    if floor == 0:
        return gate
    hard = ((gate - floor) / (1 - floor)).clamp_min(0)
    return hard.detach() + gate - gate.detach() if gate.requires_grad else hard


def update_gates(
    beta_logits: Tensor,
    lambda_logits: Tensor | None,
    erase_logits: Tensor | None = None,
    *,
    mode: UpdateMode,
    writable: Tensor,
    floor: float = 0.0,
) -> Gates:
    """Gates for every variant of the update, computed from the outputs of the gate projections.

    `beta_logits`, `lambda_logits`, `erase_logits`: (..., T, r), or (..., T, 1) for one gate per state. Without
    `lambda_logits` the keep gate is λ = 1 - β. With `erase_logits` a separate gate scales the erase term.
    `floor`: floor of the write gate; see `floored_gate`.
    `writable`: bool (..., T). A token that is not writable leaves the state as it is, bit for bit.
    Raises ConfigError for an unknown mode, StateError for shapes that do not fit.
    """
    if mode not in UPDATE_MODES:
        raise ConfigError(f"state_update_mode is {mode!r}, expected one of {', '.join(UPDATE_MODES)}")
    _check_gate_shapes(writable, beta_logits, lambda_logits=lambda_logits, erase_logits=erase_logits)
    # In half precision 1 - β rounds to 1 for small β, and the memory would never fade.
    beta_logits = _at_least_float32(beta_logits)
    beta = floored_gate(beta_logits, floor)
    if mode == "no_lambda":
        log_keep = torch.zeros_like(beta)
    elif lambda_logits is None:
        log_keep = F.logsigmoid(-beta_logits) if floor == 0 else torch.log1p(-beta.clamp_max(1 - 1e-7))
    else:
        log_keep = F.logsigmoid(_at_least_float32(lambda_logits))
    erase = log_keep.exp() * beta if mode == "lambda_outside" else beta
    if erase_logits is not None:
        erase = erase * _at_least_float32(erase_logits).sigmoid()
    frozen = ~writable.unsqueeze(-1)
    return Gates(beta.masked_fill(frozen, 0), erase.masked_fill(frozen, 0), log_keep.masked_fill(frozen, 0))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_gate_shapes(writable: Tensor, beta_logits: Tensor, **others: Tensor | None) -> None:
    if writable.dtype != torch.bool or writable.shape != beta_logits.shape[:-1]:
        raise StateError(
            f"writable is {writable.dtype} of shape {tuple(writable.shape)}, expected bool of shape "
            f"{tuple(beta_logits.shape[:-1])}, one entry per token of the gate logits"
        )
    for name, logits in others.items():
        if logits is not None and logits.shape[:-1] != beta_logits.shape[:-1]:
            raise StateError(
                f"{name} has shape {tuple(logits.shape)}, expected the tokens of beta_logits, "
                f"{tuple(beta_logits.shape)}"
            )


def delta_scan(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Gates, *, form: ScanForm = "auto"
) -> tuple[Tensor, Tensor]:
    """For each token in order, read the state and then write the token; return all reads and the final state.

    `state`: (N, r, r) float32. `q`, `k`, `v`: (N, T, r) float32. Each gate: (N, T, r) or (N, T, 1).
    Returns reads (N, T, r) and the new state (N, r, r); no input is modified. All inputs may be float64 instead,
    for checks. Every form is differentiable once; "loop" and "chunked" have higher-order gradients too.
    `form`: anything but "auto" is for tests and benchmarks.
    Raises ConfigError for an unknown form or "compiled" where it cannot run, StateError for shapes,
    types or devices that do not fit.
    """
    if form not in SCAN_FORMS:
        raise ConfigError(f"form is {form!r}, expected one of {', '.join(SCAN_FORMS)}")
    _check_scan(state, q, k, v, gates)
    tokens = q.shape[1]
    if tokens == 0:
        return state.new_zeros(q.shape), state.clone()
    if form == "auto":
        form = _best_form(state, tokens)
    write, erase, log_keep = (gate.expand_as(q) for gate in (gates.write, gates.erase, gates.log_keep))
    scan = {"loop": _loop, "chunked": _chunked, "compiled": kernels.compiled_scan}[form]
    return scan(state, q, k, v, write, erase, log_keep)


def _best_form(state: Tensor, tokens: int) -> ScanForm:
    on_cpu = state.device.type == "cpu"
    if tokens > 1 and on_cpu and state.dtype == torch.float32 and jit.available():
        return "compiled"
    rows = state.shape[0] * state.shape[1]
    return "loop" if tokens <= LOOP_TOKENS or (on_cpu and rows > LOOP_ROWS_ON_CPU) else "chunked"


def _step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, write: Tensor, erase: Tensor, log_keep: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: state (N, r, r), everything else (N, r)."""
    # Products and sums rather than matmul: autocast would run a matmul in half precision.
    read = (state * q.unsqueeze(-2)).sum(-1)
    found = (state * k.unsqueeze(-2)).sum(-1)
    change = write * v - erase * found
    return read, log_keep.exp().unsqueeze(-1) * state + change.unsqueeze(-1) * k.unsqueeze(-2)


def _loop(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, write: Tensor, erase: Tensor, log_keep: Tensor
) -> tuple[Tensor, Tensor]:
    reads = []
    for token in zip(*(x.unbind(1) for x in (q, k, v, write, erase, log_keep)), strict=True):
        read, state = _step(state, *token)
        reads.append(read)
    return torch.stack(reads, 1), state


def _chunked(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, write: Tensor, erase: Tensor, log_keep: Tensor
) -> tuple[Tensor, Tensor]:
    reads = []
    with torch.autocast(state.device.type, enabled=False):
        for span in zip(*(torch.split(x, SPAN, 1) for x in (q, k, v, write, erase, log_keep)), strict=True):
            read, state = _chunked_span(state, *span)
            reads.append(read)
    return torch.cat(reads, 1), state


def _chunked_span(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, write: Tensor, erase: Tensor, log_keep: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan in chunks of 16 tokens: all chunks in parallel, except for each chunk's start state.

    Shapes below: N sequences, M chunks, r state rows, C tokens per chunk.
    """
    tokens = q.shape[1]
    q, k, v, write, erase, log_keep = (_in_chunks(x) for x in (q, k, v, write, erase, log_keep))
    v, write, erase, log_keep = (x.transpose(-1, -2) for x in (v, write, erase, log_keep))
    decay = _decays(log_keep)
    from_start, between = decay[..., :-1, 0], decay[..., :-1, 1:].tril(-1)
    to_end, across = decay[..., -1, 1:], decay[..., -1, 0]

    # A token's change depends on the earlier tokens of its chunk, separately for each row: (I + A) u = …
    keys, queries = k.unsqueeze(2), q.unsqueeze(2)
    among = erase.unsqueeze(-1) * between * (keys @ keys.mT)
    targets = torch.cat(((write * v).unsqueeze(-1), (erase * from_start).unsqueeze(-1) * keys), -1)
    solved = torch.linalg.solve_triangular(among, targets, upper=False, unitriangular=True)
    change_alone, change_per_state = solved[..., 0], solved[..., 1:]

    starts, changes = [], []
    for chunk in range(q.shape[1]):
        change = change_alone[:, chunk] - (change_per_state[:, chunk] @ state.unsqueeze(-1)).squeeze(-1)
        starts.append(state)
        changes.append(change)
        state = across[:, chunk].unsqueeze(-1) * state + (to_end[:, chunk] * change) @ k[:, chunk]
    start, change = torch.stack(starts, 1), torch.stack(changes, 1)

    earlier = ((between * (queries @ keys.mT)) @ change.unsqueeze(-1)).squeeze(-1)
    reads = from_start * (start @ q.mT) + earlier
    return reads.mT.flatten(1, 2)[:, :tokens], state


def _in_chunks(x: Tensor) -> Tensor:
    """(N, T, r) → (N, M, C, r). Padding neither writes nor decays: its k, write, erase and log λ are 0."""
    sequences, tokens, rank = x.shape
    missing = -tokens % CHUNK
    return F.pad(x, (0, 0, 0, missing)).reshape(sequences, (tokens + missing) // CHUNK, CHUNK, rank)


def _decays(log_keep: Tensor) -> Tensor:
    """(…, C) → (…, C + 1, C + 1): entry [a, b], b ≤ a, is λ_b λ_{b+1} … λ_{a-1}; 1 above the diagonal.

    Each entry sums its own logarithms. Differences of one running sum would lose precision after a token
    whose λ is nearly 0.
    """
    size = log_keep.shape[-1] + 1
    spread = log_keep.unsqueeze(-1).expand(*log_keep.shape, size)
    before = torch.ones(size - 1, size, dtype=torch.bool, device=log_keep.device).tril()
    sums = spread.masked_fill(~before, 0).cumsum(-2)
    return F.pad(sums, (0, 0, 1, 0)).exp()


def _check_scan(state: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> None:
    if state.ndim != 3 or state.shape[1] != state.shape[2]:
        raise StateError(f"state has shape {tuple(state.shape)}, expected (N, r, r)")
    if state.dtype not in (torch.float32, torch.float64):
        raise StateError(f"state is {state.dtype}, expected float32; half precision loses small writes")
    sequences, rank, _ = state.shape
    if q.ndim != 3 or q.shape[0] != sequences or q.shape[2] != rank:
        raise StateError(f"q has shape {tuple(q.shape)}, expected ({sequences}, T, {rank}) by the state's shape")
    single = (*q.shape[:2], 1)
    named = {"q": q, "k": k, "v": v, "write": gates.write, "erase": gates.erase, "log_keep": gates.log_keep}
    for name, x in named.items():
        if x.shape != q.shape and (name in ("k", "v") or x.shape != single):
            raise StateError(f"{name} has shape {tuple(x.shape)}, expected that of q, {tuple(q.shape)}")
        if x.dtype != state.dtype or x.device != state.device:
            raise StateError(
                f"{name} is {x.dtype} on {x.device}, expected {state.dtype} on {state.device} like the state; "
                "convert it before the scan"
            )
