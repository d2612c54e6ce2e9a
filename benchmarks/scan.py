"""Compares the speed of the scan's forms: `python benchmarks/scan.py`.

Only ratios within one run are meaningful. The forms run in alternation, so other load on the machine affects all of
them. The ratio of the fastest rounds shows the code's speed, that of the medians what a user experiences.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deltamem_agents import jit
from deltamem_agents.memory.delta_rule import ScanForm, delta_scan, update_gates

RANK = 8
# The loop's time per token does not depend on the length, so one round is enough for longer inputs.
LOOP_REPEATS_UP_TO = 4096


def draw(sequences: int, tokens: int) -> list[Tensor]:
    shape = (sequences, tokens, RANK)
    q, k = (normalize(torch.randn(shape).tanh(), dim=-1) for _ in range(2))
    return [torch.zeros(sequences, RANK, RANK), q, k, torch.randn(shape), torch.randn(shape) - 1.5]


def one_round(inputs: list[Tensor], form: ScanForm, *, gradient: bool) -> float:
    """Seconds for one scan, with its backward pass if `gradient`."""
    state, q, k, v, beta = (x.clone().requires_grad_(gradient) for x in inputs)
    gates = update_gates(beta, None, mode="standard", writable=torch.ones(beta.shape[:-1], dtype=torch.bool))
    start = time.perf_counter()
    reads, last = delta_scan(state, q, k, v, gates, form=form)
    if gradient:
        torch.autograd.grad(reads.sum() + last.sum(), (state, q, k, v, beta))
    return time.perf_counter() - start


def compare(forms: list[ScanForm], sequences: int, tokens: int, rounds: int, *, gradient: bool) -> str:
    inputs = draw(sequences, tokens)
    times: dict[ScanForm, list[float]] = {form: [] for form in forms}
    for form in forms:
        if form != "loop":
            one_round(inputs, form, gradient=gradient)
    for done in range(rounds):
        for form in forms:
            if form != "loop" or done == 0 or tokens <= LOOP_REPEATS_UP_TO:
                times[form].append(one_round(inputs, form, gradient=gradient))

    def ratios(of: Callable[[list[float]], float]) -> str:
        unit = of(times[forms[-1]])
        return " : ".join(f"{of(times[form]) / unit:8.2f}" for form in forms)

    return f"{sequences:9d} {tokens:7d}   {ratios(min)}   {ratios(statistics.median)}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=9, help="number of rounds of each form (default: 9)")
    rounds = arguments.parse_args().rounds

    forms: list[ScanForm] = ["loop", "chunked"]
    if jit.available():
        forms.append("compiled")
    else:
        print("numba is not installed: skipping the compiled form")
    names = " : ".join(f"{form:>8}" for form in forms)
    torch.manual_seed(0)
    for title, gradient, sizes in (
        ("forward", False, [(n, t) for n in (1, 30) for t in (1, 64, 1024, 16384)]),
        ("forward and backward", True, [(1, 64), (1, 1024), (384, 60), (384, 300)]),
    ):
        print(f"\n{title}, r = {RANK}; fastest of {rounds} rounds, then medians\nsequences  tokens   {names}   {names}")
        for sequences, tokens in sizes:
            print(compare(forms, sequences, tokens, rounds, gradient=gradient), flush=True)


if __name__ == "__main__":
    main()
