"""Laws of the default precision: measured once for each machine, and never in the way of opening a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deltamem_agents.loading import CACHE_VARIABLE, default_dtype, load_model, models, precision
from deltamem_agents.loading.int8 import Int8Linear
from deltamem_agents.loading.precision import Precisions, measure, precisions
from tiny_folders import Tiny

MEASURED = Precisions(prompt_float32=8.0, prompt_bfloat16=4.0, decode_float32=0.4, decode_bfloat16=0.2, decode_int8=0.1)
EMULATED = replace(MEASURED, prompt_bfloat16=32.0)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """One item for each measurement. The cache folder is empty, and nothing is remembered from earlier tests."""
    found: list[None] = []

    def measured() -> Precisions:
        found.append(None)
        return MEASURED

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "measure", measured)
    precisions.cache_clear()
    yield found
    precisions.cache_clear()


def asked_anew() -> Precisions:
    """As another process would ask."""
    precisions.cache_clear()
    return precisions()


def test_a_machine_is_measured_once(runs: list[None]) -> None:
    assert [asked_anew() for _ in range(3)] == [MEASURED] * 3
    assert len(runs) == 1


def test_another_machine_or_version_is_measured_itself(runs: list[None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = precision._machine()
    for name in (machine, "another", "another", machine):
        monkeypatch.setattr(precision, "_machine", lambda name=name: name)
        assert asked_anew() == MEASURED
    assert len(runs) == 2


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[1, 2]", "null", '{"MACHINE": {}}', '{"MACHINE": 3}', '{"MACHINE": {"decode_int8": "fast"}}'],
)
def test_a_damaged_file_is_measured_again_and_replaced(runs: list[None], tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "cache" / "precisions.json"
    file.parent.mkdir()
    file.write_text(damaged.replace("MACHINE", precision._machine()))
    assert [asked_anew() for _ in range(2)] == [MEASURED] * 2
    assert len(runs) == 1
    assert json.loads(file.read_text()) == {precision._machine(): asdict(MEASURED)}


def test_without_a_cache_folder_each_process_measures(runs: list[None], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert [asked_anew() for _ in range(2)] == [MEASURED] * 2
    assert precisions() == MEASURED
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("multiplies", "measured", "expected"),
    [
        (True, MEASURED, torch.bfloat16),
        (True, EMULATED, torch.float32),
        (False, MEASURED, torch.float32),
        (True, replace(MEASURED, prompt_bfloat16=7.5, decode_bfloat16=0.39), torch.float32),
    ],
)
def test_bfloat16_is_the_default_only_where_the_cpu_multiplies_it_and_is_faster(
    multiplies: bool, measured: Precisions, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"amx_bf16": multiplies, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(models, "precisions", lambda: measured)
    assert default_dtype("cpu") == expected


@pytest.mark.parametrize("pays", [True, False])
def test_automatic_decode_weights_are_int8_where_they_are_faster(
    tiny: Tiny, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = MEASURED if pays else replace(MEASURED, decode_int8=0.39)
    monkeypatch.setattr(models, "precisions", lambda: measured)
    loaded = load_model(tiny.model, dtype="float32", decode_weights="auto", progress=False)
    assert any(isinstance(module, Int8Linear) for module in loaded.model.modules()) == pays


def test_automatic_decode_weights_leave_other_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not models.can_decode_in_int8(nn.Sequential(nn.Linear(24, 24)))
    assert not models.can_decode_in_int8(nn.Sequential(nn.Linear(16, 16, device="meta")))


def test_every_precision_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_BYTES", 2**23)
    found = measure()
    assert all(seconds > 0 for seconds in asdict(found).values())
    # A prompt of 128 tokens takes longer than one token, whatever else the machine does.
    assert found.prompt_float32 > found.decode_float32
