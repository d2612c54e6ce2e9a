"""Random two-layer models of every supported family, random adapters for them, and one call of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from deltamem_agents.config import AdapterConfig
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import with_cache
from deltamem_agents.memory.state import MemoryState

VOCAB = 64
LAYERS = 2
HIDDEN = 32
WINDOW = 5

_DECODER: Mapping[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# A head size other than hidden / heads, so that no two widths of a layer are equal by accident.
_WIDE: Mapping[str, object] = {**_DECODER, "head_dim": 12}
_MIXED: Mapping[str, object] = {
    **_WIDE,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _gemma3_multimodal() -> PreTrainedConfig:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3Config(
        text_config=dict(_MIXED), vision_config={**vision, "image_size": 16, "patch_size": 8}, mm_tokens_per_image=4
    )


_CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_DECODER),
    "mistral": lambda: transformers.MistralConfig(**_WIDE, sliding_window=WINDOW),
    "qwen2": lambda: transformers.Qwen2Config(**_DECODER),
    "qwen3": lambda: transformers.Qwen3Config(**_WIDE),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**_DECODER, no_rope_layers=[1, 0]),
    "gemma2": lambda: transformers.Gemma2Config(**_MIXED),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**_MIXED),
    "gemma3": _gemma3_multimodal,
    "phi3": lambda: transformers.Phi3Config(**_DECODER),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **{name: value for name, value in _DECODER.items() if name != "num_key_value_heads"}
    ),
}
FAMILIES = tuple(_CONFIGS)
# transformers refuses gemma2 under sdpa, which has no logit soft-capping.
ATTENTIONS = tuple(
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if (family, attention) != ("gemma2", "sdpa")
)


def tiny_model(family: str, attention: str = "sdpa", *, seed: int = 0) -> PreTrainedModel:
    """A frozen random model in evaluation mode, float32, with every weight, bias and norm away from its default.

    `family`: one of `FAMILIES`; each call builds a new object.
    """
    config = _CONFIGS[family]()
    auto = transformers.AutoModelForCausalLM
    if family == "gemma3":
        auto = transformers.AutoModelForImageTextToText
    model: PreTrainedModel = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval().requires_grad_(False)


class Int8Linear(nn.Module):
    """A linear layer whose weight is held as int8 codes with one scale per output row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scales = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", torch.round(linear.weight.detach() / scales).to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes.to(x.dtype) * self.scales.to(x.dtype), self.bias)


