"""Adapter files: what is saved comes back, released folders load as they are, anything else is refused by name."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import AdapterError, ConfigError
from deltamem_agents.memory.adapter_file import (
    CONFIG_FILE,
    PUBLISHED_CONFIG_FILE,
    PUBLISHED_WEIGHTS_FILE,
    WEIGHTS_FILE,
    adapter_fingerprint,
    convert_adapter,
    load_adapter,
    save_adapter,
)
from deltamem_agents.memory.attach import Adapter
from tiny_models import FULL, MESSAGE_MEAN, VARIANTS, random_adapter, tiny_model

PARITY = Path(__file__).parent / "parity"
RELEASED = sorted(path.parent for path in PARITY.glob(f"*/{PUBLISHED_WEIGHTS_FILE}"))
CONFIGS = {"full": FULL, "message-mean": MESSAGE_MEAN, **VARIANTS}


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def qwen3() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(PARITY / "qwen3-base", dtype=torch.float32)


def same(a: Adapter, b: Adapter) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_save_then_load_is_identity(config: AdapterConfig, llama: nn.Module, tmp_path: Path) -> None:
    adapter = random_adapter(llama, replace(config, base_model="tiny-llama"))
    save_adapter(adapter, tmp_path / "deep" / "folder")
    loaded = load_adapter(tmp_path / "deep" / "folder", llama)
    assert same(loaded, adapter) and loaded.config == adapter.config
    assert adapter_fingerprint(loaded) == adapter_fingerprint(adapter)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert sorted(os.listdir(tmp_path / "deep" / "folder")) == [WEIGHTS_FILE, CONFIG_FILE]


def test_a_new_setting_at_its_default_does_not_change_the_fingerprint(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = random_adapter(llama, FULL)
    before, to_json = adapter_fingerprint(adapter), AdapterConfig.to_json
    monkeypatch.setattr(AdapterConfig, "to_json", lambda config: {**to_json(config), "later": False})
    assert adapter_fingerprint(adapter) == before
    own = adapter.config
    monkeypatch.setattr(AdapterConfig, "to_json", lambda config: {**to_json(config), "later": config is own})
    assert adapter_fingerprint(adapter) != before


def test_a_read_gate_is_saved_and_loaded(llama: nn.Module, tmp_path: Path) -> None:
    adapter = random_adapter(llama, VARIANTS["floored-gates"])
    save_adapter(adapter, tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    loaded = load_adapter(tmp_path, llama)
    assert loaded.config.read_gate and loaded.config.gate_floor == 0.25
    for slot, index in enumerate(loaded.indices):
        for name, shape in (("read_proj", (2, 32)), ("read_bias", (2,))):
            weight = loaded.layer(slot).get_parameter(name)
            assert weight.shape == shape and bool(weight.any())
            assert torch.equal(weight, stored[f"layers.{index}.{name}"])


@pytest.mark.parametrize(
    ("variant", "shapes"),
    [
        ("erase-gate", {"erase_proj": (2, 32), "erase_bias": (2,)}),
        ("readout", {"readout_proj": (32, 8)}),
        ("hidden-gates", {"gate_hidden_proj": (3, 32), "gate_hidden_bias": (3,), "beta_hidden_proj": (8, 3)}),
        ("gates-on-reads", {"found_proj": (2, 8)}),
    ],
)
def test_weights_that_a_variant_adds_are_saved_and_loaded(
    llama: nn.Module, variant: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    save_adapter(random_adapter(llama, VARIANTS[variant]), tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    loaded = load_adapter(tmp_path, llama)
    assert loaded.config == random_adapter(llama, VARIANTS[variant]).config
    for slot, index in enumerate(loaded.indices):
        for name, shape in shapes.items():
            weight = loaded.layer(slot).get_parameter(name)
            assert weight.shape == shape and bool(weight.any())
            assert torch.equal(weight, stored[f"layers.{index}.{name}"])


def test_another_floor_is_another_adapter(llama: nn.Module) -> None:
    floors = [adapter_fingerprint(random_adapter(llama, replace(FULL, gate_floor=floor))) for floor in (0, 0.25, 0.5)]
    assert len(set(floors)) == 3


def test_saving_in_bfloat16_rounds_each_weight_once(llama: nn.Module, tmp_path: Path) -> None:
    adapter = random_adapter(llama)
    save_adapter(adapter, tmp_path, dtype=torch.bfloat16)
    loaded = load_adapter(tmp_path, llama)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert same(loaded, adapter.to(torch.bfloat16).float())


def test_saving_again_replaces_the_adapter(llama: nn.Module, tmp_path: Path) -> None:
    save_adapter(random_adapter(llama, seed=1), tmp_path)
    save_adapter(second := random_adapter(llama, VARIANTS["msw"], seed=2), tmp_path)
    assert same(load_adapter(tmp_path, llama), second)


@pytest.mark.parametrize("folder", RELEASED, ids=lambda path: path.name)
def test_a_released_folder_loads_and_converts_to_equal_tensors(folder: Path, qwen3: nn.Module, tmp_path: Path) -> None:
    released = load_adapter(folder, qwen3)
    stored = torch.load(folder / PUBLISHED_WEIGHTS_FILE, weights_only=True)
    for slot, index in enumerate(released.indices):
        for name, value in released.layer(slot).named_parameters():
            assert torch.equal(value, stored[f"model.layers.{index}.self_attn.{name}"].float())

    save_adapter(released, tmp_path / "saved")
    written = convert_adapter(folder, tmp_path / "converted", base_model="Qwen/Tiny")
    for name in ("saved", "converted"):
        loaded = load_adapter(tmp_path / name, qwen3)
        assert same(loaded, released)
        assert replace(loaded.config, base_model=None) == released.config
        assert adapter_fingerprint(loaded) == adapter_fingerprint(released)
    assert written.base_model == "Qwen/Tiny" and written.hidden_size == 48
    assert written.layers == (None if written.target_layers else 3)


def test_converting_this_packages_format_changes_nothing(llama: nn.Module, tmp_path: Path) -> None:
    save_adapter(random_adapter(llama), tmp_path / "a")
    convert_adapter(tmp_path / "a", tmp_path / "b")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_released_layouts_with_a_zero_correction_for_unused_heads_load(llama: nn.Module, tmp_path: Path) -> None:
    """The released adapter stores all-zero k and v corrections though its config leaves both out."""
    adapter = random_adapter(llama, VARIANTS["qo"])
    weights = publish(adapter, tmp_path)
    weights["model.layers.0.self_attn.delta_k_proj"] = torch.zeros(16, 4)
    torch.save(weights, tmp_path / PUBLISHED_WEIGHTS_FILE)
    assert same(load_adapter(tmp_path, llama), adapter)
    weights["model.layers.0.self_attn.delta_k_proj"][3, 1] = 0.5
    torch.save(weights, tmp_path / PUBLISHED_WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=r"delta_k_proj is not zero.*'k'"):
        load_adapter(tmp_path, llama)


def publish(adapter: Adapter, folder: Path, **keys: object) -> dict[str, Tensor]:
    """Write `adapter` in the released form, with `keys` in its config; returns the tensors written."""
    config = {"rank": adapter.config.rank, "alpha": adapter.config.alpha, "delta_heads": [*adapter.config.delta_heads]}
    (folder / PUBLISHED_CONFIG_FILE).write_text(json.dumps({**config, **keys}))
    weights = {
        f"model.layers.{layer}.self_attn.{weight}": value.clone()
        for name, value in adapter.state_dict().items()
        for _, layer, weight in [name.split(".")]
    }
    torch.save(weights, folder / PUBLISHED_WEIGHTS_FILE)
    return weights


def reconfigure(folder: Path, **keys: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def reweigh(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE)


@pytest.fixture
def saved(llama: nn.Module, tmp_path: Path) -> Path:
    save_adapter(random_adapter(llama, replace(FULL, base_model="Org/Tiny-Llama")), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_model_of_other_widths_is_refused_by_name(saved: Path) -> None:
    message = r"delta_q_proj has shape \(32, 4\), expected \(48, 4\); the sizes of the base models differ"
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, tiny_model("qwen3"))


def test_a_wrong_hidden_size_or_layer_count_is_refused_by_name(saved: Path, qwen3: nn.Module) -> None:
    with pytest.raises(AdapterError, match=r"layers=2, this one has 3"):
        load_adapter(saved, qwen3)
    reconfigure(saved, layers=None)
    with pytest.raises(AdapterError, match=r"hidden_size=32, this one has 48"):
        load_adapter(saved, qwen3)
    reconfigure(saved, hidden_size=None)
    with pytest.raises(AdapterError, match=r"weights for 2 layers, one for each layer of the model would be 3"):
        load_adapter(saved, qwen3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rank": 8},
            r"memory_\w+ has shape \(4, 32\), expected \(8, 32\); the ranks or numbers of state heads differ",
        ),
        ({"num_state_heads": 2}, r"expected \(8, 32\); the ranks or numbers of state heads differ"),
        ({"rankwise_gates": False}, r"beta_\w+ has shape \(4.*, expected \(1"),
        ({"delta_heads": ["q"]}, r"not expected layers.0.delta_k_proj, layers.0.delta_o_proj"),
        ({"couple_lambda": False}, r"missing layers.0.lambda_bias, layers.0.lambda_proj"),
        ({"key_shift": True}, r"missing layers.0.memory_k_shift_proj"),
        ({"read_gate": True}, r"missing layers.0.read_bias, layers.0.read_proj"),
        ({"target_layers": [1]}, r"weights for 2 layers, its target_layers name 1: .*not expected 0"),
        ({"target_layers": [7]}, r"targets layers \[7\], but the model has 2 layers"),
    ],
)
def test_a_config_that_contradicts_its_weights_is_refused(
    keys: dict[str, object], message: str, saved: Path, llama: nn.Module
) -> None:
    reconfigure(saved, **keys)
    with pytest.raises((AdapterError, ConfigError), match=message):
        load_adapter(saved, llama)


def test_a_released_folder_for_other_sizes_is_refused_with_and_without_a_model(
    llama: nn.Module, qwen3: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"weights for 3 layers, .*would be 2"):
        load_adapter(PARITY / "qwen3-tsw", llama)
    publish(random_adapter(llama), tmp_path, rank=3)
    with pytest.raises(AdapterError, match=r"expected .3, 32.; the ranks or numbers of state heads differ"):
        convert_adapter(tmp_path, tmp_path / "out")
    with pytest.raises(AdapterError, match=r"would be 3: missing 2"):
        load_adapter(tmp_path, qwen3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.1.memory_v_proj"), r"missing layers.1.memory_v_proj, not expected nothing"),
        (lambda w: w.update({"layers.0.extra": torch.zeros(1)}), r"not expected layers.0.extra"),
        (lambda w: w.update({"lm_head": torch.zeros(1)}), r"holds lm_head, expected only names like"),
        (lambda w: w["layers.0.beta_proj"].fill_(float("nan")), r"layers.0.beta_proj holds values that are not finite"),
        (lambda w: w["layers.1.delta_o_proj"][0].fill_(float("inf")), r"layers.1.delta_o_proj .*not finite"),
        (lambda w: w.update({"layers.0.beta_bias": torch.zeros(4, dtype=torch.int64)}), r"beta_bias is torch.int64"),
        (lambda w: w.update({"layers.0.beta_bias": torch.zeros(())}), r"beta_bias has shape \(\), expected \(4,\)"),
        (lambda w: [w.pop(name) for name in [*w] if name.startswith("layers.0")], r"missing 0"),
        (lambda w: w.clear(), r"weights for 0 layers"),
    ],
    ids=["missing", "surplus", "foreign", "nan", "inf", "integers", "scalar", "layer", "empty"],
)
def test_weights_that_are_not_the_expected_ones_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], message: str, saved: Path, llama: nn.Module, tmp_path: Path
) -> None:
    reweigh(saved, change)
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, llama)
    with pytest.raises(AdapterError):
        convert_adapter(saved, tmp_path / "out")


@pytest.mark.parametrize(
    ("base_model", "fits"),
    [
        (None, True),
        ("Org/Tiny-Llama", True),
        ("tiny-llama", True),
        ("./models/tiny-LLAMA/", True),
        ("Org/Tiny-Llama-2", False),
        ("Org", False),
    ],
)
def test_the_base_model_has_to_be_the_one_named(
    base_model: str | None, fits: bool, saved: Path, llama: nn.Module
) -> None:
    if fits:
        load_adapter(saved, llama, base_model)
        return
    with pytest.raises(AdapterError, match=rf"made for the model 'Org/Tiny-Llama', not for '{base_model}'"):
        load_adapter(saved, llama, base_model)


def test_an_adapter_that_names_no_model_fits_any_name(llama: nn.Module, saved: Path) -> None:
    reconfigure(saved, base_model=None)
    load_adapter(saved, llama, "whatever")


def test_a_missing_file_is_refused_by_name(saved: Path, llama: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=rf"no {CONFIG_FILE} or {PUBLISHED_CONFIG_FILE}"):
        load_adapter(tmp_path / "nowhere", llama)
    (saved / WEIGHTS_FILE).rename(saved / "elsewhere")
    with pytest.raises(AdapterError, match=rf"{CONFIG_FILE} in .* has no {WEIGHTS_FILE}"):
        load_adapter(saved, llama)
    publish(random_adapter(llama), saved)
    with pytest.raises(AdapterError, match=rf"{CONFIG_FILE} in .* has no {WEIGHTS_FILE}"):
        load_adapter(saved, llama)
    (saved / CONFIG_FILE).unlink()
    (saved / PUBLISHED_WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterError, match=rf"no {WEIGHTS_FILE} or {PUBLISHED_WEIGHTS_FILE}"):
        load_adapter(saved, llama)


def refusal(folder: Path, model: nn.Module) -> AdapterError:
    """The error that loading raises; it must hide torch's own advice and traceback."""
    with pytest.raises(AdapterError, match="damaged") as caught:
        load_adapter(folder, model)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("released", [False, True], ids=["ours", "released"])
