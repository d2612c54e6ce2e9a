"""The memory of one wrapped attention layer: read the state, correct the attention, write. Knows nothing of text."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.config import AdapterConfig, Head
from deltamem_agents.errors import StateError
from deltamem_agents.memory.delta_rule import Gates, delta_scan, floored_gate, update_gates
from deltamem_agents.memory.state import MemoryState, OpenMessages

HEADS: tuple[Head, ...] = ("q", "k", "v", "o")


@dataclass(frozen=True)
class AttentionWidths:
    """Widths of one attention layer: `hidden` of its input, `q`, `k`, `v`, `o` of its projections' outputs."""

    hidden: int
    q: int
    k: int
    v: int
    o: int


@dataclass
class MemoryCall:
    """The memory's argument of one forward pass: inputs, and the results that the layers fill in.

    A slot is a layer's index in the state.
    `token_mask` (batch, tokens) bool: False marks padding, which neither reads nor writes. It is
    explicit because an attention mask's meaning depends on the attention implementation.
    `write_mask` (batch, tokens) bool: which tokens are written; None writes nothing.
    `replies` (batch, tokens) bool: tokens that predict a reply's token. If the adapter's read scope is "replies",
    only these read. None means all tokens.
    `message_ids` (batch, tokens) int: which message a token belongs to, −1 for none; needed by adapters
    that write once per message. `unfinished`: the same prompt continues in the next call, which gets `new_state()`
    unchanged. So a prompt split into calls gives the same result as one call, for these adapters too.
    `collect`: measure write gates (`betas`) and correction norms (`ratios`).
    `inputs`: if given, collects each slot's attention input (batch, tokens, hidden), from which reads and writes can
    be computed later, for instance in training.
    `queries`: if given, collects each slot's queries (batch, heads, tokens, r).
    `written`: if given, collects each slot's writes; see `TokenWrites`.
    `applies`: whether writes change the state. If False, all tokens read the given state, and writes are only
    collected.
    `quiet`: read and write nothing, as in the base model; `inputs` are still collected.
    `later`: these tokens' writes are computed after the pass from `inputs`, so the pass computes no keys and no carry.
    `reads_from`: no token before this position reads, so reads and queries are computed for the tokens from there on
    alone. Only for states that writes do not change.
    """

    state: MemoryState
    token_mask: Tensor | None = None
    write_mask: Tensor | None = None
    message_ids: Tensor | None = None
    replies: Tensor | None = None
    unfinished: bool = False
    collect: bool = False
    inputs: dict[int, Tensor] | None = None
    queries: dict[int, Tensor] | None = None
    written: dict[int, TokenWrites] | None = None
    applies: bool = True
    quiet: bool = False
    later: bool = False
    reads_from: int = 0
    matrices: dict[int, Tensor] = field(default_factory=dict)
    carries: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    sizes: Tensor | None = None
    readouts: dict[int, Tensor] = field(default_factory=dict)
    found: dict[int, Tensor] = field(default_factory=dict)
    votes: dict[int, Tensor] = field(default_factory=dict)
    betas: list[Tensor] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)

    def new_state(self) -> MemoryState:
        """The state after the forward pass. Raises StateError if a memory layer took no part in one."""
        layers = self.state.geometry[0]
        if len(self.matrices) != layers:
            raise StateError(
                f"{len(self.matrices)} of {layers} memory layers took part in the forward pass; "
                "is the adapter attached to this model?"
            )
        matrices = torch.stack([self.matrices[slot] for slot in range(layers)], dim=1)
        carry = torch.stack([self.carries[slot] for slot in range(layers)], dim=1) if self.carries else None
        return MemoryState(matrices, carry, self._open() if self.unfinished else None)

    def measured(self, delta: Tensor, attended: Tensor) -> None:
        """Record the norm of an attention output's correction relative to the norm of that output."""
        self.ratios.append(delta.detach().norm() / attended.detach().float().norm().clamp_min(1e-12))

    def _open(self) -> OpenMessages | None:
        if self.sizes is None:
            return self.state.open
        before = self.state.matrices if self.state.open is None else self.state.open.start
        return OpenMessages(before, torch.stack([self.sums[slot] for slot in range(len(self.sums))], dim=1), self.sizes)


