"""The laws of a memory on a model, for every family, attention implementation and variant of the memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import StateError
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter, attach
from deltamem_agents.memory.attention import MemoryCall, TokenWrites
from deltamem_agents.memory.backbones import with_cache
from deltamem_agents.memory.state import MemoryState
from tiny_models import (
    ATTENTIONS,
    FAMILIES,
    FULL,
    LAYERS,
    MESSAGE_MEAN,
    VARIANTS,
    Subject,
    anatomy,
    attention_modules,
    close,
    lora_wrapped,
    quantise_attention,
    random_adapter,
    random_ids,
    random_state,
    tiny_model,
)


def weights_hash(model: nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def build(name: str, attention: str) -> nn.Module:
    if name == "llama-int8":
        return quantise_attention(tiny_model("llama", attention))
    if name == "llama-lora":
        return lora_wrapped(tiny_model("llama", attention))
    return tiny_model(name, attention)


MODELS: Mapping[str, tuple[str, str]] = {
    f"{name}-{attention}": (name, attention)
    for name, attention in (*ATTENTIONS, *product(("llama-int8", "llama-lora"), ("sdpa", "eager")))
}
CASES: Mapping[str, tuple[str, str, AdapterConfig]] = {
    **{label: (*where, FULL) for label, where in MODELS.items()},
    # Gives gemma2 two cases like every other family, so that each family has one case per padding side.
    "gemma2-eager-again": ("gemma2", "eager", FULL),
    **{f"llama-sdpa-{label}": ("llama", "sdpa", config) for label, config in VARIANTS.items()},
    "llama-sdpa-message-mean": ("llama", "sdpa", MESSAGE_MEAN),
    "gpt_neox-eager-message-mean": ("gpt_neox", "eager", MESSAGE_MEAN),
    "gemma3-eager-key-shift-msw": ("gemma3", "eager", VARIANTS["key-shift-msw"]),
    "phi3-eager-key-shift-msw": ("phi3", "eager", VARIANTS["key-shift-msw"]),
    "gpt_neox-eager-floored-gates": ("gpt_neox", "eager", VARIANTS["floored-gates"]),
}


class Case(Subject):
    """`side`: where its batches are padded. It alternates, so that families, variants and sides meet pairwise."""

    side: str


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], tuple[nn.Module, str]]:
    return {}


# Half of the cases are fast tests: one attention implementation per family, alternating, and every second variant.
CASES_AND_SIDES = [
    pytest.param((case, side), id=label, marks=[pytest.mark.slow] if (n + n // 2) % 2 else [])
    for n, ((label, case), side) in enumerate(zip(CASES.items(), cycle(("left", "right")), strict=False))
]


@pytest.fixture(params=CASES_AND_SIDES)
def subject(request: pytest.FixtureRequest, models: dict[tuple[str, str], tuple[nn.Module, str]]) -> Iterator[Case]:
    """A model shared by all tests, so that laws hold after any other use. Checks that a test leaves it unchanged."""
    (name, attention, config), side = request.param
    if (name, attention) not in models:
        model = build(name, attention)
        models[name, attention] = model, weights_hash(model)
    model, digest = models[name, attention]
    case = Case(model, config)
    case.side = side
    yield case
    assert weights_hash(model) == digest
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def attached(subject: Case) -> Iterator[Case]:
    attachment = attach(subject.model, subject.adapter)
    try:
        with torch.no_grad():
            yield subject
    finally:
        attachment.detach()


def test_zero_state_without_writes_is_the_base_bit_for_bit(attached: Subject) -> None:
    ids, zero = random_ids(2, 11), attached.adapter.zero_state(2)
    logits, state = attached.run(ids, zero, writes=False)
    assert torch.equal(logits, attached.base(ids))
    assert torch.equal(state.matrices, zero.matrices)
    cache, plain = attached.cache(), attached.cache()
    for part in (ids[:, :7], ids[:, 7:]):
        logits, zero = attached.run(part, zero, writes=False, cache=cache)
        assert torch.equal(logits, attached.base(part, **with_cache(attached.model, plain)))


def test_a_state_changes_the_logits_and_writing_changes_the_state(attached: Subject) -> None:
    ids, state = random_ids(1, 6), random_state(attached.adapter)
    logits, unchanged = attached.run(ids, state, writes=False)
    assert (logits - attached.base(ids)).abs().amax(-1).min() > 1e-3
    assert torch.equal(unchanged.matrices, state.matrices)
    _, written = attached.run(ids, state)
    assert (written.matrices - state.matrices).flatten(2).norm(dim=-1).min() > 1e-2


def test_without_the_keyword_the_base_is_unchanged_bit_for_bit(subject: Subject) -> None:
    ids = random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    before = subject.base(ids, attention_mask=mask)
    attachment = attach(subject.model, subject.adapter)
    with torch.no_grad():
        subject.run(ids, random_state(subject.adapter, 2))
    assert torch.equal(subject.base(ids, attention_mask=mask), before)
    attachment.detach()


def test_detaching_restores_the_object(subject: Subject) -> None:
    ids = random_ids(1, 5)
    before, logits = anatomy(subject.model), subject.base(ids)
    attachment = attach(subject.model, subject.adapter)
    assert anatomy(subject.model) != before
    with torch.no_grad():
        subject.run(ids, subject.adapter.zero_state())
    attachment.detach()
    attachment.detach()
    assert anatomy(subject.model) == before
    assert torch.equal(subject.base(ids), logits)


GATED: Mapping[str, AdapterConfig] = {
    "floored-gates": VARIANTS["floored-gates"],
    "no-lambda": replace(VARIANTS["floored-gates"], state_update_mode="no_lambda", rankwise_gates=False),
    "o-rmsnorm": replace(FULL, read_gate=True, gate_floor=0.1, delta_o_rmsnorm=True),
}


def set_gates(subject: Subject, gate: str, logit: float) -> None:
    """Fix all gates of one kind, "read" or "beta", at one logit for every token."""
    with torch.no_grad():
        for slot in range(len(subject.adapter.indices)):
            subject.adapter.layer(slot).get_parameter(f"{gate}_proj").zero_()
            subject.adapter.layer(slot).get_parameter(f"{gate}_bias").fill_(logit)


@pytest.mark.parametrize(("family", "config"), [*zip(FAMILIES, cycle(GATED.values()), strict=False)], ids=[*FAMILIES])
def test_a_closed_read_gate_leaves_the_models_logits_bit_for_bit(family: str, config: AdapterConfig) -> None:
    subject = Subject(tiny_model(family, "eager"), config)
    ids, state = random_ids(2, 9), random_state(subject.adapter, 2)
    attach(subject.model, subject.adapter)
    with torch.no_grad():
        assert not torch.equal(subject.run(ids, state)[0], subject.base(ids))
        set_gates(subject, "read", -3.0)
        logits, new = subject.run(ids, state)
    assert torch.equal(logits, subject.base(ids))
    assert not torch.equal(new.matrices, state.matrices)


@pytest.mark.parametrize("config", GATED.values(), ids=GATED.keys())
def test_a_closed_write_gate_leaves_the_state_bit_for_bit_over_many_tokens(config: AdapterConfig) -> None:
    subject = Subject(tiny_model("llama"), config)
    start = random_state(subject.adapter, 2)
    attach(subject.model, subject.adapter)
    set_gates(subject, "beta", -3.0)
    with torch.no_grad():
        state = start
        for seed in range(5):
            logits, state = subject.run(random_ids(2, 60, seed=seed), state.settled())
    assert torch.equal(state.matrices, start.matrices)
    assert not torch.equal(logits, subject.base(random_ids(2, 60, seed=4)))


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_an_open_read_gate_equals_no_read_gate(floor: float) -> None:
    gated = Subject(tiny_model("llama"), replace(FULL, read_gate=True, gate_floor=floor))
    plain = Subject(tiny_model("llama"), replace(FULL, gate_floor=floor))
    shared = plain.adapter.state_dict()
    gated.adapter.load_state_dict({**gated.adapter.state_dict(), **shared})
    set_gates(gated, "read", 50.0)
    ids, state = random_ids(2, 9), random_state(plain.adapter, 2)
    for subject in (gated, plain):
        attach(subject.model, subject.adapter)
    with torch.no_grad():
        (logits, new), (expected, after) = (subject.run(ids, state) for subject in (gated, plain))
    assert torch.equal(logits, expected) and torch.equal(new.matrices, after.matrices)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_read_scope_replies_no_other_token_reads(family: str) -> None:
    """Logits before the first marked token are the frozen model's. Without marks every token reads."""
    subject = Subject(tiny_model(family, "eager"), VARIANTS["replies-only"])
    everywhere = Subject(subject.model, FULL)
    everywhere.adapter.load_state_dict(subject.adapter.state_dict())
    ids, state, speaks = random_ids(2, 9), random_state(subject.adapter, 2), torch.arange(9).expand(2, 9) >= 6
    results: dict[str, tuple[Tensor, MemoryState]] = {}
    for name, (one, replies, start) in {
        "scoped": (subject, speaks, state),
        "scoped, nothing marked": (subject, None, state),
        "everywhere": (everywhere, speaks, state),
        "nobody speaks": (subject, torch.zeros_like(speaks), state),
    }.items():
        attachment = attach(one.model, one.adapter)
        call = MemoryCall(start, write_mask=torch.ones_like(speaks), replies=replies)
        with torch.no_grad():
            logits = one.model(input_ids=ids, **{CALL_KEYWORD: call}).logits
        results[name] = logits, call.new_state()
        attachment.detach()
    base, scoped = subject.base(ids), results["scoped"][0]
    # An expert multiplies all tokens routed to it at once, so later tokens affect the rounding of earlier ones.
    tolerance = 1e-5 if family == "qwen3_moe" else 0.0
    torch.testing.assert_close(scoped[:, :6], base[:, :6], rtol=tolerance, atol=tolerance)
    assert not torch.equal(scoped[:, 6:], base[:, 6:])
    assert torch.equal(results["nobody speaks"][0], base)
    for one, other in zip(results["scoped, nothing marked"], results["everywhere"], strict=True):
        tensors = [value.matrices if isinstance(value, MemoryState) else value for value in (one, other)]
        assert torch.equal(*tensors)
    assert not torch.equal(results["everywhere"][0][:, :6], base[:, :6])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("writes", [False, True], ids=["reads", "collects"])
