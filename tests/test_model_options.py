"""transformers' options when opening a model: each is passed on or refused. Also models that are already loaded."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deltamem_agents import Adapter, AdapterConfig, DeltaMemEngine
from deltamem_agents.errors import AdapterError, ConfigError, DownloadError, EngineClosedError
from deltamem_agents.loading import ModelOptions, load_model
from deltamem_agents.memory.adapter_file import load_adapter
from deltamem_agents.types import Message, Sampling
from tiny_engine import byte_tokenizer, random_adapter, tiny_llama
from tiny_folders import Tiny

SAID, SHORT = [Message("user", "Hi.")], Sampling(max_tokens=6)


def opened(tiny: Tiny, **options: Any) -> DeltaMemEngine:
    return DeltaMemEngine.from_pretrained(tiny.model, adapter=tiny.adapter, store="memory:", progress=False, **options)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_is_the_one_asked_for(tiny: Tiny, attention: str) -> None:
    assert opened(tiny, attn_implementation=attention).model.config._attn_implementation == attention


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_device_map_of_one_device_is_followed(tiny: Tiny, device_map: object) -> None:
    plain, mapped = opened(tiny, device="cpu", dtype="float32"), opened(tiny, device_map=device_map, dtype="float32")
    if mapped.model.device.type == "cpu":
        assert mapped.run_turn(None, SAID, sampling=SHORT).text == plain.run_turn(None, SAID, sampling=SHORT).text


def test_a_device_map_of_several_devices_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    real = transformers.AutoModelForCausalLM.from_pretrained

    def spread(*given: object, **options: Any) -> Any:
        model = real(*given, **{**options, "device_map": None})
        model.model.layers[1].to("meta")
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spread)
    with pytest.raises(ConfigError, match=r"device_map spread .* over cpu, meta"):
        opened(tiny, device_map="auto")


def test_options_that_contradict_each_other_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"device .* device_map"):
        opened(tiny, device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match=r"dtype .* torch_dtype"):
        opened(tiny, dtype="float32", torch_dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": torch.float16}, torch.float16),
        ({"dtype": "auto"}, torch.float32),
    ],
)
def test_a_precision_may_be_a_name(tiny: Tiny, options: dict[str, Any], dtype: torch.dtype) -> None:
    engine = opened(tiny, **options)
    assert engine.model.dtype == dtype
    assert engine.new_state().matrices.dtype == torch.float32


def test_a_revision_is_of_a_model_on_the_hub(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name in (tiny.model, tmp_path / "model.gguf", "smollm2-135m-instruct"):
        with pytest.raises(ConfigError, match=r"revision 'main' was asked for.*no model on the Hub"):
            DeltaMemEngine.from_pretrained(name, revision="main", store="memory:")


def test_options_for_the_hub_and_for_transformers_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def recording(source: str, **options: Any) -> Any:
        seen.append({"source": source, **options})
        if len(seen) == 2:
            raise OSError("enough")
        return None

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", recording)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", recording)
    config = {"quant_method": "something"}
    with pytest.raises(DownloadError, match="enough"):
        DeltaMemEngine.from_pretrained(
            "org/model", revision="v1", token="hf_x", quantization_config=config, dtype="float32", store="memory:"
        )
    model, tokenizer = seen
    assert tokenizer == {"source": "org/model", "revision": "v1", "token": "hf_x"}
    assert model == {
        **tokenizer,
        "dtype": torch.float32,
        "quantization_config": config,
        # A quantised model cannot be moved afterwards.
        "device_map": {"": torch.device("cpu")},
    }


def test_the_adapter_is_fetched_with_the_same_token(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: list[object] = []

    def fetching(name: str, *, token: object, **_: object) -> str:
        seen.append((name, token))
        return str(tiny.adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetching)
    DeltaMemEngine.from_pretrained(tiny.model, adapter="org/adapter", token="hf_x", store="memory:", progress=False)
    assert seen == [("org/adapter", "hf_x")]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_an_option_that_needs_a_missing_package_names_it(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="bitsandbytes"):
        opened(tiny, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))


def test_options_that_are_not_given_are_not_passed_on(tiny: Tiny) -> None:
    one, other = load_model(tiny.model), load_model(tiny.model, options=ModelOptions())
    assert one.model_fingerprint == other.model_fingerprint


def test_a_loaded_model_and_adapter_equal_their_files(tiny: Tiny) -> None:
    files = opened(tiny, dtype="float32")
    model = tiny_llama()
    engine = DeltaMemEngine.from_model(model, byte_tokenizer(), adapter=random_adapter(model), store="memory:")
    assert engine.fingerprint == files.fingerprint
    assert engine.run_turn("ada", SAID, sampling=SHORT).text == files.run_turn("ada", SAID, sampling=SHORT).text


def test_an_adapter_is_built_from_a_config_in_memory(tiny: Tiny) -> None:
    model = tiny_llama()
    given = load_adapter(tiny.adapter, model)
    adapter = Adapter.for_model(AdapterConfig(rank=4, key_shift=True), model)
    adapter.load_state_dict(given.state_dict())
    with DeltaMemEngine.from_model(model, byte_tokenizer(), adapter=adapter, store="memory:", name="mine") as engine:
        assert engine.model_name == "mine"
        assert engine.fingerprint == opened(tiny, dtype="float32").fingerprint
    with pytest.raises(EngineClosedError):
        engine.run_turn(None, SAID)
    # The model object is free again: another memory can be attached.
    DeltaMemEngine.from_model(model, byte_tokenizer(), adapter=tiny.adapter, store="memory:").close()


def test_a_model_in_memory_without_an_adapter_is_refused() -> None:
    with pytest.raises(AdapterError, match="pass adapter="):
        DeltaMemEngine.from_model(tiny_llama(), byte_tokenizer(), store="memory:")


def test_an_adapter_in_memory_is_a_way_to_open_a_model_by_name_too(tiny: Tiny) -> None:
    adapter = load_adapter(tiny.adapter, tiny_llama())
    engine = DeltaMemEngine.from_pretrained(tiny.model, adapter=adapter, store="memory:", progress=False)
    assert engine.adapter is adapter and engine.run_turn(None, SAID, sampling=SHORT).facts.tokens_read > 0


def test_opening_and_using_an_engine_warns_of_nothing(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(tiny) as engine:
            state = engine.absorb(engine.new_state(), SAID)
            engine.absorb_into("ada", SAID)
            engine.absorb_batch([state, state], [SAID, SAID])
            engine.run_turn("ada", SAID, sampling=Sampling(max_tokens=4, temperature=0.8, top_p=0.9, seed=1))
            engine.score(state, SAID, "Yes.")
            engine.greedy_replies([state], [SAID], max_tokens=2)
    out, err = capfd.readouterr()
    assert out == err == ""
