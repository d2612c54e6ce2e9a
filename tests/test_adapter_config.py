"""Adapter configs: the published and this package's own are read; anything that would change results is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deltamem_agents
from deltamem_agents.config import ADAPTER_FORMAT, PRESETS, AdapterConfig
from deltamem_agents.errors import ConfigError, DeltaMemError, NewerFormatError
from deltamem_agents.memory.adapter_file import PUBLISHED_CONFIG_FILE, read_config
from tiny_models import MESSAGE_MEAN

SHIPPED = Path(deltamem_agents.__file__).parent / "adapters" / "smollm2-135m-instruct"

RELEASED = sorted(path.parent for path in (Path(__file__).parent / "parity").glob(f"*/{PUBLISHED_CONFIG_FILE}"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rank", 0, "at least 1"),
        ("rank", 4.0, "whole number"),
        ("rank", "4", "whole number"),
        ("rank", True, "whole number"),
        ("num_state_heads", -1, "at least 1"),
        ("alpha", "16", "finite number"),
        ("alpha", float("nan"), "finite number"),
        ("couple_lambda", 1, "true or false"),
        ("key_shift", None, "true or false"),
        ("read_gate", 1, "true or false"),
        ("erase_gate", "no", "true or false"),
        ("readout", 1, "true or false"),
        ("gate_hidden", -1, "a whole number of at least 0"),
        ("gate_on_reads", None, "true or false"),
        ("gate_votes", 1, "true or false"),
        ("gate_floor", 1.0, "from 0 to below 1"),
        ("gate_floor", -0.01, "from 0 to below 1"),
        ("gate_floor", float("nan"), "from 0 to below 1"),
        ("gate_floor", "0.25", "from 0 to below 1"),
        ("gate_floor", None, "from 0 to below 1"),
        ("delta_scale_max", 0, "above 0"),
        ("delta_o_rmsnorm_eps", -1e-6, "above 0"),
        ("state_update_mode", "momentum", "one of standard, lambda_outside, no_lambda"),
        ("memory_write_granularity", "sentence", "one of token, message_mean"),
        ("delta_scale_granularity", [], "one of layer, head"),
        ("delta_heads", ["q", "x"], "q, k, v, o"),
        ("delta_heads", [], "q, k, v, o"),
        ("delta_heads", ["q", "q"], "distinct"),
        ("delta_heads", [["q"]], "q, k, v, o"),
        ("delta_heads", 4, "q, k, v, o"),
        ("target_layers", [-1], "counted from 0"),
        ("target_layers", [1, 1], "distinct"),
        ("target_layers", ["0"], "counted from 0"),
        ("target_layers", None, "counted from 0"),
        ("layers", 0, "or null"),
        ("hidden_size", "32", "or null"),
        ("base_model", 3, "a name or null"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_key(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter config: {key} is .*{expected}"):
        AdapterConfig.from_json({"format": ADAPTER_FORMAT, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_memory_partitions", 4),
        ("num_global_memory_partitions", 1),
        ("memory_readout_mode", "slots"),
        ("memory_write_source", "raw"),
        ("memory_reader_layers", [3]),
        ("latent_memory_layers", [0, 1]),
        ("slot_read_top_k", 2),
        ("normalize_qk", False),
        ("delta_scale_parameterization", "free"),
        ("target_modules", ["mlp"]),
    ],
)
def test_a_released_config_asking_for_another_mechanism_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=.* is not supported, only .* is"):
        AdapterConfig.from_json({"rank": 8, key: value})


def test_an_unknown_key_warns_in_a_released_config_and_is_refused_in_ours() -> None:
    with pytest.warns(UserWarning, match="unknown keys trained_on"):
        assert AdapterConfig.from_json({"rank": 4, "trained_on": "a laptop"}) == AdapterConfig(rank=4)
    with pytest.raises(ConfigError, match=r"unknown keys rnak; known are .*rank"):
        AdapterConfig.from_json({"format": ADAPTER_FORMAT, "rnak": 4})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("folder", RELEASED, ids=lambda path: path.name)
def test_released_configs_are_known_in_full(folder: Path) -> None:
    config = read_config(folder)
    assert AdapterConfig.from_json(config.to_json()) == config


def test_missing_keys_take_the_published_preset() -> None:
    config = AdapterConfig.from_json({})
    assert (config.rank, config.alpha, config.delta_heads, config.scale) == (8, 16.0, ("q", "o"), 2.0)
    assert config.couple_lambda and config.rankwise_gates and config.state_update_mode == "standard"
    assert not config.key_shift and not config.read_gate and config.gate_floor == 0
    assert not config.erase_gate and not config.readout and not config.gate_hidden and not config.gate_on_reads
    assert not config.gate_votes


@pytest.mark.parametrize("folder", [SHIPPED, SHIPPED / "small"], ids=["default", "small"])
def test_both_adapters_that_ship_have_the_preset_named_after_them(folder: Path) -> None:
    config = read_config(folder)
    assert {name: getattr(config, name) for name in PRESETS["shipped"]} == PRESETS["shipped"]
    assert all(getattr(AdapterConfig(), name) != value for name, value in PRESETS["shipped"].items())


def test_a_preset_takes_other_settings_and_must_exist() -> None:
    assert AdapterConfig.of_preset("published", rank=4) == AdapterConfig(rank=4)
    gated = AdapterConfig.of_preset("shipped", rank=4, read_scope="all")
    assert (gated.rank, gated.read_scope, gated.erase_gate) == (4, "all", True)
    with pytest.raises(ConfigError, match="preset is 'own', expected one of published, shipped"):
        AdapterConfig.of_preset("own")
    with pytest.raises(ConfigError, match="unknown keys ranks"):
        AdapterConfig.of_preset("shipped", ranks=4)


@pytest.mark.parametrize("version", [ADAPTER_FORMAT + 1, 99])
def test_a_newer_format_is_refused_by_name(version: int) -> None:
    with pytest.raises(NewerFormatError, match=f"format {version}, this version reads up to {ADAPTER_FORMAT}; upgrade"):
        AdapterConfig.from_json({"format": version, "surprise": 1})


@pytest.mark.parametrize("version", ["1", 0, None, 1.5, True])
def test_a_format_that_is_no_version_is_refused(version: object) -> None:
    with pytest.raises(ConfigError, match="format is"):
        AdapterConfig.from_json({"format": version, "surprise": 1})


def test_gate_on_reads_needs_a_read_gate() -> None:
    with pytest.raises(ConfigError, match=r"gate_on_reads .*read_gate is false"):
        AdapterConfig(gate_on_reads=True)


def test_key_shift_and_whole_messages_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"key_shift .*'message_mean'"):
        replace(MESSAGE_MEAN, key_shift=True)


@given(floor=st.floats(0, 1, exclude_max=True))
def test_any_floor_from_0_to_below_1_survives_json(floor: float) -> None:
    config = AdapterConfig(gate_floor=floor, read_gate=True)
    assert AdapterConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(["q", "o", "token", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(sorted([*AdapterConfig().to_json(), "normalize_qk", "slot_read_top_k", "other"]))


@given(data=st.dictionaries(KEYS, JSON, max_size=6))
@pytest.mark.filterwarnings("ignore:adapter config")
def test_any_json_object_is_a_config_or_an_error_of_this_package(data: dict[str, object]) -> None:
    try:
        config = AdapterConfig.from_json(data)
    except DeltaMemError:
        return
    assert AdapterConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
