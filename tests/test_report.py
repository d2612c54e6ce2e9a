"""Laws of reports: they survive saving, other files are refused, and they can be drawn."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from deltamem_agents.errors import ConfigError, NewerFormatError
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.estimates import Estimate
from deltamem_agents.lab.evaluation.report import Figure, Report, Subject, read_report
from deltamem_agents.lab.pictures.recall import recall_picture
from tiny_engine import tiny_engine

CAPACITY = {1.0: 0.96, 2.0: 0.9, 4.0: 0.8, 8.0: 0.6, 16.0: 0.3, 32.0: 0.1}
DISTANCE = {0.0: 0.8, 1000.0: 0.8, 4000.0: 0.7, 20000.0: 0.65}
PNG = b"\x89PNG\r\n\x1a\n"


def figure(suite: str, place: float | None, value: float) -> Figure:
    rng = random.Random(f"{suite} {place}")
    arms: dict[str, dict[str, Estimate]] = {
        arm.value: {"whole": Estimate(share := rng.random() / 50, share / 2, share * 2, (share, share))} for arm in Arm
    }
    arms["memory"] = {"whole": Estimate(value, max(0.0, value - 0.05), min(1.0, value + 0.05), (value, value))}
    return Figure(suite, f"{suite} at {place}", 300, 120, 88.5, arms, place)


def report(name: str = "mine", **suites: Mapping[float, float]) -> Report:
    subject = Subject("smollm2-135m-instruct", name, "f" * 64, (24, 4, 8), 24_576, "bfloat16", "cpu")
    figures = [figure(suite, place, value) for suite, curve in suites.items() for place, value in curve.items()]
    return Report(subject, tuple(figures), (1, 2), {"questions": 300})


def size_of(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


# Files.


def test_a_report_survives_saving(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    whole = report(capacity=CAPACITY, distance=DISTANCE)
    unit = {"memory": {"perplexity": Estimate(1.01, 1.0, 1.02, (1.01,), "ratio")}}
    whole = replace(whole, figures=(*whole.figures, Figure("harmless", "texts", 3, 1, 2.0, unit)))
    whole.save(path)
    assert read_report(path) == whole
    assert whole.of_suite("distance") == whole.figures[6:10]


def test_a_subject_is_what_was_measured() -> None:
    engine = tiny_engine()
    subject = Subject.of(engine, "mine")
    assert (subject.adapter, subject.geometry, subject.state_bytes) == ("mine", (2, 1, 4), 128)
    assert (subject.dtype, subject.device) == ("float32", "cpu")
    assert subject.fingerprint == engine.fingerprint.adapter


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1}', '{"format": 1, "subject": {"geometry": 3}}', '{"format": "one"}', "not json"],
)
def test_a_file_that_is_not_a_report_is_refused_with_the_next_step(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other\.json is no report .*; expected what .*--save FILE"):
        read_report(path)


def test_a_report_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    data = report(capacity=CAPACITY).to_json()
    data["figures"][0]["colour"] = "red"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ConfigError, match="colour"):
        read_report(path)


def test_a_report_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "later.json"
    path.write_text(json.dumps({**report().to_json(), "format": 2}), encoding="utf-8")
    with pytest.raises(NewerFormatError, match="format 2, this version reads up to 1; upgrade"):
        read_report(path)


# Pictures.


@pytest.mark.slow
def test_a_picture_has_a_panel_for_each_measured_suite(tmp_path: Path) -> None:
    one, both = tmp_path / "one.png", tmp_path / "both.png"
    recall_picture([report(capacity=CAPACITY)], one)
    recall_picture([report(capacity=CAPACITY, distance=DISTANCE)], both)
    (width, height), (same_width, twice) = size_of(one), size_of(both)
    assert width == same_width
    assert 1.7 * height < twice < 2.2 * height


def test_several_adapters_share_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "both.svg"
    shorter = {place: share / 2 for place, share in list(CAPACITY.items())[:3]}
    recall_picture([report("published", capacity=CAPACITY), report("wide", capacity=shorter, distance=DISTANCE)], path)
    assert path.read_text(encoding="utf-8").count("<svg") == 1


def test_figures_without_a_place_are_skipped_and_an_empty_picture_is_refused(tmp_path: Path) -> None:
    odd = replace(report(capacity=CAPACITY), figures=(figure("capacity", None, 0.5), figure("sides", None, 0.5)))
    with pytest.raises(ConfigError, match="found figures of capacity, sides, expected capacity or distance"):
        recall_picture([odd], tmp_path / "a.png")
    with pytest.raises(ConfigError, match="found figures of nothing"):
        recall_picture([report()], tmp_path / "a.png")


def test_more_adapters_than_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="6 reports were given, expected at most 5"):
        recall_picture([report(capacity=CAPACITY)] * 6, tmp_path / "a.png")


def test_an_unknown_extension_and_a_missing_library_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"ends in '.gift', expected .png"):
        recall_picture([report(capacity=CAPACITY)], tmp_path / "a.gift")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"deltamem-agents\[plot\]"):
        recall_picture([report(capacity=CAPACITY)], tmp_path / "a.png")