@dataclass(frozen=True)
class Projections:
    """Memory projections of consecutive tokens: q, k, v (B, H, T, r), gate logits (B, H, T, r or 1)."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None
    erase: Tensor | None = None


@dataclass(frozen=True)
class TokenWrites:
    """The writes of consecutive tokens in one layer.

    `keys`, `values`: (batch, heads, tokens, r). `write`, `erase`: (batch, heads, tokens, r or 1), 0 for a token that
    writes nothing.
    """

    keys: Tensor
    values: Tensor
    write: Tensor
    erase: Tensor


class LayerMemory(nn.Module):
    """The trained weights of one layer's memory; names and shapes are those of the published adapter."""

    def __init__(self, config: AdapterConfig, widths: AttentionWidths) -> None:
        super().__init__()
        self.config = config
        self.widths = widths

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(rows, columns))

        self.memory_q_proj = matrix(config.width, widths.hidden)
        self.memory_k_proj = matrix(config.width, widths.hidden)
        self.memory_v_proj = matrix(config.width, widths.hidden)
        self.beta_proj = matrix(config.gate_width, widths.hidden)
        self.beta_bias = nn.Parameter(torch.zeros(config.gate_width))
        if config.key_shift:
            self.memory_k_shift_proj = matrix(config.width, widths.hidden)
        if config.gate_hidden:
            self.gate_hidden_proj = matrix(config.gate_hidden, widths.hidden)
            self.gate_hidden_bias = nn.Parameter(torch.zeros(config.gate_hidden))
            self.beta_hidden_proj = matrix(config.gate_width, config.gate_hidden)
        if config.read_gate:
            self.read_proj = matrix(config.num_state_heads, widths.hidden)
            self.read_bias = nn.Parameter(torch.zeros(config.num_state_heads))
        if config.gate_on_reads:
            self.found_proj = matrix(config.num_state_heads, config.width)
        if config.erase_gate:
            self.erase_proj = matrix(config.gate_width, widths.hidden)
            self.erase_bias = nn.Parameter(torch.zeros(config.gate_width))
        if config.learns_lambda:
            self.lambda_proj = matrix(config.gate_width, widths.hidden)
            self.lambda_bias = nn.Parameter(torch.zeros(config.gate_width))
        for head in config.delta_heads:
            self.register_parameter(f"delta_{head}_proj", matrix(getattr(widths, head), config.width))
        if config.readout:
            self.readout_proj = matrix(widths.o, config.width)
        if config.delta_o_rmsnorm:
            self.delta_o_rmsnorm_weight = nn.Parameter(torch.ones(widths.o))
        if config.trainable_delta_scale:
            count = len(HEADS) if config.delta_scale_granularity == "head" else 1
            start = torch.tensor(config.delta_scale_init / config.delta_scale_max).clamp(1e-4, 1 - 1e-4)
            self.delta_scale_raw = nn.Parameter(torch.logit(start).repeat(count))

    def keys(self, x: Tensor, token_mask: Tensor | None, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Key pre-activations (B, T, width), and the carry (B, width) for the next token's key, None without shift."""
        raw = F.linear(x, self.memory_k_proj)
        if not self.config.key_shift:
            return raw, None
        shifted = F.linear(x, self.memory_k_shift_proj)
        first = shifted.new_zeros(shifted.shape[0], shifted.shape[-1]) if carry is None else carry
        if token_mask is None or bool(token_mask.all()):
            series = torch.cat([first[:, None], shifted], dim=1)
            return raw + series[:, :-1], series[:, -1]
        # A token's predecessor is the last valid token before it, on whichever side the padding is.
        order = torch.arange(1, x.shape[1] + 1, device=x.device)
        newest = torch.where(token_mask, order, torch.zeros_like(order)).cummax(dim=1).values
        newest = F.pad(newest, (1, 0))[..., None].expand(-1, -1, shifted.shape[-1])
        series = torch.cat([first[:, None], shifted], dim=1).gather(1, newest)
        return raw + series[:, :-1], series[:, -1]

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, T, r) from x (B, T, hidden) float32."""
        raw: Tensor = F.linear(x, self.memory_q_proj).unflatten(-1, (self.config.num_state_heads, -1))
        return unit(raw.transpose(1, 2))

    def project(self, call: MemoryCall, slot: int, x: Tensor, keys: Tensor) -> Projections:
        """All inputs of the scan, from x (B, T, hidden) float32 and the key pre-activations."""
        config = self.config

        def split(values: Tensor) -> Tensor:
            by_head: Tensor = values.unflatten(-1, (config.num_state_heads, -1))
            return by_head.transpose(1, 2)

        return Projections(
            q=self.queries(x),
            k=unit(split(keys)),
            v=split(F.linear(x, self.memory_v_proj)),
            beta=split(self.write_gates(call, slot, x)),
            lam=split(F.linear(x, self.lambda_proj, self.lambda_bias)) if config.learns_lambda else None,
            erase=split(F.linear(x, self.erase_proj, self.erase_bias)) if config.erase_gate else None,
        )

    def write_gates(self, call: MemoryCall, slot: int, x: Tensor) -> Tensor:
        """Logits (B, T, gates) of the write gates.

        With `gate_votes` a layer's logits are the mean over its own and those of the layers before it; `call` carries
        the running sum.
        """
        logits = F.linear(x, self.beta_proj, self.beta_bias)
        if self.config.gate_hidden:
            hidden = F.silu(F.linear(x, self.gate_hidden_proj, self.gate_hidden_bias))
            logits = logits + F.linear(hidden, self.beta_hidden_proj)
        if not self.config.gate_votes:
            return logits
        if slot:
            logits = logits + call.votes[slot - 1].to(logits.device)
        call.votes[slot] = logits
        return logits / (slot + 1)

    def gated_reads(self, call: MemoryCall, slot: int, x: Tensor, reads: Tensor) -> Tensor:
        """Reads (B, T, width) times each token's read gate; x (B, T, hidden) float32.

        With `gate_on_reads` the gate also depends on the reads of this layer and of those before it; `call` carries the
        running sum.
        """
        if not self.config.read_gate:
            return reads
        logits = F.linear(x, self.read_proj, self.read_bias)
        if self.config.gate_on_reads:
            found = F.linear(reads, self.found_proj)
            if slot:
                found = found + call.found[slot - 1].to(found.device)
            call.found[slot] = found
            logits = logits + found
        gate = floored_gate(logits, self.config.gate_floor)
        by_head: Tensor = reads.unflatten(-1, (self.config.num_state_heads, -1))
        return (by_head * gate[..., None]).flatten(-2)

    def correction(self, head: Head, reads: Tensor) -> Tensor:
        """The correction of one projection's output: (B, T, width of the head) from reads (B, T, width)."""
        config = self.config
        with _in_float32(reads):
            delta: Tensor = F.linear(reads, getattr(self, f"delta_{head}_proj")) * config.scale
            if config.trainable_delta_scale:
                raw = self.delta_scale_raw[HEADS.index(head) if config.delta_scale_granularity == "head" else 0]
                delta = delta * torch.sigmoid(raw) * config.delta_scale_max
            if head == "o" and config.delta_o_rmsnorm:
                delta = F.rms_norm(delta, delta.shape[-1:], self.delta_o_rmsnorm_weight, config.delta_o_rmsnorm_eps)
        return delta

    def output_correction(self, call: MemoryCall, slot: int, reads: Tensor) -> Tensor | None:
        """The correction of the attention's output (B, T, width of o) float32, None for none.

        With `readout` each layer stores its readout in `call`, and the last layer adds the sum of all of them.
        """
        delta = self.correction("o", reads) if "o" in self.config.delta_heads else None
        if not self.config.readout:
            return delta
        with _in_float32(reads):
            call.readouts[slot] = F.linear(reads, self.readout_proj) * self.config.scale
        if slot + 1 < call.state.geometry[0]:
            return delta
        said = torch.stack([call.readouts[layer].to(reads.device) for layer in sorted(call.readouts)]).sum(0)
        return said if delta is None else delta + said


def read_and_write(memory: LayerMemory, call: MemoryCall, slot: int, x: Tensor) -> Tensor:
    """Reads (B, T, heads·r) float32 for every token from `reads_from` on; stores the layer's new state in `call`.

    `slot`: the layer's index in the state. `x`: (B, T, hidden), the attention's input.
    """
    if call.inputs is not None:
        call.inputs[slot] = x
    _check_call(memory.config, call, slot, x)
    with _in_float32(x):
        if call.write_mask is None:
            return _only_read(memory, call, slot, x)
        return _read_and_write(memory, call, slot, _masked(call, x))


def _masked(call: MemoryCall, x: Tensor, start: int = 0) -> Tensor:
    """The inputs (B, T - start, hidden) float32 from position `start` on."""
    x = x[:, start:].float()
    if call.token_mask is None:
        return x
    # A model may compute anything for padding, even NaN. Zeros read nothing.
    return x.masked_fill(~call.token_mask[:, start:, None], 0)


def _read_and_write(memory: LayerMemory, call: MemoryCall, slot: int, x: Tensor) -> Tensor:
    state = call.state.matrices[:, slot]
    carry = None if call.state.carry is None else call.state.carry[:, slot]
    keys, carry = memory.keys(x, call.token_mask, carry)
    if carry is not None:
        call.carries[slot] = carry
    projected = memory.project(call, slot, x, keys)
    if call.queries is not None:
        call.queries[slot] = projected.q
    assert call.write_mask is not None
    if memory.config.memory_write_granularity == "token":
        writable = call.write_mask if call.token_mask is None else call.write_mask & call.token_mask
        gates = token_gates(memory.config, projected, writable)
        if call.written is not None:
            call.written[slot] = TokenWrites(projected.k, projected.v, gates.write, gates.erase)
        if call.applies:
            reads, new = _scan(state, projected, gates)
        else:
            reads, new = _read(state, projected.q[:, :, call.reads_from :]), state
        if call.collect:
            beta = floored_gate(projected.beta.detach(), memory.config.gate_floor)
            call.betas.append(beta.mean(dim=(1, 3))[writable])
    else:
        start = _before(call, slot)
        reads = _read(start, projected.q)
        new = _write_messages(memory, call, slot, start, x)
    earlier = call.matrices.get(slot)
    if earlier is not None and new.requires_grad and not earlier.requires_grad:
        # Reentrant checkpointing first runs a layer without gradients; those writes are cut off from the graph.
        raise StateError(
            "this layer ran for the same MemoryCall without gradient before, so gradients through the state would be "
            "wrong; use one MemoryCall per forward pass, and checkpointing with use_reentrant=False"
        )
    call.matrices[slot] = new
    return _gated(memory, call, slot, x[:, x.shape[1] - reads.shape[2] :], reads)


