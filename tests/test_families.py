"""Each row of the family table is right: the memory reaches every attention layer, and corrects q, k, v and o.

The test observes q, k and v without the table: at the call of the attention function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltamem_agents.errors import UnsupportedModelError
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter, attach
from deltamem_agents.memory.attention import LayerMemory, MemoryCall
from deltamem_agents.memory.backbones import LAYOUTS, find_sites, with_cache
from tiny_models import (
    ATTENTIONS,
    FAMILIES,
    FULL,
    HIDDEN,
    LAYERS,
    attention_modules,
    lora_wrapped,
    random_adapter,
    random_ids,
    random_state,
    tiny_model,
)

SDPA_FAMILIES = tuple(family for family, attention in ATTENTIONS if attention == "sdpa")


def test_every_row_of_the_table_is_tested() -> None:
    assert {tiny_model(family, "eager").config.get_text_config().model_type for family in FAMILIES} == set(LAYOUTS)


@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_the_call_reaches_every_layer_with_and_without_a_cache(family: str, attention: str) -> None:
    model = tiny_model(family, attention)
    adapter = random_adapter(model)
    attach(model, adapter)
    ids, cache = random_ids(1, 6), DynamicCache(config=model.config.get_text_config())
    inputs = []
    for part, kept in ((ids, None), (ids[:, :4], cache), (ids[:, 4:], cache), (ids[:, :1], cache)):
        call = MemoryCall(random_state(adapter), write_mask=torch.ones_like(part, dtype=torch.bool), inputs={})
        with torch.no_grad():
            model(part, **({"use_cache": False} if kept is None else with_cache(model, kept)), **{CALL_KEYWORD: call})
        assert call.new_state().geometry == (LAYERS, 1, FULL.rank)
        assert call.inputs is not None
        assert {slot: tuple(x.shape) for slot, x in call.inputs.items()} == dict.fromkeys(
            range(LAYERS), (1, part.shape[1], HIDDEN)
        )
        inputs.append(call.inputs)
    assert cache.get_seq_length() == 7
    torch.testing.assert_close(inputs[1][0], inputs[0][0][:, :4])


@dataclass
class Seen:
    """The inputs and outputs of one attention layer: q, k, v by head, its input, and its output."""

    hidden: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    mixed: Tensor
    output: Tensor


@dataclass
class Probe:
    """Records the calls of the attention function, and the input and output of each attention module."""

    calls: list[tuple[Tensor, ...]] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def layer(self, index: int) -> Seen:
        return Seen(self.hidden[index], *self.calls[index], self.outputs[index])


@contextmanager
def probing(model: nn.Module, attentions: list[nn.Module]) -> Iterator[Probe]:
    probe, sdpa = Probe(), ALL_ATTENTION_FUNCTIONS["sdpa"]

    def record(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> object:
        mixed, weights = sdpa(module, q, k, v, *args, **kwargs)
        probe.calls.append((q, k, v, mixed))
        return mixed, weights

    def before(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        probe.hidden.append(args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, args: object, output: tuple[Tensor, ...]) -> None:
        probe.outputs.append(output[0])

    handles = [attention.register_forward_pre_hook(before, with_kwargs=True) for attention in attentions]
    handles += [attention.register_forward_hook(after) for attention in attentions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
        yield probe
    for handle in handles:
        handle.remove()


def reads_by_hand(memory: LayerMemory, state: Tensor, x: Tensor) -> Tensor:
    """r = S q with q = l2norm(tanh(W_q x)), for x (B, 1, hidden) and one state (B, r, r)."""
    raw = torch.tanh(x[:, 0] @ memory.memory_q_proj.T)
    return torch.einsum("bij,bj->bi", state, raw / raw.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("family", SDPA_FAMILIES)
def test_q_k_v_and_o_get_their_own_corrections(family: str) -> None:
    """The attention function sees base + (α/r) W^Δ r in each head, at a position that rotary leaves alone."""
    model = tiny_model(family)
    attentions = attention_modules(model)
    for attention in attentions:
        if hasattr(attention, "q_norm"):
            attention.q_norm = attention.k_norm = nn.Identity()
    ids, adapter = random_ids(3, 1), random_adapter(model)
    state = random_state(adapter, 3)

    with torch.no_grad(), probing(model, attentions) as base:
        model(ids)
    attachment = attach(model, adapter)
    # Registered after attaching, the probe's hooks see what the layer above will see.
    with torch.no_grad(), probing(model, attentions) as probe:
        model(ids, **{CALL_KEYWORD: MemoryCall(state)})
    attachment.detach()

    plain, seen, memory = base.layer(0), probe.layer(0), adapter.layer(0)
    torch.testing.assert_close(seen.hidden, plain.hidden, rtol=0, atol=0)
    reads = reads_by_hand(memory, state.matrices[:, 0, 0], plain.hidden)
    scale = FULL.alpha / FULL.rank
    for head in ("q", "k", "v"):
        delta = scale * reads @ getattr(memory, f"delta_{head}_proj").T
        # Flat in (head, head size) order, which is how a query's rows are numbered in every family.
        change = (getattr(seen, head) - getattr(plain, head))[:, :, 0].flatten(1)
        torch.testing.assert_close(change, delta, rtol=1e-5, atol=1e-5)
        assert change.norm() > 0.1
    o_proj = {"gpt2": "c_proj", "gpt_neox": "dense"}.get(family, "o_proj")
    expected = getattr(attentions[0], o_proj)(seen.mixed.flatten(2)) + (scale * reads @ memory.delta_o_proj.T)[:, None]
    torch.testing.assert_close(seen.output, expected, rtol=1e-5, atol=1e-5)


def test_gemma2_gets_its_corrections_as_gemma3_does() -> None:
    """gemma2 has no sdpa to probe; its projections are separate modules, checked one by one."""
    model = tiny_model("gemma2", "eager")
    adapter, ids = random_adapter(model), random_ids(3, 1)
    attention, memory, state = attention_modules(model)[0], adapter.layer(0), random_state(adapter, 3)
    outputs: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    attachment = attach(model, adapter)
    for head, found in outputs.items():
        getattr(attention, f"{head}_proj").register_forward_hook(lambda _, args, out, found=found: found.append(out))
    call = MemoryCall(state, inputs={})
    with torch.no_grad():
        model(ids, **{CALL_KEYWORD: call})
        attachment.detach()
        model(ids)
    assert call.inputs is not None
    reads = reads_by_hand(memory, state.matrices[:, 0, 0], call.inputs[0])
    for head, (changed, plain) in outputs.items():
        delta = FULL.alpha / FULL.rank * reads @ getattr(memory, f"delta_{head}_proj").T
        torch.testing.assert_close((changed - plain)[:, 0], delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_are_those_of_the_projections(family: str) -> None:
    model = tiny_model(family, "eager")
    x = torch.randn(1, 1, HIDDEN)
    for site in find_sites(model):
        projected = {head: site.projections[head](x).shape[-1] for head in ("q", "k", "v")}
        widths = {"q": site.widths.q, "k": site.widths.k, "v": site.widths.v}
        if site.layout.fused:
            assert set(projected.values()) == {sum(widths.values())}
        else:
            assert projected == widths
        assert site.projections["o"](torch.randn(1, 1, site.widths.q)).shape[-1] == site.widths.o == HIDDEN


@pytest.mark.parametrize("fused", ["phi3", "gpt2", "gpt_neox"])
def test_a_correction_of_a_fused_projection_leaves_the_other_parts_bit_for_bit(fused: str) -> None:
    site = find_sites(tiny_model(fused))[0]
    total = site.widths.q + site.widths.k + site.widths.v
    output = torch.randn(2, 3, total)
    changed = [site.correct(h, output, torch.ones(2, 3, getattr(site.widths, h))) != output for h in ("q", "k", "v")]
    assert torch.equal(torch.stack(changed).sum(0), torch.ones(2, 3, total, dtype=torch.long))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_loss_is_computed_with_a_memory_attached(family: str) -> None:
    model = tiny_model(family)
    adapter, ids = random_adapter(model), random_ids(2, 5)
    with torch.no_grad():
        attach(model, adapter)
        out = model(ids, labels=ids, **{CALL_KEYWORD: MemoryCall(random_state(adapter, 2))})
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_bare_decoder_carries_a_memory_too(family: str) -> None:
    model = tiny_model(family)
    decoder = model.get_decoder()
    adapter, ids = random_adapter(model), random_ids(2, 5)
    calls = [MemoryCall(random_state(adapter, 2), write_mask=torch.ones_like(ids, dtype=torch.bool)) for _ in range(2)]
    with torch.no_grad():
        attachment = attach(model, adapter)
        model(ids, **{CALL_KEYWORD: calls[0]})
        attachment.detach()
        attach(decoder, adapter)
        decoder(ids, **{CALL_KEYWORD: calls[1]})
    assert torch.equal(calls[0].new_state().matrices, calls[1].new_state().matrices)


def test_an_unknown_family_is_refused_by_name() -> None:
    config = transformers.OPTConfig(
        vocab_size=8, hidden_size=8, word_embed_proj_dim=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="'opt' is not supported") as refusal:
        find_sites(model)
    assert all(family in str(refusal.value) for family in LAYOUTS)


def test_a_module_that_is_no_transformers_model_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Linear is not a transformers model.*llama"):
        find_sites(nn.Linear(2, 2))


def test_a_model_without_its_usual_modules_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"'llama'.*q_proj"):
        find_sites(model)


def test_a_wrapper_shows_the_layers_it_wraps() -> None:
    model = tiny_model("llama")
    plain = [site.attention for site in find_sites(model)]
    wrapped = [site.attention for site in find_sites(lora_wrapped(model))]
    assert all(a is b for a, b in zip(plain, wrapped, strict=True))


def test_an_adapter_knows_the_sizes_it_was_made_for() -> None:
    adapter = Adapter.for_model(FULL, tiny_model("qwen3"))
    assert (adapter.config.layers, adapter.config.hidden_size) == (LAYERS, HIDDEN)
    assert adapter.layer(0).widths.q == 48 and adapter.layer(0).widths.k == 24