def test_reads_from_a_position_on_are_those_of_all_tokens(family: str, writes: bool) -> None:
    """`reads_from` computes less, and nothing else: logits, queries, carry and writes are the same, also padded."""
    subject = Subject(tiny_model(family, "eager"), replace(VARIANTS["replies-only"], key_shift=True))
    ids, state, speaks = random_ids(2, 9), random_state(subject.adapter, 2), torch.arange(9).expand(2, 9) >= 6
    valid = torch.arange(9) >= torch.tensor([[1], [3]])
    calls, logits = [], []
    attachment = attach(subject.model, subject.adapter)
    for start in (0, 6):
        written: dict[int, TokenWrites] | None = {} if writes else None
        mask = valid & ~speaks if writes else None
        call = MemoryCall(
            state, valid, mask, replies=speaks, queries={}, written=written, applies=False, reads_from=start
        )
        with torch.no_grad():
            logits.append(subject.model(input_ids=ids, **{CALL_KEYWORD: call}).logits)
        calls.append(call)
    attachment.detach()
    close(*logits)
    assert not torch.equal(logits[0], subject.base(ids))
    whole, part = calls
    for slot in range(LAYERS):
        assert whole.queries is not None and part.queries is not None
        close(part.queries[slot][:, :, -3:], whole.queries[slot][:, :, -3:])
        close(part.carries[slot], whole.carries[slot])
        if whole.written and part.written:
            close(part.written[slot].keys, whole.written[slot].keys)
    assert torch.equal(part.new_state().matrices, state.matrices)


