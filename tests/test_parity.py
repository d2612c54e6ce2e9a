"""The published reference and this implementation give the same numbers.

A vector folder holds `{family}-base/` (a tiny random model) and `{family}-{variant}/` with a released-form
adapter and `expected.safetensors`. `pytest tests/test_parity.py --parity-dir DIR` runs any such folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from deltamem_agents.memory.adapter_file import load_adapter
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter, attach
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import with_cache
from deltamem_agents.memory.state import MemoryState

TOLERANCE = 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vector" in metafunc.fixturenames:
        root = Path(metafunc.config.getoption("--parity-dir"))
        vectors = sorted(path.parent for path in root.glob("*/expected.safetensors"))
        assert vectors, f"no */expected.safetensors in {root}"
        metafunc.parametrize("vector", vectors, ids=lambda path: path.name)


class Case:
    """One variant attached to its base model under one attention implementation."""

    def __init__(self, vector: Path, attention: str) -> None:
        family = vector.name.split("-")[0]
        base = vector.parent / f"{family}-base"
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention)
        self.model.eval().requires_grad_(False)
        self.adapter: Adapter = load_adapter(vector, self.model)
        self.expected = load_file(vector / "expected.safetensors")
        self.attachment = attach(self.model, self.adapter)

    def forward(
        self,
        ids: Tensor,
        state: MemoryState,
        *,
        writes: bool = True,
        mask: Tensor | None = None,
        cache: DynamicCache | None = None,
        part: slice = slice(None),
        unfinished: bool = False,
        **inputs: Tensor,
    ) -> tuple[Tensor, MemoryState]:
        token_mask = None if mask is None else mask.bool()
        messages = self.expected.get("write_message_ids")
        call = MemoryCall(
            state,
            token_mask=token_mask,
            write_mask=torch.ones_like(ids[:, part], dtype=torch.bool) if writes else None,
            message_ids=messages[:, part] if messages is not None and writes else None,
            unfinished=unfinished,
        )
        kept = {} if cache is None else with_cache(self.model, cache)
        out = self.model(ids[:, part], attention_mask=mask, **inputs, **kept, **{CALL_KEYWORD: call})
        return out.logits, call.new_state()

    def check_state(self, arm: str, state: MemoryState) -> None:
        for slot, layer in enumerate(self.adapter.indices):
            found = state.matrices[:, slot]
            wanted = self.expected[f"{arm}.state.{layer}"]
            torch.testing.assert_close(found.reshape(wanted.shape), wanted, atol=TOLERANCE, rtol=0)

    def check_logits(self, arm: str, logits: Tensor, valid: Tensor | None = None) -> None:
        wanted = self.expected[f"{arm}.logits"]
        if valid is not None:
            logits, wanted = logits[valid], wanted[valid]
        torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=0)


@cache
def opened(vector: Path, attention: str) -> Case:
    """Shared by all tests: a call leaves nothing behind on a model or an adapter."""
    return Case(vector, attention)


@pytest.fixture(params=["sdpa", "eager"])
def case(vector: Path, request: pytest.FixtureRequest) -> Case:
    return opened(vector, request.param)


def test_base_model_is_untouched_by_attaching(case: Case) -> None:
    logits = case.model(case.expected["input_ids"]).logits
    case.check_logits("base", logits)


def test_one_shot(case: Case) -> None:
    logits, state = case.forward(case.expected["input_ids"], case.adapter.zero_state())
    case.check_logits("oneshot", logits)
    case.check_state("oneshot", state)


def test_read_only(case: Case) -> None:
    _, written = case.forward(case.expected["input_ids"], case.adapter.zero_state())
    logits, after = case.forward(case.expected["readonly.input_ids"], written, writes=False)
    case.check_logits("readonly", logits)
    assert torch.equal(after.matrices, written.matrices)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 7, 12, 23])
def test_split_over_a_kv_cache(case: Case, cut: int) -> None:
    # The reference cannot split prompts if it writes once per message; compare with its result for the whole prompt.
    arm = "split" if "split.logits" in case.expected else "oneshot"
    ids, cache = case.expected["input_ids"], DynamicCache()
    first, state = case.forward(ids, case.adapter.zero_state(), part=slice(0, cut), unfinished=True, cache=cache)
    second, state = case.forward(ids, state, part=slice(cut, None), cache=cache)
    case.check_logits(arm, torch.cat([first, second], dim=1))
    case.check_state(arm, state)


def test_left_padded_batch(case: Case) -> None:
    if "leftpad.logits" not in case.expected:
        pytest.skip("no left-padded arm in this vector")
    ids, mask = case.expected["leftpad.input_ids"], case.expected["leftpad.attention_mask"]
    logits, state = case.forward(
        ids, case.adapter.zero_state(len(ids)), mask=mask, position_ids=case.expected["leftpad.position_ids"]
    )
    case.check_logits("leftpad", logits, mask.bool())
    case.check_state("leftpad", state)