def quantise_attention(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with the attention projections of every layer replaced by `Int8Linear`."""
    for layer in model.get_decoder().layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Int8Linear(getattr(layer.self_attn, name)))
    return model


def lora_wrapped(model: PreTrainedModel, seed: int = 5) -> nn.Module:
    """`model` inside peft's wrapper, with a random, frozen LoRA on q, v and o."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        wrapped: nn.Module = peft.get_peft_model(model, config)
    return wrapped.eval().requires_grad_(False)


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The decoder's attention modules by their class names, so that the table is not used to test itself."""
    return [m for m in model.get_decoder().modules() if type(m).__name__.endswith("Attention")]


# As the published preset, but small, with every head corrected.
FULL = AdapterConfig(rank=4, alpha=8.0, delta_heads=("q", "k", "v", "o"))
VARIANTS: Mapping[str, AdapterConfig] = {
    "qo": replace(FULL, delta_heads=("q", "o")),
    "msw": replace(FULL, num_state_heads=3),
    "scalar-gates": replace(FULL, rankwise_gates=False),
    "msw-scalar-gates": replace(FULL, num_state_heads=2, rankwise_gates=False),
    "decoupled": replace(FULL, couple_lambda=False),
    "lambda-outside": replace(FULL, couple_lambda=False, state_update_mode="lambda_outside"),
    "no-lambda": replace(FULL, state_update_mode="no_lambda"),
    "key-shift": replace(FULL, key_shift=True),
    "key-shift-msw": replace(FULL, key_shift=True, num_state_heads=2, state_update_mode="no_lambda"),
    "o-rmsnorm": replace(FULL, delta_o_rmsnorm=True),
    "scale-per-layer": replace(FULL, trainable_delta_scale=True),
    "scale-per-head": replace(FULL, trainable_delta_scale=True, delta_scale_granularity="head"),
    "last-layer": replace(FULL, target_layers=(1,)),
    "read-gate": replace(FULL, read_gate=True),
    "erase-gate": replace(FULL, erase_gate=True, num_state_heads=2, rankwise_gates=False),
    "readout": replace(FULL, readout=True, num_state_heads=2),
    "readout-alone": replace(FULL, readout=True, delta_heads=("q",), target_layers=(0,)),
    "hidden-gates": replace(FULL, gate_hidden=3, num_state_heads=2, gate_floor=0.25),
    "gate-votes": replace(FULL, gate_votes=True, gate_hidden=3, gate_floor=0.25),
    "gates-on-reads": replace(FULL, read_gate=True, gate_on_reads=True, num_state_heads=2),
    "replies-only": replace(FULL, read_scope="replies"),
    "floored-gates": replace(FULL, read_gate=True, gate_floor=0.25, key_shift=True, num_state_heads=2),
}
MESSAGE_MEAN = replace(FULL, memory_write_granularity="message_mean")


def random_adapter(model: nn.Module, config: AdapterConfig = FULL, *, seed: int = 1) -> Adapter:
    """An adapter for `model` whose every weight is random and large enough to matter."""
    adapter = Adapter.for_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


def random_state(adapter: Adapter, batch: int = 1, *, seed: int = 2) -> MemoryState:
    zeros = adapter.zero_state(batch).matrices
    return MemoryState(0.5 * torch.randn(zeros.shape, generator=torch.Generator().manual_seed(seed)))


def random_ids(*shape: int, seed: int = 3) -> Tensor:
    """Token ids of the given shape, none of them 0."""
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


class Subject:
    """A model with an adapter made for it. `run` attaches nothing by itself."""

    def __init__(self, model: nn.Module, config: AdapterConfig = FULL) -> None:
        self.model = model
        self.adapter = random_adapter(model, config)
        self.per_message = config.memory_write_granularity == "message_mean"

    def base(self, ids: Tensor, **inputs: object) -> Tensor:
        with torch.no_grad():
            return self.model(ids, **inputs).logits

    def run(
        self,
        ids: Tensor,
        state: MemoryState,
        *,
        writes: bool = True,
        seen: Tensor | None = None,
        cache: DynamicCache | None = None,
        message_ids: Tensor | None = None,
        unfinished: bool = False,
    ) -> tuple[Tensor, MemoryState]:
        """Logits and the new state. `seen` (batch, past + tokens) bool is False at padding, also of the past."""
        tokens, inputs = ids.shape[1], {}
        token_mask = None
        if seen is not None:
            token_mask = seen[:, -tokens:]
            positions = (seen.long().cumsum(1) - 1).clamp_min(0)[:, -tokens:]
            inputs = {"attention_mask": seen.long(), "position_ids": positions}
        if self.per_message and writes and message_ids is None:
            message_ids = (torch.arange(tokens) // 3).expand_as(ids)
        call = MemoryCall(
            state,
            token_mask=token_mask,
            write_mask=torch.ones_like(ids, dtype=torch.bool) if writes else None,
            message_ids=message_ids,
            unfinished=unfinished,
        )
        cached = {} if cache is None else with_cache(self.model, cache)
        out = self.model(ids, **cached, **inputs, **{CALL_KEYWORD: call})
        return out.logits, call.new_state()

    def cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


def anatomy(model: nn.Module) -> dict[str, dict[str, object]]:
    """Every attribute of every module: hooks, buffers and parameters by their keys, anything else by identity."""
    return {
        name: {
            attribute: tuple(value) if isinstance(value, dict) else value if isinstance(value, bool) else id(value)
            for attribute, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }
