"""A complete engine on a random two-layer Llama with a byte-level tokenizer, for fast offline tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference.compressed import CacheKind
from deltamem_agents.inference.kept import KEPT_BYTES
from deltamem_agents.loading import LoadedModel
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.snapshots import InMemoryStore, Store
from deltamem_agents.turns.planning import WritePolicy

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")
CONTEXT = 2048


def byte_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """One token per byte, and two control tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def tiny_llama(seed: int = 0, vocabulary: int = 258) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=257,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def random_adapter(model: LlamaForCausalLM, config: AdapterConfig | None = None, seed: int = 1) -> Adapter:
    """An adapter whose corrections are large enough to change replies."""
    config = config or AdapterConfig(rank=4, key_shift=True)
    adapter = Adapter.for_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return adapter.requires_grad_(False)


def tiny_engine(
    store: Store | None = None,
    *,
    config: AdapterConfig | None = None,
    policy: WritePolicy = WritePolicy(),
    window_tokens: int | None = None,
    seed: int = 0,
    template: str = CHATML,
    kept_cache_bytes: int = KEPT_BYTES,
    cache: CacheKind = "full",
    progress: bool = False,
) -> DeltaMemEngine:
    model = tiny_llama(seed)
    loaded = replace(LoadedModel.of(model, byte_tokenizer(template), "tiny"), name="tiny")
    return DeltaMemEngine(
        loaded,
        random_adapter(model, config),
        InMemoryStore() if store is None else store,
        window_tokens=window_tokens,
        policy=policy,
        kept_cache_bytes=kept_cache_bytes,
        cache=cache,
        progress=progress,
    )
