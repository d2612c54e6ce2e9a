"""The laws of the scan: one formula, three forms, the same numbers and gradients from each."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from deltamem_agents import jit
from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory import kernels
from deltamem_agents.memory.delta_rule import (
    SPAN,
    UPDATE_MODES,
    Gates,
    ScanForm,
    UpdateMode,
    delta_scan,
    floored_gate,
    update_gates,
)
from fast_set import one_in

needs_numba = pytest.mark.skipif(not jit.available(), reason="numba is not installed")
FAST_FORMS = ["chunked", pytest.param("compiled", marks=needs_numba)]
ALL_FORMS = ["loop", *FAST_FORMS]

# (mean, spread) of the beta logits and of the keep logits: as initialised in the publication, almost no writes,
# almost only writes, a mixture of all, and a keep gate of about e^-50.
REGIMES = {
    "published": ((-1.5, 0.5), (1.5, 0.5)),
    "rare": ((-13.8, 1.0), (13.8, 1.0)),
    "eager": ((16.0, 2.0), (-3.0, 2.0)),
    "mixed": ((0.0, 8.0), (0.0, 8.0)),
    "amnesic": ((0.0, 2.0), (-50.0, 1.0)),
}


def tokens(
    sequences: int, length: int, rank: int, *, seed: int = 0, regime: str = "mixed", dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """state, q, k, v, beta logits and lambda logits, as a model would make them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    (beta_mean, beta_spread), (keep_mean, keep_spread) = REGIMES[regime]
    shape = (sequences, length, rank)
    return [
        draw(sequences, rank, rank),
        normalize(draw(*shape).tanh(), dim=-1, eps=1e-6),
        normalize(draw(*shape).tanh(), dim=-1, eps=1e-6),
        draw(*shape),
        draw(*shape) * beta_spread + beta_mean,
        draw(*shape) * keep_spread + keep_mean,
    ]


def scan(
    inputs: list[Tensor], form: ScanForm, mode: UpdateMode = "standard", *, coupled: bool = False
) -> tuple[Tensor, Tensor]:
    state, q, k, v, beta, keep = inputs
    gates = update_gates(beta, None if coupled else keep, mode=mode, writable=everything(beta))
    return delta_scan(state, q, k, v, gates, form=form)


def everything(logits: Tensor) -> Tensor:
    return torch.ones(logits.shape[:-1], dtype=torch.bool)


def gradients(
    inputs: list[Tensor], form: ScanForm, mode: UpdateMode = "standard", *, coupled: bool = False
) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    outcome = scan(leaves, form, mode, coupled=coupled)
    generator = torch.Generator().manual_seed(99)
    pulls = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outcome]
    return torch.autograd.grad(outcome, leaves, pulls, materialize_grads=True)


def assert_equal_within(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], bound: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "numba", None)
    jit._numba.cache_clear()
    jit.compiled.cache_clear()
    yield
    monkeypatch.undo()
    jit._numba.cache_clear()


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.integers(1, 5),
    length=st.integers(0, 70),
    rank=st.integers(1, 16),
    seed=st.integers(0, 2**31),
    regime=st.sampled_from(sorted(REGIMES)),
    mode=st.sampled_from(UPDATE_MODES),
    coupled=st.booleans(),
)
def test_every_form_equals_the_loop(
    sequences: int, length: int, rank: int, seed: int, regime: str, mode: UpdateMode, coupled: bool
) -> None:
    inputs = tokens(sequences, length, rank, seed=seed, regime=regime)
    expected = scan(inputs, "loop", mode, coupled=coupled)
    assert expected[0].shape == (sequences, length, rank)
    assert_equal_within(scan(inputs, "chunked", mode, coupled=coupled), expected, 1e-10)

    singles = [x.float() for x in inputs]
    expected = scan(singles, "loop", mode, coupled=coupled)
    forms: tuple[ScanForm, ...] = ("auto", "chunked", "compiled") if jit.available() else ("auto", "chunked")
    for form in forms:
        assert_equal_within(scan(singles, form, mode, coupled=coupled), expected, 1e-4)


@pytest.mark.parametrize("regime", one_in(2, REGIMES))
@pytest.mark.parametrize("form", ALL_FORMS)
def test_float32_follows_float64_over_long_sequences(form: ScanForm, regime: str) -> None:
    inputs = tokens(2, SPAN + 100, 8, regime=regime)
    singles = [x.float() for x in inputs]
    exact = scan([x.double() for x in singles], "loop")
    assert_equal_within(tuple(x.double() for x in scan(singles, form)), exact, 1e-4)


# Covers every length with every mode, and each length and each mode with both kinds of keep gate.
PAIRWISE = [
    (length, mode, (row + column) % 2 == 0)
    for row, length in enumerate((1, 15, 16, 50))
    for column, mode in enumerate(UPDATE_MODES)
]


@pytest.mark.parametrize(("length", "mode", "coupled"), one_in(2, PAIRWISE))
@pytest.mark.parametrize("form", FAST_FORMS)
def test_gradients_are_those_of_the_loop(form: ScanForm, length: int, coupled: bool, mode: UpdateMode) -> None:
    inputs = tokens(3, length, 8, seed=length)
    assert_equal_within(
        gradients(inputs, form, mode, coupled=coupled), gradients(inputs, "loop", mode, coupled=coupled), 1e-10
    )


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("form", ["auto", *FAST_FORMS])
def test_gradients_in_float32_are_those_of_the_loop(form: ScanForm, regime: str) -> None:
    inputs = tokens(4, 60, 8, regime=regime, dtype=torch.float32)
    found, expected = gradients(inputs, form), gradients(inputs, "loop")
    assert all(x.dtype == torch.float32 for x in found)
    assert_equal_within(found, expected, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ALL_FORMS)
def test_gradients_agree_with_finite_differences(form: ScanForm) -> None:
    leaves = [x.requires_grad_() for x in tokens(1, 18, 2, regime="published")]
    assert torch.autograd.gradcheck(lambda *inputs: scan(list(inputs), form), leaves)


@pytest.mark.parametrize("form", FAST_FORMS)
def test_gradient_flows_from_the_last_state_alone_and_from_the_reads_alone(form: ScanForm) -> None:
    for part in (0, 1):
        found, expected = (
            torch.autograd.grad(
                scan(leaves, each)[part].square().sum(), leaves, allow_unused=True, materialize_grads=True
            )
            for each in (form, "loop")
            for leaves in [[x.requires_grad_() for x in tokens(2, 40, 4)]]
        )
        assert_equal_within(found, expected, 1e-10)


@pytest.mark.parametrize("form", ALL_FORMS)
@settings(max_examples=20, deadline=None)
@given(length=st.integers(0, 60), data=st.data())
def test_split_equals_whole(form: ScanForm, length: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, length))
    state, *rest = tokens(2, length, 8, seed=length)
    reads, last = scan([state, *rest], form)
    first_reads, middle = scan([state, *(x[:, :cut] for x in rest)], form)
    later_reads, end = scan([middle, *(x[:, cut:] for x in rest)], form)
    assert_equal_within((torch.cat((first_reads, later_reads), 1), end), (reads, last), 1e-10)


@pytest.mark.parametrize("form", ALL_FORMS)
def test_batched_equals_one_by_one(form: ScanForm) -> None:
    inputs = tokens(4, 37, 8)
    reads, last = scan(inputs, form)
    for n in range(4):
        assert_equal_within(scan([x[n : n + 1] for x in inputs], form), (reads[n : n + 1], last[n : n + 1]), 1e-10)


@pytest.mark.parametrize("mode", UPDATE_MODES)
@pytest.mark.parametrize("form", ["auto", *ALL_FORMS])
def test_tokens_that_may_not_write_leave_the_state_bit_identical(form: ScanForm, mode: UpdateMode) -> None:
    state, q, k, v, beta, keep = tokens(3, 40, 8, dtype=torch.float32)
    gates = update_gates(beta, keep, mode=mode, writable=torch.zeros(3, 40, dtype=torch.bool))
    reads, last = delta_scan(state, q, k, v, gates, form=form)
    assert torch.equal(last, state)
    torch.testing.assert_close(reads, torch.einsum("nij,ntj->nti", state, q))