def test_where_no_token_reads_the_pass_is_the_frozen_models() -> None:
    subject = Subject(tiny_model("llama", "sdpa"), VARIANTS["replies-only"])
    ids, state = random_ids(2, 9), random_state(subject.adapter, 2)
    attachment = attach(subject.model, subject.adapter)
    call = MemoryCall(state, torch.ones(2, 9, dtype=torch.bool), collect=True, reads_from=9)
    with torch.no_grad():
        logits = subject.model(input_ids=ids, **{CALL_KEYWORD: call}).logits
    attachment.detach()
    assert torch.equal(logits, subject.base(ids))
    assert call.ratios == [0.0] * LAYERS and torch.equal(call.new_state().matrices, state.matrices)


def test_each_state_head_has_its_own_read_gate() -> None:
    """A closed gate leaves out its own head's state and nothing else."""
    subject = Subject(tiny_model("llama"), replace(VARIANTS["floored-gates"], key_shift=False))
    attach(subject.model, subject.adapter)
    set_gates(subject, "read", 50.0)
    ids, state = random_ids(1, 6), random_state(subject.adapter)
    without = state.matrices.clone()
    without[:, :, 1] = 0
    with torch.no_grad():
        expected, _ = subject.run(ids, MemoryState(without), writes=False)
        for slot in range(LAYERS):
            subject.adapter.layer(slot).read_bias[1] = -50.0
        found, _ = subject.run(ids, state, writes=False)
    close(found, expected)


@pytest.mark.parametrize(
    ("variant", "weight", "plain"),
    [
        ("hidden-gates", "beta_hidden_proj", {"gate_hidden": 0}),
        ("gates-on-reads", "found_proj", {"gate_on_reads": False}),
    ],
)
def test_gates_with_extra_inputs_equal_plain_gates_if_the_extra_weights_are_zero(
    variant: str, weight: str, plain: dict[str, Any]
) -> None:
    model = tiny_model("llama")
    adapter = random_adapter(model, VARIANTS[variant])
    less = random_adapter(model, replace(VARIANTS[variant], **plain))
    own = dict(less.named_parameters())
    less.load_state_dict({name: w for name, w in adapter.state_dict().items() if name in own})
    ids, state = random_ids(1, 6), random_state(adapter)
    found = []
    for one, weighs in ((less, True), (adapter, True), (adapter, False)):
        if not weighs:
            with torch.no_grad():
                for slot in range(LAYERS):
                    one.layer(slot).get_parameter(weight).zero_()
        attachment = attach(model, one)
        call = MemoryCall(state, write_mask=torch.ones(1, 6, dtype=torch.bool))
        with torch.no_grad():
            logits = model(input_ids=ids, **{CALL_KEYWORD: call}).logits
        attachment.detach()
        found.append((logits, call.new_state().matrices))
    for plain_one, silent_one, seeing in zip(found[0], found[2], found[1], strict=True):
        close(plain_one, silent_one)
        assert not torch.allclose(plain_one, seeing)


def test_a_read_gate_depends_on_the_reads_of_its_own_and_earlier_layers() -> None:
    model = tiny_model("llama")
    adapter = random_adapter(model, VARIANTS["gates-on-reads"])
    attachment = attach(model, adapter)
    calls = [MemoryCall(random_state(adapter)) for _ in range(2)]
    with torch.no_grad():
        model(input_ids=random_ids(1, 6), **{CALL_KEYWORD: calls[0]})
        adapter.layer(1).found_proj.zero_()
        model(input_ids=random_ids(1, 6), **{CALL_KEYWORD: calls[1]})
    attachment.detach()
    first, second = calls
    assert torch.equal(second.found[1], second.found[0]) and torch.equal(first.found[0], second.found[0])
    assert bool(first.found[0].any()) and not torch.allclose(first.found[1], first.found[0])


