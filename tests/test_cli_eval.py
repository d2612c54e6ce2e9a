"""`deltamem eval recall`, on a random two-layer model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_runs import refusal, run, run_json
from deltamem_agents.lab.evaluation import suites
from deltamem_agents.lab.evaluation.report import read_report
from tiny_folders import Tiny

ARMS = {"memory", "off", "zero_state", "wrong_conversation", "random_state"}
WORDS = ["amber", "basil", "cedar", "delta", "ember", "fable", "grove", "haven", "ivory", "jewel", "lemon", "mango"] * 9


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the suites words, since the tiny tokenizer's tokens are bytes."""
    spread = [f"{word}{n}" for n, word in enumerate(WORDS)]
    monkeypatch.setattr(suites, "open_words", lambda tokenizer: spread)


def names(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(figure["suite"], figure["name"]) for figure in report["figures"]]


@pytest.mark.slow
def test_every_figure_has_all_controls_and_is_deterministic(tiny: Tiny, tmp_path: Path) -> None:
    options = [*tiny.options, "--facts", "1", "--facts", "2", "--questions", "6", "--save", tmp_path / "a.json"]
    report = run_json("eval", "recall", *options)
    assert names(report) == [("capacity", "1 fact"), ("capacity", "2 facts")]
    assert (report["subject"]["state_bytes"], report["subject"]["geometry"]) == (128, [2, 1, 4])
    assert (report["seeds"], report["settings"]) == ([1, 2, 3], {"questions": 6})
    for figure in report["figures"]:
        assert figure["questions"] == 6
        assert set(figure["arms"]) == ARMS
        for measures in figure["arms"].values():
            for found in measures.values():
                assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
                assert len(found["by_seed"]) == 3
    assert run_json("eval", "recall", *options) == report
    assert json.loads((tmp_path / "a.json").read_text()) == report


@pytest.mark.slow
def test_a_quick_run_has_one_seed(tiny: Tiny) -> None:
    report = run_json("eval", "recall", "capacity", *tiny.options, "--facts", "1", "--quick", "--questions", "4")
    assert report["seeds"] == [1]


@pytest.mark.slow
def test_only_the_requested_distances_are_measured(tiny: Tiny) -> None:
    options = [*tiny.options, "--tokens", "1000", "--tokens", "0", "--questions", "4"]
    assert names(run_json("eval", "recall", "distance", *options)) == [
        ("distance", "at once"),
        ("distance", "1,000 tokens"),
    ]


@pytest.mark.slow
def test_several_suites_are_shown_under_their_names(tiny: Tiny) -> None:
    shown = run("eval", "recall", "held-out", "updates", *tiny.options, "--quick", "--questions", "4")
    assert shown.exit_code == 0, shown.output
    for text in (
        "held-out: ",
        "updates: ",
        "old value",
        "whole answer",
        "first word",
        "another's",
        "128 bytes per state",
    ):
        assert text in shown.stdout
    for piece in ("deltamem: held-out: 1 fact", "deltamem: updates: 1 fact"):
        assert piece in shown.stderr


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_finished_figures(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = suites.evaluate_recall, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[1].name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(suites, "evaluate_recall", interrupted)
    path = tmp_path / "a.json"
    result = run("eval", "recall", *tiny.options, "--facts", "1", "--facts", "2", "--questions", "4", "--save", path)
    assert result.exit_code == 130
    assert [figure.name for figure in read_report(path).figures] == ["1 fact"]


def test_a_missing_plot_library_is_reported_before_measuring(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(
        "eval", "recall", *tiny.options, "--quick", "--save", tmp_path / "a.json", "--plot", tmp_path / "a.png"
    )
    assert result.exit_code == 1 and "pip install 'deltamem-agents[plot]'" in result.stderr
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.slow
def test_saved_reports_are_shown_and_drawn_without_a_model(tiny: Tiny, tmp_path: Path) -> None:
    path, picture = tmp_path / "a.json", tmp_path / "a.png"
    report = run_json(
        "eval", "recall", *tiny.options, "--facts", "1", "--questions", "4", "--save", path, "--plot", picture
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    shown = run("eval", "recall", "--from", path, "--model", "nonesuch", "--plot", picture)
    assert shown.exit_code == 0, shown.output
    assert f"picture: {picture}" in shown.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run_json("eval", "recall", "--from", path) == report
    assert run_json("eval", "recall", "--from", path, "--from", path) == [report, report]
    (tmp_path / "b.json").write_text("{}")
    assert "is no report" in refusal("eval", "recall", "--from", tmp_path / "b.json")


@pytest.mark.slow
def test_episodes_come_from_a_file(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    told = [{"role": "user", "content": "My cat is Tom."}, {"role": "assistant", "content": "Noted."}]
    row = json.dumps({"messages": told, "questions": [{"question": "Who is my cat?", "answer": "Tom"}]})
    file.write_text(f"{row}\n\n{row.replace('Tom', 'Kit')}\n", encoding="utf-8")
    report = run_json("eval", "recall", *tiny.options, "--episodes", file)
    (figure,) = report["figures"]
    assert (figure["conversations"], figure["questions"], set(figure["arms"])) == (2, 2, ARMS)
    file.write_text(f"{row}\n[]\n", encoding="utf-8")
    assert "line 2" in refusal("eval", "recall", *tiny.options, "--episodes", file).replace("deltamem:", "")
    for named in (["--facts", "1"], ["--tokens", "0"], ["updates"]):
        assert run("eval", "recall", *named, "--episodes", file).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch"], "is unknown; use one of capacity"),
        (["updates", "--facts", "2"], "only the suite capacity"),
        (["updates", "--tokens", "1000"], "only the suite distance"),
        (["distance", "--tokens", "1500"], "are not all multiples of 1000"),
    ],
)
def test_wrong_usage_is_reported_before_anything_is_loaded(arguments: list[str], message: str) -> None:
    result = run("eval", "recall", *arguments, "--model", "nonesuch")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