@pytest.mark.parametrize("form", ALL_FORMS)
def test_tokens_that_may_not_write_are_as_if_absent(form: ScanForm) -> None:
    state, q, k, v, beta, keep = tokens(1, 50, 8)
    writable = torch.rand(1, 50, generator=torch.Generator().manual_seed(5)) < 0.4
    gates = update_gates(beta, keep, mode="standard", writable=writable)
    reads, last = delta_scan(state, q, k, v, gates, form=form)
    chosen = writable[0]
    expected = scan([state, *(x[:, chosen] for x in (q, k, v, beta, keep))], "loop")
    assert_equal_within((reads[:, chosen], last), expected, 1e-10)


@pytest.mark.parametrize("form", ["auto", *ALL_FORMS])
def test_no_input_is_modified_and_nothing_returned_is_an_input(form: ScanForm) -> None:
    for length in (0, 1, 33):
        inputs = tokens(2, length, 8, dtype=torch.float32)
        copies = [x.clone() for x in inputs]
        _, last = scan(inputs, form)
        last.fill_(7)
        assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("form", ALL_FORMS)
def test_inputs_need_not_be_contiguous(form: ScanForm) -> None:
    inputs = tokens(2, 33, 8)
    scattered = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    assert not scattered[1].is_contiguous()
    assert_equal_within(scan(scattered, form), scan(inputs, "loop"), 1e-10)
    assert_equal_within(gradients(scattered, form), gradients(inputs, "loop"), 1e-10)


@pytest.mark.parametrize("form", ALL_FORMS)
def test_one_gate_per_state_is_the_same_gate_for_every_row(form: ScanForm) -> None:
    state, q, k, v, beta, keep = tokens(2, 30, 8)
    beta, keep = beta[..., :1], keep[..., :1]
    spread = [state, q, k, v, beta.expand_as(q), keep.expand_as(q)]
    single = [state, q, k, v, beta, keep]
    assert_equal_within(scan(single, form), scan(spread, "loop"), 1e-10)
    found, expected = gradients(single, form), gradients(spread, "loop")
    assert_equal_within(found[4:], tuple(x.sum(-1, keepdim=True) for x in expected[4:]), 1e-10)


