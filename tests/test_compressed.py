"""Laws of smaller key–value caches: attention sees exactly the held tokens, and the memory does not change."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from deltamem_agents.errors import ConfigError
from deltamem_agents.inference.compressed import SINKS, CompressedCache, cache_maker
from deltamem_agents.inference.kept import CacheKey, KeptCaches
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.inference.rows import joinable
from deltamem_agents.memory.backbones import KeyValueCache, cache_of, layers_of, with_cache
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.types import Message, Sampling
from tiny_engine import tiny_engine
from tiny_models import tiny_model

FAMILIES_BOUNDED = ("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox")


def tokens(count: int) -> list[int]:
    return torch.randint(1, 60, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def compressed(model: PreTrainedModel, bound: int | None = None, *, quantized: bool = False) -> CompressedCache:
    return CompressedCache(model.config.get_text_config().num_hidden_layers, tokens=bound, quantized=quantized)


@torch.no_grad()
def fed(model: PreTrainedModel, cache: KeyValueCache, *parts: list[int], **inputs: Tensor) -> Tensor:
    """The logits (tokens, vocabulary) of the last part."""
    for part in parts:
        out = model(input_ids=torch.tensor([part]), **with_cache(model, cache), **inputs)
    logits: Tensor = out.logits[0]
    return logits


def prompt_of(ids: list[int]) -> Prompt:
    none = (False,) * len(ids)
    return Prompt(tuple(ids), none, none, (-1,) * len(ids), none)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES_BOUNDED)
def test_a_bound_that_holds_all_changes_nothing(family: str, attention: str) -> None:
    model, ids = tiny_model(family, attention), tokens(24)
    parts = (ids[:9], ids[9:10], ids[10:])
    found, wanted = fed(model, compressed(model, 64), *parts), fed(model, KeyValueCache(), *parts)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES_BOUNDED)
def test_tokens_past_the_bound_are_not_seen_and_the_others_keep_their_positions(family: str, attention: str) -> None:
    model, ids, bound = tiny_model(family, attention), tokens(30), 6
    for last in (ids[20:21], ids[20:27]):
        cache, whole = compressed(model, bound), KeyValueCache()
        found = fed(model, cache, ids[:20], last)
        fed(model, whole, ids[:20])
        kept = layers_of(whole)
        assert kept is not None
        places = [*range(SINKS), *range(20 - bound, 20)]
        cut = cache_of([(k[..., places, :], v[..., places, :]) for k, v in kept])
        at = torch.arange(20, 20 + len(last))[None]
        wanted = fed(model, cut, last, position_ids=at)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert cache.get_seq_length() == 20 + len(last)


def test_a_bounded_cache_stops_growing() -> None:
    model, sizes = tiny_model("llama"), []
    for count in (20, 40, 80):
        cache = compressed(model, 8)
        fed(model, cache, tokens(count))
        sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1] == sizes[2] > 0


@pytest.mark.parametrize("family", [*FAMILIES_BOUNDED, "mistral", "gemma2", "gemma3_text"])
def test_eight_bits_are_close_and_take_less(family: str) -> None:
    model, ids = tiny_model(family, "eager"), tokens(24)
    cache, full = compressed(model, quantized=True), KeyValueCache()
    found, wanted = fed(model, cache, ids[:16], ids[16:]), fed(model, full, ids[:16], ids[16:])
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    held = layers_of(full)
    assert held is not None
    assert cache.nbytes < 0.7 * sum(part.nbytes for layer in held for part in layer)


def test_a_compressed_cache_is_neither_kept_nor_decoded_with_others() -> None:
    model, caches, ids = tiny_model("llama"), KeptCaches(2**20), tokens(20)
    for bound in (None, 8):
        run = Pass(model, None, cache=compressed(model, bound, quantized=True))
        use = caches.begin(run, prompt_of(ids), CacheKey.of(model, "ada", ""), writes_reply=False)
        run.feed(prompt_of(ids))
        assert not joinable(run)
        caches.keep(use, run, [])
        assert caches.nbytes == 0


@pytest.mark.slow
def test_turns_at_once_with_quantized_caches_are_those_one_by_one() -> None:
    engine = tiny_engine(config=SELECTIVE, cache="quantized")
    histories = [[Message("user", f"Number {n} of many words is said here, and more of them.")] for n in range(3)]
    found: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        history, texts = list(histories[number]), []
        for turn in range(3):
            said = engine.run_turn(f"agent {number}", history, sampling=Sampling(max_tokens=10))
            assert said.usage.cached_tokens == 0
            history += [said.message, Message("user", f"And {turn}?")]
            texts.append(said.text)
        found.setdefault(number, []).append("|".join(texts))
        engine.store.forget(f"agent {number}")

    for number in range(3):
        talk(number)
    threads = [Thread(target=talk, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(texts) == 2 and texts[0] == texts[1] for texts in found.values())


def test_a_cache_that_cannot_be_is_refused_by_name() -> None:
    config = tiny_model("llama").config
    assert isinstance(cache_maker("full", config)(), KeyValueCache)
    assert isinstance(cache_maker("quantized", config)(), CompressedCache)
    with pytest.raises(ConfigError, match=r"'bounded', expected 'full' or 'quantized'.*lower window_tokens"):
        tiny_engine(cache="bounded")  # type: ignore[arg-type]
