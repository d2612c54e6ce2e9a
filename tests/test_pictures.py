"""Laws of pictures of states and training runs: any geometry is drawn completely; invalid input is refused."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.pictures import state_picture, training_picture
from deltamem_agents.lab.pictures.state import _Layout, _scale
from deltamem_agents.lab.pictures.training import _smooth
from deltamem_agents.memory.state import MemoryState

PNG = b"\x89PNG\r\n\x1a\n"


def state(layers: int, heads: int, rank: int) -> MemoryState:
    return MemoryState(torch.randn(1, layers, heads, rank, rank, generator=torch.Generator().manual_seed(0)))


def step(number: int, loss: float = 2.0, facts: int = 1) -> str:
    return json.dumps({"step": number, "seconds": 2.0 * number, "facts": facts, "loss": loss})


def evaluation(number: int, whole: float) -> str:
    shares = {"1 facts, whole answer": whole, "1 facts, first token": 0.9, "4 facts, whole answer": 0.1}
    return json.dumps({"step": number, "seconds": 2.0 * number, "held_out_values": shares})


def drawn_size(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.slow
@pytest.mark.parametrize("geometry", [(1, 1, 2), (20, 1, 8), (3, 4, 5)])
def test_a_state_of_any_geometry_is_drawn(geometry: tuple[int, int, int], tmp_path: Path) -> None:
    picture = tmp_path / "state.png"
    state_picture(state(*geometry), picture, "an agent")
    assert min(drawn_size(picture)) > 300


def test_an_empty_state_and_an_awkward_name_are_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "state.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state_picture(MemoryState.zeros(1, 2, 1, 4), picture, r"$\frac{ 記憶 $x$ 🧠")
    assert picture.read_bytes().startswith(PNG)


def test_the_extension_sets_the_file_type_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    vector = tmp_path / "state.svg"
    state_picture(state(2, 1, 4), vector, "an agent")
    assert b"<svg" in vector.read_bytes()
    with pytest.raises(ConfigError, match=r"\.doc"):
        state_picture(state(2, 1, 4), tmp_path / "state.doc", "an agent")
    assert not (tmp_path / "state.doc").exists()


@settings(max_examples=60)
@given(layers=st.integers(1, 80), heads=st.integers(1, 8))
def test_no_two_tiles_overlap_and_all_are_inside_the_picture(layers: int, heads: int) -> None:
    layout = _Layout.of(layers, heads)
    assert layout.rows * layout.columns >= layers > (layout.rows - 1) * layout.columns
    boxes = [layout.tile(place) for place in range(layers)] + [layout.bar()]
    for left, bottom, width, height in boxes:
        assert 0 < left < left + width < 1
        assert 0 < bottom < bottom + height < 1
    for at, (left, bottom, width, height) in enumerate(boxes):
        for other_left, other_bottom, other_width, other_height in boxes[:at]:
            apart_in_width = left >= other_left + other_width or other_left >= left + width
            assert apart_in_width or bottom >= other_bottom + other_height or other_bottom >= bottom + height


def test_one_outlier_does_not_set_the_colour_scale() -> None:
    numbers = torch.ones(1, 20, 1, 8, 8)
    numbers[0, 3, 0, 0, 0] = 1000
    assert _scale(numbers[0].double().numpy()) < 2


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=80))
def test_smoothing_keeps_the_length_and_stays_within_the_values(values: list[float]) -> None:
    smoothed = _smooth(values)
    assert len(smoothed) == len(values)
    assert all(min(values) - 1e-6 <= mean <= max(values) + 1e-6 for mean in smoothed)


def test_a_training_run_is_drawn_from_its_log(tmp_path: Path) -> None:
    lines = [evaluation(0, 0.0), *(step(n, 5 / (n + 1), facts=1 + n % 4) for n in range(40)), evaluation(40, 0.7)]
    picture = tmp_path / "training.png"
    training_picture(lines, picture)
    width, height = drawn_size(picture)
    assert width > height > 600


def test_a_log_that_is_being_written_can_be_drawn(tmp_path: Path) -> None:
    training_picture([step(0), step(1), step(1, 1.5), step(2)[:20]], tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


@pytest.mark.parametrize("lines", [[], ["not json"], [evaluation(0, 0.0)]])
def test_a_log_without_steps_is_refused(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no steps"):
        training_picture(lines, tmp_path / "training.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (
        lambda: state_picture(state(1, 1, 2), tmp_path / "a.png", "a"),
        lambda: training_picture([step(0)], tmp_path / "a.png"),
    ):
        with pytest.raises(ConfigError, match=r"deltamem-agents\[plot\]"):
            draw()


def test_a_missing_folder_raises_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        state_picture(state(1, 1, 2), tmp_path / "nowhere" / "a.png", "a")