def test_with_gate_votes_a_write_gates_logit_is_the_mean_of_its_own_and_earlier_layers() -> None:
    """With equal logits in all layers votes change nothing; a layer with another logit changes later layers' gates."""
    model = tiny_model("llama")
    adapter = random_adapter(model, VARIANTS["gate-votes"])
    plain = random_adapter(model, replace(VARIANTS["gate-votes"], gate_votes=False))
    ids, state = random_ids(1, 6), random_state(adapter)

    def written(one: Adapter, *logits: float) -> Tensor:
        one.load_state_dict(adapter.state_dict())
        with torch.no_grad():
            for slot, logit in enumerate(logits):
                for weight in ("beta_proj", "beta_hidden_proj"):
                    one.layer(slot).get_parameter(weight).zero_()
                one.layer(slot).beta_bias.fill_(logit)
        attachment = attach(model, one)
        call = MemoryCall(state, write_mask=torch.ones(1, 6, dtype=torch.bool))
        with torch.no_grad():
            model(input_ids=ids, **{CALL_KEYWORD: call})
        attachment.detach()
        return call.new_state().matrices

    close(written(adapter, 0.5, 0.5), written(plain, 0.5, 0.5))
    close(written(adapter, 3.0, 0.0), written(plain, 3.0, 1.5))
    assert not torch.allclose(written(plain, 3.0, 0.0), written(plain, 3.0, 1.5))


def test_the_last_layer_adds_the_sum_of_all_readouts() -> None:
    """Layers before the last are as without a readout."""
    model = tiny_model("llama")
    adapter = random_adapter(model, VARIANTS["readout"])
    plain = random_adapter(model, replace(VARIANTS["readout"], readout=False))
    plain.load_state_dict({name: w for name, w in adapter.state_dict().items() if "readout" not in name})
    ids, state = random_ids(1, 6), random_state(adapter)
    outputs: list[list[torch.Tensor]] = []
    for one in (plain, adapter):
        said: list[torch.Tensor] = []
        attachment = attach(model, one)
        hooks = [m.register_forward_hook(lambda *a, said=said: said.append(a[2][0])) for m in attention_modules(model)]
        call = MemoryCall(state)
        with torch.no_grad():
            model(input_ids=ids, **{CALL_KEYWORD: call})
        outputs.append(said)
        for handle in hooks:
            handle.remove()
        attachment.detach()
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert sorted(call.readouts) == [0, 1] and all(bool(x.any()) for x in call.readouts.values())
    torch.testing.assert_close(outputs[1][1], outputs[0][1] + call.readouts[0] + call.readouts[1])


def test_a_split_prompt_equals_the_whole_prompt(attached: Subject) -> None:
    ids, start = random_ids(2, 12), random_state(attached.adapter, 2)
    messages = torch.arange(12).expand_as(ids) // 5
    whole, end = attached.run(ids, start, message_ids=messages)
    cache, state, parts = attached.cache(), start, []
    for part in torch.tensor_split(torch.arange(12), (1, 4, 5, 9)):
        more = int(part[-1]) < 11
        logits, state = attached.run(ids[:, part], state, cache=cache, message_ids=messages[:, part], unfinished=more)
        parts.append(logits)
    close(torch.cat(parts, dim=1), whole)
    close(state.matrices, end.matrices)
    assert state.open is None