def _only_read(memory: LayerMemory, call: MemoryCall, slot: int, x: Tensor) -> Tensor:
    """The reads of tokens that write nothing, without computing keys, values or write gates."""
    if memory.config.key_shift and not call.later:
        call.carries[slot] = _carry_after(memory, call, slot, x)
    call.matrices[slot] = call.state.matrices[:, slot]
    x = _masked(call, x, call.reads_from)
    q = memory.queries(x)
    if call.queries is not None:
        call.queries[slot] = q
    return _gated(memory, call, slot, x, _read(_before(call, slot), q))


def _before(call: MemoryCall, slot: int) -> Tensor:
    """The state (B, H, r, r) before the prompt. All tokens of an unfinished message read it."""
    return (call.state.matrices if call.state.open is None else call.state.open.start)[:, slot]


def _carry_after(memory: LayerMemory, call: MemoryCall, slot: int, x: Tensor) -> Tensor:
    """The carry (B, width) that `LayerMemory.keys` returns, from the last valid token of x (B, T, hidden) alone."""
    if call.token_mask is None:
        return F.linear(x[:, -1].float(), memory.memory_k_shift_proj)
    order = torch.arange(1, x.shape[1] + 1, device=x.device)
    newest = torch.where(call.token_mask, order, torch.zeros_like(order)).amax(dim=1)[:, None]
    last = x.gather(1, (newest - 1).clamp_min(0)[..., None].expand(-1, 1, x.shape[-1]))[:, 0]
    shifted = F.linear(last.float().masked_fill(newest == 0, 0), memory.memory_k_shift_proj)
    before = torch.zeros_like(shifted) if call.state.carry is None else call.state.carry[:, slot]
    return torch.where(newest > 0, shifted, before)


def _gated(memory: LayerMemory, call: MemoryCall, slot: int, x: Tensor, reads: Tensor) -> Tensor:
    """Reads (B, H, T, r) → (B, T, heads·r), after the read gates and the read scope."""
    heard = memory.gated_reads(call, slot, x, reads.transpose(1, 2).flatten(2))
    if call.replies is None or memory.config.read_scope == "all":
        return heard
    return heard * call.replies[:, call.replies.shape[1] - heard.shape[1] :, None]


def _in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Disable the caller's autocast, which would run the memory's products in half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def unit(raw: Tensor) -> Tensor:
    """Keys and queries (…, r) of length 1 from their pre-activations."""
    return F.normalize(torch.tanh(raw), dim=-1, eps=1e-6)


