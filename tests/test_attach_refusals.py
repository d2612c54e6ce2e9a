"""Laws of the errors of attaching, and how a memory works with half precision, LoRA and `generate`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import AdapterError, StateError, UnsupportedModelError
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter, attach
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.state import MemoryState
from tiny_models import (
    FULL,
    LAYERS,
    MESSAGE_MEAN,
    VARIANTS,
    Subject,
    anatomy,
    close,
    lora_wrapped,
    random_adapter,
    random_ids,
    random_state,
    tiny_model,
)


def test_attaching_twice_is_refused_also_through_a_wrapper() -> None:
    model = tiny_model("llama")
    wrapped, adapter = lora_wrapped(model), random_adapter(model)
    attachment = attach(model, adapter)
    for shared in (model, wrapped, model.model):
        with pytest.raises(UnsupportedModelError, match="carries a memory already"):
            attach(shared, adapter)
    attachment.detach()
    second = attach(wrapped, adapter)
    attachment.detach()
    with pytest.raises(UnsupportedModelError, match="carries a memory already"):
        attach(model, adapter)
    second.detach()


def test_a_lora_added_after_attaching_changes_nothing_about_the_memory() -> None:
    ids, models = random_ids(1, 6), [tiny_model("llama"), tiny_model("llama")]
    before = Subject(lora_wrapped(models[0]))
    attach(before.model, before.adapter)
    attach(models[1], random_adapter(models[1]))
    after = Subject(lora_wrapped(models[1]))
    with torch.no_grad():
        close(after.run(ids, random_state(after.adapter))[0], before.run(ids, random_state(before.adapter))[0])


def test_an_adapter_for_other_sizes_is_refused_and_leaves_no_hook() -> None:
    model, other = tiny_model("llama"), tiny_model("qwen3")
    before = anatomy(model)
    with pytest.raises(AdapterError, match=r"q=48.*q=32"):
        attach(model, random_adapter(other))
    deeper = random_adapter(model)
    deeper.config = replace(deeper.config, layers=3)
    with pytest.raises(AdapterError, match="3 layers, this one has 2"):
        attach(model, deeper)
    assert anatomy(model) == before


@pytest.mark.parametrize("name, value", [("layers", 5), ("hidden_size", 64)])
def test_a_config_for_other_sizes_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(AdapterError, match=f"{name}={value}"):
        Adapter.for_model(replace(FULL, **{name: value}), tiny_model("llama"))


@pytest.mark.parametrize("config", [FULL, VARIANTS["key-shift-msw"], MESSAGE_MEAN], ids=["tsw", "msw", "ssw"])
def test_generate_without_the_keyword_is_the_base(config: AdapterConfig) -> None:
    model = tiny_model("llama")
    assert isinstance(model, PreTrainedModel)
    ids = random_ids(1, 4)
    before = model.generate(ids, max_new_tokens=6, do_sample=False)
    attach(model, random_adapter(model, config))
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), before)


def test_a_half_precision_base_keeps_a_float32_state() -> None:
    subject = Subject(tiny_model("llama").to(torch.bfloat16))
    attach(subject.model, subject.adapter)
    ids = random_ids(1, 6)
    with torch.no_grad():
        base = subject.base(ids)
        logits, _ = subject.run(ids, subject.adapter.zero_state(), writes=False)
        steered, state = subject.run(ids, random_state(subject.adapter))
    assert torch.equal(logits, base) and logits.dtype == torch.bfloat16
    assert state.matrices.dtype == torch.float32 and steered.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [FULL, VARIANTS["key-shift"], MESSAGE_MEAN], ids=["tsw", "key-shift", "ssw"])
def test_autocast_reaches_the_base_and_not_the_memory(config: AdapterConfig) -> None:
    """The new state equals that of the same inputs without autocast, bit for bit."""
    subject = Subject(tiny_model("llama"), replace(config, target_layers=(0,)))
    attach(subject.model, subject.adapter)
    ids, start = random_ids(1, 9), random_state(subject.adapter)
    with torch.no_grad():
        _, plain = subject.run(ids, start)
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = subject.run(ids, start)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(state.matrices, plain.matrices)


def test_message_mean_without_message_ids_is_refused() -> None:
    subject = Subject(tiny_model("llama"), MESSAGE_MEAN)
    attach(subject.model, subject.adapter)
    ids = random_ids(1, 4)
    call = MemoryCall(subject.adapter.zero_state(), write_mask=torch.ones_like(ids, dtype=torch.bool))
    with pytest.raises(StateError, match="message_ids"):
        subject.model(ids, **{CALL_KEYWORD: call})


def test_only_tokens_of_a_message_are_written_by_message_mean() -> None:
    subject = Subject(tiny_model("llama"), MESSAGE_MEAN)
    attach(subject.model, subject.adapter)
    ids, start = random_ids(1, 6), random_state(subject.adapter)
    with torch.no_grad():
        _, none = subject.run(ids, start, message_ids=torch.full_like(ids, -1))
        _, head = subject.run(ids, start, message_ids=torch.tensor([[0, 0, 0, -1, -1, -1]]))
        _, short = subject.run(ids[:, :3], start, message_ids=torch.zeros(1, 3, dtype=torch.long))
    assert torch.equal(none.matrices, start.matrices)
    close(head.matrices, short.matrices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": MemoryState.zeros(3, LAYERS, 1, 4)}, "holds 3 sequences, the input 2"),
        ({"state": MemoryState.zeros(2, LAYERS, 1, 8)}, r"\(2, 1, 8\).*r = 4"),
        ({"state": MemoryState.zeros(2, LAYERS, 2, 4)}, r"\(2, 2, 4\).*1 heads"),
        ({"state": MemoryState.zeros(2, 1, 1, 4)}, r"\(1, 1, 4\).*more than 1 layers"),
        ({"state": MemoryState.zeros(2, 3, 1, 4)}, "2 of 3 memory layers"),
        ({"token_mask": torch.ones(2, 4, dtype=torch.bool)}, r"token_mask has shape \(2, 4\), expected \(2, 5\)"),
        ({"write_mask": torch.ones(2, 5)}, "write_mask is torch.float32, expected bool"),
        ({"token_mask": torch.ones(2, 5, dtype=torch.long)}, "token_mask is torch.int64, expected bool"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_and_the_next_one_works(change: dict[str, object], message: str) -> None:
    subject = Subject(tiny_model("llama"))
    attach(subject.model, subject.adapter)
    ids = random_ids(2, 5)
    call = MemoryCall(**{"state": random_state(subject.adapter, 2), **change})
    with torch.no_grad():
        wanted = subject.base(ids)
        with pytest.raises(StateError, match=message):
            subject.model(ids, **{CALL_KEYWORD: call})
            call.new_state()
        assert torch.equal(subject.base(ids), wanted)


def test_a_call_that_was_never_run_has_no_new_state() -> None:
    with pytest.raises(StateError, match=r"0 of 2 memory layers.*attached"):
        MemoryCall(MemoryState.zeros(1, LAYERS, 1, 4)).new_state()