def test_at_every_cut_the_state_is_as_if_nothing_followed(attached: Subject) -> None:
    ids, start = random_ids(2, 9), random_state(attached.adapter, 2)
    messages = torch.arange(9).expand_as(ids) // 4
    for cut in (1, 4, 5, 8):
        _, ended = attached.run(ids[:, :cut], start, message_ids=messages[:, :cut])
        _, going_on = attached.run(ids[:, :cut], start, message_ids=messages[:, :cut], unfinished=True)
        assert torch.equal(going_on.settled().matrices, ended.matrices)


def ragged(lengths: tuple[int, ...], side: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sequences, their batch padded on one side to the longest, and the mask of its valid tokens."""
    rows = [random_ids(1, length, seed=length) for length in lengths]
    width = max(lengths)
    pads = [(width - n, 0) if side == "left" else (0, width - n) for n in lengths]
    batch = torch.cat([nn.functional.pad(row, pad, value=7) for row, pad in zip(rows, pads, strict=True)])
    seen = torch.cat([nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]).bool()
    return rows, batch, seen


def test_padded_and_batched_results_equal_those_of_the_sequence_alone(attached: Case) -> None:
    rows, batch, seen = ragged((10, 6, 1), attached.side)
    start = random_state(attached.adapter, 3)
    ids = torch.where(seen, (seen.long().cumsum(1) - 1) // 3, -1) if attached.per_message else None
    logits, end = attached.run(batch, start, seen=seen, message_ids=ids)
    for i, row in enumerate(rows):
        alone, state = attached.run(row, start[i])
        close(logits[i][seen[i]], alone[0])
        close(end[i].matrices, state.matrices)


def test_split_results_of_a_padded_batch_equal_those_of_the_sequence_alone(attached: Case) -> None:
    """Feeds a chunk of many tokens after a cache, with padding in both."""
    first, second = (4, 4, 4), (5, 2, 1)
    if attached.side == "left":
        # A sliding window counts padding inside it, with or without a memory, so padding may only come first there.
        sliding = getattr(attached.model.config.get_text_config(), "sliding_window", None)
        first, second = (6, 3, 1), (4, 4, 4) if sliding else (5, 2, 4)
    start = state = random_state(attached.adapter, 3)
    cache, seen, parts = attached.cache(), torch.ones(3, 0, dtype=torch.bool), []
    chunks = [ragged(lengths, attached.side) for lengths in (first, second)]
    for place, (_, batch, valid) in enumerate(chunks):
        seen = torch.cat([seen, valid], dim=1)
        messages = ((seen.long().cumsum(1) - 1).clamp_min(0) // 3)[:, -batch.shape[1] :]
        logits, state = attached.run(batch, state, seen=seen, cache=cache, message_ids=messages, unfinished=place == 0)
        parts.append(logits)
    for i in range(3):
        alone, end = attached.run(torch.cat([rows[i] for rows, _, _ in chunks], dim=1), start[i])
        close(torch.cat(parts, dim=1)[i][seen[i]], alone[0])
        close(state[i].matrices, end.matrices)


def test_padding_is_not_written_even_if_it_is_nan(attached: Subject) -> None:
    """A model's results at padding are undefined; half precision overflows there first."""
    rows, batch, seen = ragged((7, 4), "left")
    start = random_state(attached.adapter, 2)
    ids = torch.where(seen, (seen.long().cumsum(1) - 1) // 3, -1) if attached.per_message else None

    def spoil(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
        hidden = (args[0] if args else kwargs["hidden_states"]).masked_fill(~seen[..., None], float("nan"))
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    index = attached.adapter.indices[0]
    handle = attention_modules(attached.model)[index].register_forward_pre_hook(spoil, with_kwargs=True, prepend=True)
    try:
        _, end = attached.run(batch, start, seen=seen, message_ids=ids)
    finally:
        handle.remove()
    for i, row in enumerate(rows):
        close(end[i].matrices[:, 0], attached.run(row, start[i])[1].matrices[:, 0])


def test_two_sequences_in_one_batch_never_touch(subject: Subject) -> None:
    """No derivative leads from one sequence's tokens or state to the other's logits or new state."""
    attachment = attach(subject.model, subject.adapter.requires_grad_(False))
    ids = random_ids(2, 6)
    before = random_state(subject.adapter, 2).matrices.requires_grad_()
    embedded = subject.model.get_input_embeddings()(ids).detach().requires_grad_()
    call = MemoryCall(
        MemoryState(before),
        write_mask=torch.ones_like(ids, dtype=torch.bool),
        message_ids=torch.zeros_like(ids) if subject.per_message else None,
    )
    logits = subject.model(inputs_embeds=embedded, **{CALL_KEYWORD: call}).logits
    (logits[0].square().sum() + call.new_state().matrices[0].square().sum()).backward()
    attachment.detach()
    assert before.grad is not None and embedded.grad is not None
    for gradient in (before.grad, embedded.grad):
        assert gradient[0].norm() > 0
        assert not gradient[1].any()


def gradients(subject: Subject, ids: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss on the logits while writing and on those of a second pass that reads the written state."""
    subject.adapter.requires_grad_(True).zero_grad(set_to_none=True)
    written, state = subject.run(ids, random_state(subject.adapter, len(ids)))
    answered, _ = subject.run(ids.flip(1), state.settled(), writes=False)
    target = random_ids(*ids.shape, seed=9).flatten()
    loss = sum(nn.functional.cross_entropy(logits.flatten(0, 1), target) for logits in (written, answered))
    loss.backward()
    return {name: p.grad for name, p in subject.adapter.named_parameters() if p.grad is not None}


def test_gradient_reaches_every_adapter_weight_and_no_base_weight(subject: Subject) -> None:
    attachment = attach(subject.model, subject.adapter)
    found = gradients(subject, random_ids(2, 6))
    attachment.detach()
    assert found.keys() == dict(subject.adapter.named_parameters()).keys()
    assert all(bool(gradient.isfinite().all()) and gradient.norm() > 0 for gradient in found.values())
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_the_base_gives_the_same_gradients(family: str) -> None:
    subject = Subject(tiny_model(family, "eager"), VARIANTS["key-shift"])
    attach(subject.model, subject.adapter)
    ids = random_ids(2, 6)
    plain = gradients(subject, ids)
    subject.model.train()
    subject.model.activation_checkpointing_enable()
    forwards: list[nn.Module] = []
    for attention in attention_modules(subject.model):
        attention.register_forward_hook(lambda module, *_: forwards.append(module))
    checkpointed = gradients(subject, ids)
    assert len(forwards) == 2 * LAYERS * 2, "each of the two passes runs every layer again"
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_checkpointing_that_would_lose_gradients_is_refused() -> None:
    subject = Subject(tiny_model("llama", "eager"))
    attach(subject.model, subject.adapter)
    subject.model.train()
    subject.model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(StateError, match="use_reentrant=False"):
        gradients(subject, random_ids(2, 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_threads_on_one_model_do_not_see_each_other(family: str) -> None:
    """Both are held inside the same attention layer at once, between its read and its corrections."""
    subject = Subject(tiny_model(family, "eager"))
    jobs = [(random_ids(1, 6, seed=i), random_state(subject.adapter, seed=10 + i)) for i in range(2)]
    meet = threading.Barrier(2, timeout=60)
    waiting = False

    def wait(*_: object) -> None:
        if waiting:
            meet.wait()

    for attention in attention_modules(subject.model):
        for projection in attention.children():
            projection.register_forward_hook(wait)
    attach(subject.model, subject.adapter)
    with torch.no_grad():
        alone = [subject.run(*job) for job in jobs]
    waiting, found = True, {}

    def work(index: int) -> None:
        with torch.no_grad():
            found[index] = subject.run(*jobs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (logits, state) in enumerate(alone):
        close(found[index][0], logits)
        close(found[index][1].matrices, state.matrices)