def test_a_truncated_or_foreign_weight_file_is_refused(
    released: bool, saved: Path, llama: nn.Module, tmp_path: Path
) -> None:
    folder = saved
    if released:
        folder = tmp_path
        publish(random_adapter(llama), folder)
    path = folder / (PUBLISHED_WEIGHTS_FILE if released else WEIGHTS_FILE)
    whole = path.read_bytes()
    foreign = [b"", b"\x80", b"PK\x03\x04" + bytes(40), b"<!doctype html><p>not found", bytes(64), b"\xff" * 64]
    for content in [*foreign, *(whole[:length] for length in (1, 8, 100, len(whole) // 2, len(whole) - 1))]:
        path.write_bytes(content)
        refusal(folder, llama)
    path.unlink()
    path.mkdir()
    with pytest.raises(AdapterError, match=r"no adapter.safetensors|no delta_mem_adapter.pt|or delta_mem_adapter.pt"):
        load_adapter(folder, llama)


@settings(max_examples=25)
@given(data=st.data())
def test_a_flipped_bit_in_our_weights_is_never_loaded(
    data: st.DataObject, llama: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    adapter = random_adapter(llama, replace(FULL, rank=1))
    save_adapter(adapter, folder)
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / WEIGHTS_FILE).write_bytes(content)
    try:
        loaded = load_adapter(folder, llama)
    except AdapterError:
        return
    # A flip in the header's padding or in the name of the checksum reaches no weight.
    assert same(loaded, adapter)


@settings(max_examples=25)
@given(data=st.data())
def test_a_flipped_bit_in_a_released_file_gives_an_adapter_error_or_finite_weights(
    data: st.DataObject, llama: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    publish(random_adapter(llama, replace(FULL, rank=1)), folder)
    content = bytearray((folder / PUBLISHED_WEIGHTS_FILE).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / PUBLISHED_WEIGHTS_FILE).write_bytes(content)
    try:
        loaded = load_adapter(folder, llama)
    except AdapterError:
        return
    assert all(bool(p.isfinite().all()) for p in loaded.parameters())


class Payload:
    """Creates a file when unpickled by a reader that executes what it reads."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["zip", "legacy", "bare"])
def test_a_hostile_pickle_is_refused_and_not_executed(writer: str, llama: nn.Module, tmp_path: Path) -> None:
    weights: dict[str, object] = {**publish(random_adapter(llama), tmp_path)}
    path, target = tmp_path / PUBLISHED_WEIGHTS_FILE, tmp_path / "executed"
    weights["model.layers.0.self_attn.beta_bias"] = Payload(target)
    if writer == "bare":
        path.write_bytes(pickle.dumps(weights["model.layers.0.self_attn.beta_bias"], protocol=2))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=writer == "zip")
    assert "nothing in it was executed" in str(refusal(tmp_path, llama))
    assert not target.exists()
    with pytest.raises(AdapterError):
        convert_adapter(tmp_path, tmp_path / "out")
    assert not target.exists()


@pytest.mark.parametrize(
    "held", [[torch.zeros(2)], torch.zeros(2), {"a": {"b": torch.zeros(2)}}, {"rank": 8}, {1: torch.zeros(2)}, {}]
)
def test_a_released_file_that_holds_something_else_is_refused(held: object, llama: nn.Module, tmp_path: Path) -> None:
    publish(random_adapter(llama), tmp_path)
    torch.save(held, tmp_path / PUBLISHED_WEIGHTS_FILE)
    with pytest.raises(
        AdapterError, match=r"expected a dictionary of tensors|expected only names|weights for 0 layers"
    ):
        load_adapter(tmp_path, llama)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda value: value.to_sparse(), "torch.float32, torch.sparse_coo"),
        (lambda value: value.to("meta"), "without values"),
        (lambda value: value.to(torch.complex64), "torch.complex64"),
    ],
)
@pytest.mark.parametrize("weight", ["beta_proj", "delta_k_proj"])
def test_a_weight_of_another_kind_is_refused_by_name(
    change: Callable[[Tensor], Tensor], kind: str, weight: str, llama: nn.Module, tmp_path: Path
) -> None:
    """Also a weight of a head that the config leaves out: it is checked before it is dropped."""
    weights = publish(random_adapter(llama), tmp_path, delta_heads=["q", "o"])
    name = f"model.layers.0.self_attn.{weight}"
    weights[name] = change(weights[name])
    torch.save(weights, tmp_path / PUBLISHED_WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=f"{name} is {kind}"):
        load_adapter(tmp_path, llama)


@pytest.mark.parametrize("keys", [{"hidden_size": 64}, {"layers": 5}, {"layers": 1}])
def test_converting_refuses_a_config_that_contradicts_its_weights(
    keys: dict[str, object], saved: Path, tmp_path: Path
) -> None:
    reconfigure(saved, **keys)
    with pytest.raises(AdapterError, match=r"hidden_size=32, .* say 64|weights for 2 layers, .* would be [51]"):
        convert_adapter(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\x00\x01", "not valid JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ("null", "holds a NoneType"),
    ],
    ids=["open", "empty", "nested", "binary", "list", "null"],
)
def test_a_damaged_config_is_refused_by_name(text: str, message: str, saved: Path, llama: nn.Module) -> None:
    (saved / CONFIG_FILE).write_text(text)
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, llama)