def _read(state: Tensor, q: Tensor) -> Tensor:
    return q @ state.transpose(-1, -2)


def scan_tokens(config: AdapterConfig, state: Tensor, p: Projections, writable: Tensor) -> tuple[Tensor, Tensor]:
    """Scan the tokens in order; the (B, H) states are independent."""
    return _scan(state, p, token_gates(config, p, writable))


def token_gates(config: AdapterConfig, p: Projections, writable: Tensor) -> Gates:
    """The gates (B, H, T, r or 1) of consecutive tokens; `writable` (B, T) bool."""
    batch, heads, tokens, _ = p.q.shape
    return update_gates(
        p.beta,
        p.lam,
        p.erase,
        mode=config.state_update_mode,
        writable=writable[:, None].expand(batch, heads, tokens),
        floor=config.gate_floor,
    )


def _scan(state: Tensor, p: Projections, gates: Gates) -> tuple[Tensor, Tensor]:
    batch, heads, _, _ = p.q.shape
    flat = Gates(gates.write.flatten(0, 1), gates.erase.flatten(0, 1), gates.log_keep.flatten(0, 1))
    reads, new = delta_scan(state.flatten(0, 1), p.q.flatten(0, 1), p.k.flatten(0, 1), p.v.flatten(0, 1), flat)
    return reads.unflatten(0, (batch, heads)), new.unflatten(0, (batch, heads))


def _write_messages(memory: LayerMemory, call: MemoryCall, slot: int, start: Tensor, x: Tensor) -> Tensor:
    """The state after one write per message of the prompt so far, in message order.

    `start`: the state before the prompt. A message's write is computed from the mean of its written tokens' hidden
    states.
    """
    assert call.message_ids is not None and call.write_mask is not None
    writable = call.write_mask & (call.message_ids >= 0)
    if call.token_mask is not None:
        writable = writable & call.token_mask
    count = max(0, int(call.message_ids.max()) + 1)
    member = F.one_hot(call.message_ids.clamp_min(0), max(1, count))[..., :count].to(x.dtype) * writable[..., None]
    sums, sizes = torch.einsum("btm,btd->bmd", member, x), member.sum(dim=1)
    if call.state.open is not None:
        sums = _padded_sum(sums, call.state.open.sums[:, slot])
        sizes = _padded_sum(sizes[..., None], call.state.open.sizes[..., None])[..., 0]
    call.sums[slot], call.sizes = sums, sizes
    if not bool(sizes.any()):
        return start
    means = sums / sizes.clamp_min(1)[..., None]
    keys, _ = memory.keys(means, None, None)
    _, new = scan_tokens(memory.config, start, memory.project(call, slot, means, keys), sizes > 0)
    return new


def _padded_sum(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two tensors (batch, messages, n); the one with fewer messages is padded with zeros."""
    missing = one.shape[1] - other.shape[1]
    return F.pad(one, (0, 0, 0, max(0, -missing))) + F.pad(other, (0, 0, 0, max(0, missing)))


def _check_call(config: AdapterConfig, call: MemoryCall, slot: int, x: Tensor) -> None:
    batch, tokens, _ = x.shape
    state = call.state
    if state.batch != batch:
        raise StateError(f"state holds {state.batch} sequences, the input {batch}; batch them with MemoryState.cat")
    layers, *matrix = state.geometry
    if slot >= layers or matrix != [config.num_state_heads, config.rank]:
        raise StateError(
            f"state has (layers, heads, r) = {state.geometry}, this adapter has {config.num_state_heads} heads of "
            f"r = {config.rank} on more than {slot} layers; start from its zero_state"
        )
    if state.matrices.device != x.device:
        raise StateError(f"state is on {state.matrices.device}, the model on {x.device}; move it with MemoryState.to")
    for name in ("token_mask", "write_mask", "replies", "message_ids"):
        value: Tensor | None = getattr(call, name)
        if value is None:
            continue
        if tuple(value.shape) != (batch, tokens):
            raise StateError(f"{name} has shape {tuple(value.shape)}, expected {(batch, tokens)}")
        if name != "message_ids" and value.dtype != torch.bool:
            raise StateError(f"{name} is {value.dtype}, expected bool; convert it with .bool()")
    if config.memory_write_granularity == "message_mean" and call.write_mask is not None and call.message_ids is None:
        raise StateError("this adapter writes once per message, but message_ids is None; pass message_ids")