@pytest.mark.parametrize("form", FAST_FORMS)
def test_autocast_does_not_touch_the_scan(form: ScanForm) -> None:
    inputs = tokens(2, 40, 8, dtype=torch.float32)
    expected = scan(inputs, form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scan(inputs, form)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("form", ALL_FORMS)
def test_the_pure_delta_rule_recalls_orthonormal_keys_and_overwrites_exactly(form: ScanForm) -> None:
    generator = torch.Generator().manual_seed(3)
    keys = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    old, new = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    k = torch.cat((keys, keys)).unsqueeze(0)
    v = torch.cat((old, new)).unsqueeze(0)
    certain = torch.full_like(k, 50.0)
    gates = update_gates(certain, None, mode="no_lambda", writable=everything(certain))
    noise = torch.randn(1, 8, 8, generator=generator, dtype=torch.float64)
    reads, last = delta_scan(noise, k, k, v, gates, form=form)
    torch.testing.assert_close(reads[0, 8:], old, rtol=0, atol=1e-12)
    torch.testing.assert_close(keys @ last[0].mT, new, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_repeating_a_pair_under_the_coupled_gate_converges_to_half_its_value(form: ScanForm, logit: float) -> None:
    state, _, k, v, *_ = tokens(1, 1, 8)
    k, v = k.expand(1, 300, 8), v.expand(1, 300, 8)
    beta = torch.full_like(k, logit)
    gates = update_gates(beta, None, mode="standard", writable=everything(beta))
    reads, _ = delta_scan(state, k, k, v, gates, form=form)
    torch.testing.assert_close(reads[:, -1], v[:, -1] / 2, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", UPDATE_MODES)
def test_an_erase_gate_scales_what_is_erased_and_nothing_else(mode: UpdateMode) -> None:
    state, q, k, v, beta, keep = tokens(2, 9, 4)
    plain = update_gates(beta, keep, mode=mode, writable=everything(beta))
    half = update_gates(beta, keep, torch.zeros_like(beta), mode=mode, writable=everything(beta))
    assert torch.equal(half.write, plain.write) and torch.equal(half.log_keep, plain.log_keep)
    assert torch.equal(half.erase, plain.erase / 2)
    frozen = update_gates(beta, keep, torch.zeros_like(beta), mode=mode, writable=~everything(beta))
    assert not frozen.erase.any()
    # With the erase gate closed the rule only adds: a value stays, whatever is written under a similar key.
    shut = update_gates(beta, None, torch.full_like(beta, -1e4), mode="no_lambda", writable=everything(beta))
    _, new = delta_scan(state, q, k, v, shut)
    torch.testing.assert_close(new, state + torch.einsum("nti,ntj->nij", shut.write * v, k))


def test_each_mode_has_its_published_gates() -> None:
    *_, beta_logits, keep_logits = tokens(2, 9, 4, regime="published")
    beta, keep = beta_logits.sigmoid(), keep_logits.sigmoid()
    expected: dict[tuple[UpdateMode, bool], tuple[Tensor, Tensor, Tensor]] = {
        ("standard", True): (beta, beta, 1 - beta),
        ("standard", False): (beta, beta, keep),
        ("lambda_outside", True): (beta, (1 - beta) * beta, 1 - beta),
        ("lambda_outside", False): (beta, keep * beta, keep),
        ("no_lambda", True): (beta, beta, torch.ones_like(beta)),
        ("no_lambda", False): (beta, beta, torch.ones_like(beta)),
    }
    for (mode, coupled), (write, erase, kept) in expected.items():
        logits = None if coupled else keep_logits
        gates = update_gates(beta_logits, logits, mode=mode, writable=everything(beta))
        assert_equal_within((gates.write, gates.erase, gates.log_keep.exp()), (write, erase, kept), 1e-12)


def test_gates_of_tokens_that_may_not_write_are_exactly_neutral_and_pass_no_gradient() -> None:
    *_, beta, keep = (x.requires_grad_() for x in tokens(2, 6, 4))
    writable = torch.tensor([[True, False] * 3, [False] * 6])
    gates = update_gates(beta, keep, mode="lambda_outside", writable=writable)
    for gate in (gates.write, gates.erase, gates.log_keep):
        assert torch.all(gate[~writable] == 0)
        assert torch.all(gate[writable] != 0)
    total = (gates.write + gates.erase + gates.log_keep).sum()
    for gradient in torch.autograd.grad(total, (beta, keep)):
        assert torch.all(gradient[~writable] == 0)
        assert torch.all(gradient[writable] != 0)


def test_a_coupled_keep_gate_decays_even_if_one_minus_beta_rounds_to_one() -> None:
    logits = torch.full((1, 1, 1), -20.0, dtype=torch.bfloat16)
    gates = update_gates(logits, None, mode="standard", writable=everything(logits))
    assert gates.log_keep.dtype == torch.float32
    assert gates.log_keep.item() == pytest.approx(-math.exp(-20), rel=1e-5)


FLOORS = st.floats(0.01, 0.99)


@given(seed=st.integers(0, 2**31), regime=st.sampled_from(sorted(REGIMES)), mode=st.sampled_from(UPDATE_MODES))
def test_a_floor_of_zero_is_the_published_gate_bit_for_bit(seed: int, regime: str, mode: UpdateMode) -> None:
    *_, beta, _ = tokens(2, 9, 4, seed=seed, regime=regime, dtype=torch.float32)
    assert torch.equal(floored_gate(beta, 0.0), beta.sigmoid())
    gates = update_gates(beta, None, mode=mode, writable=everything(beta), floor=0.0)
    keep = torch.zeros_like(beta) if mode == "no_lambda" else torch.nn.functional.logsigmoid(-beta)
    erase = keep.exp() * beta.sigmoid() if mode == "lambda_outside" else beta.sigmoid()
    assert all(map(torch.equal, (gates.write, gates.erase, gates.log_keep), (beta.sigmoid(), erase, keep)))


@given(floor=FLOORS, logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=20))
def test_a_floored_gate_is_closed_below_its_floor_and_rescaled_to_0_to_1_above(
    floor: float, logits: list[float]
) -> None:
    values = torch.tensor(sorted(logits))
    gates = floored_gate(values, floor)
    # float32 rounds the gate and the floor, and dividing by 1 − floor amplifies the error.
    slack = 1e-5 + 2**-22 / (1 - floor)
    for logit, gate in zip(values.tolist(), gates.tolist(), strict=True):
        share = 1 / (1 + math.exp(-logit))
        assert gate == pytest.approx(max(0.0, (share - floor) / (1 - floor)), abs=slack)
        assert gate == 0 or share > floor - 1e-6
    assert bool((gates[1:] >= gates[:-1]).all())
    assert floored_gate(torch.tensor(50.0), floor).item() == pytest.approx(1.0, abs=slack)


@given(floor=FLOORS, seed=st.integers(0, 2**31))
def test_gradient_flows_through_a_closed_gate_as_through_an_open_one(floor: float, seed: int) -> None:
    *_, logits, _ = tokens(1, 40, 4, seed=seed)
    logits.requires_grad_()
    gates, plain = floored_gate(logits, floor), logits.sigmoid()
    values = floored_gate(logits.detach(), floor)
    torch.testing.assert_close(gates.detach(), values, rtol=0, atol=1e-12)
    # Closed gates are closed with and without recorded gradients.
    assert torch.equal(gates == 0, values == 0)
    found, expected = (torch.autograd.grad(x.sum(), logits)[0] for x in (gates, plain))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    assert bool((found[values == 0] > 0).all())


@pytest.mark.parametrize("mode", UPDATE_MODES)
@pytest.mark.parametrize("form", ["auto", *ALL_FORMS])
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_closed_gate_writes_nothing_over_many_tokens(form: ScanForm, mode: UpdateMode, differentiable: bool) -> None:
    state, q, k, v, spread, _ = tokens(2, SPAN + 50, 4, dtype=torch.float32)
    logits = (torch.tensor(0.25).logit() - 1e-3 - spread.abs()).requires_grad_(differentiable)
    gates = update_gates(logits, None, mode=mode, writable=everything(logits), floor=0.25)
    reads, last = delta_scan(state, q, k, v, gates, form=form)
    assert torch.equal(last, state)
    torch.testing.assert_close(reads, torch.einsum("nij,ntj->nti", state, q))


@pytest.mark.parametrize("form", ALL_FORMS)
def test_with_a_learned_keep_gate_a_closed_write_gate_only_decays_the_state(form: ScanForm) -> None:
    state, q, k, v, spread, keep = tokens(2, 40, 4, regime="published")
    logits = -5 - spread.abs()
    gates = update_gates(logits, keep, mode="standard", writable=everything(logits), floor=0.25)
    _, last = delta_scan(state, q, k, v, gates, form=form)
    torch.testing.assert_close(last, state * keep.sigmoid().prod(dim=1)[..., None], rtol=1e-9, atol=0)


@given(floor=FLOORS, seed=st.integers(0, 2**31))
def test_a_coupled_keep_gate_leaves_what_a_floored_write_gate_leaves(floor: float, seed: int) -> None:
    *_, logits, _ = tokens(2, 9, 4, seed=seed)
    gates = update_gates(logits, None, mode="standard", writable=everything(logits), floor=floor)
    assert bool(gates.log_keep.isfinite().all())
    torch.testing.assert_close(gates.log_keep.exp(), 1 - gates.write, rtol=0, atol=2e-7)
    assert bool((gates.log_keep[gates.write == 0] == 0).all())


@pytest.mark.parametrize("mode", UPDATE_MODES)
@pytest.mark.parametrize("form", FAST_FORMS)
def test_gradients_under_a_floor_are_those_of_the_loop(form: ScanForm, mode: UpdateMode) -> None:
    def found(by: ScanForm) -> tuple[Tensor, ...]:
        state, q, k, v, logits, _ = leaves = [x.requires_grad_() for x in tokens(2, 40, 4)]
        gates = update_gates(logits, None, mode=mode, writable=everything(logits), floor=0.25)
        reads, last = delta_scan(state, q, k, v, gates, form=by)
        # The last of the leaves, the keep gate's logits, is unused here.
        return torch.autograd.grad(reads.square().sum() + last.square().sum(), leaves[:-1])

    assert_equal_within(found(form), found("loop"), 1e-9)


def test_an_empty_sequence_reads_nothing_and_changes_nothing() -> None:
    inputs = tokens(2, 0, 8, dtype=torch.float32)
    for form in ("auto", "loop", "chunked"):
        reads, last = scan(inputs, form)
        assert reads.shape == (2, 0, 8)
        assert torch.equal(last, inputs[0])


def test_without_numba_auto_still_works_and_compiled_says_what_is_missing(without_numba: None) -> None:
    assert not jit.available()
    for sequences, length in ((1, 3), (1, 40), (30, 40)):
        inputs = tokens(sequences, length, 8, dtype=torch.float32)
        assert_equal_within(scan(inputs, "auto"), scan(inputs, "loop"), 1e-4)
        assert_equal_within(gradients(inputs, "auto"), gradients(inputs, "loop"), 2e-4)
    with pytest.raises(ConfigError, match="needs numba"):
        scan(inputs, "compiled")


@needs_numba
def test_without_a_writable_cache_folder_the_kernel_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")

    def refuses_to_cache(*_: object, cache: bool = False, **__: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        # Skips compilation, which takes seconds: the plain Python kernel computes the same.
        return lambda kernel: kernel

    monkeypatch.setattr(numba, "njit", refuses_to_cache)
    monkeypatch.setattr(kernels, "compiled", jit.compiled.__wrapped__)
    inputs = tokens(2, 20, 4)
    assert_equal_within(scan(inputs, "compiled"), scan(inputs, "loop"), 1e-10)


@pytest.mark.slow
def test_importing_the_scan_does_not_import_numba() -> None:
    code = "import sys, deltamem_agents.memory.delta_rule; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_forms_and_wrong_shapes_are_refused_by_name() -> None:
    state, q, k, v, beta, keep = tokens(2, 5, 4, dtype=torch.float32)
    gates = update_gates(beta, keep, mode="standard", writable=everything(beta))
    with pytest.raises(ConfigError, match="'quick', expected one of auto, loop"):
        delta_scan(state, q, k, v, gates, form="quick")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'sideways', expected one of standard"):
        update_gates(beta, keep, mode="sideways", writable=everything(beta))  # type: ignore[arg-type]
    with pytest.raises(StateError, match=r"writable is torch\.float32 of shape \(2, 4\), expected bool"):
        update_gates(beta, keep, mode="standard", writable=torch.ones(2, 4))
    with pytest.raises(StateError, match=r"lambda_logits has shape \(2, 3, 4\)"):
        update_gates(beta, keep[:, :3], mode="standard", writable=everything(beta))
    with pytest.raises(StateError, match=r"erase_logits has shape \(2, 4, 4\)"):
        update_gates(beta, keep, beta[:, :4], mode="standard", writable=everything(beta))
    with pytest.raises(StateError, match=r"state has shape \(2, 4, 3\), expected \(N, r, r\)"):
        delta_scan(state[..., :3], q, k, v, gates)
    with pytest.raises(StateError, match=r"q has shape \(2, 5, 3\), expected \(2, T, 4\)"):
        delta_scan(state, q[..., :3], k, v, gates)
    with pytest.raises(StateError, match=r"k has shape \(2, 4, 4\), expected that of q, \(2, 5, 4\)"):
        delta_scan(state, q, k[:, :4], v, gates)
    with pytest.raises(StateError, match=r"v is torch\.bfloat16"):
        delta_scan(state, q, k, v.bfloat16(), gates)
    with pytest.raises(StateError, match=r"state is torch\.float16, expected float32"):
        delta_scan(state.half(), q, k, v, gates)
    with pytest.raises(StateError, match=r"erase has shape \(2, 5, 2\)"):
        delta_scan(state, q, k, v, Gates(gates.write, gates.erase[..., :2], gates.log_keep))
