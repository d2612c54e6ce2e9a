"""Laws of MemoryAgentBench's rows: reading, generating and scoring them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runs import refusal, run, run_json
from deltamem_agents.errors import ConfigError, DownloadError
from deltamem_agents.lab.corpus.episodes import held_out
from deltamem_agents.lab.corpus.values import values_of
from deltamem_agents.lab.evaluation.agent_bench import (
    BenchRow,
    conflict_score,
    conflict_task,
    label_score,
    label_task,
    read_rows,
)
from deltamem_agents.lab.evaluation.bench_tasks import EXAMPLES, FACT_COUNTS, LABEL_COUNTS, conflict_rows, label_rows
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.long_tasks import LongQuestion
from tiny_folders import Tiny

POOL: dict[str, Any] = {
    "context": "Here is a list of facts:\n0. Mia plays the harp.\n1. Leo lives in Bern.\n2. Mia plays the oboe.",
    "questions": ["What does Mia play?", "Where does Leo live?"],
    "answers": [["oboe", "the oboe"], ["Bern"]],
    "metadata": {"source": "factconsolidation_sh_6k", "qa_pair_ids": ["a", "b"]},
}
LABELLED: dict[str, Any] = {
    "context": "Is it cold?\nOr not?\nlabel: 3\n\nHow far is it?\nlabel: 0\n",
    "questions": ["Is it hot?"],
    "answers": [["3"]],
    "metadata": {"source": "icl_trec_coarse_6600shot_balance"},
}
MOVIES = {**LABELLED, "metadata": {"source": "recsys_redial_full"}}


def written(path: Path, *rows: object) -> str:
    text = "\n\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


# Reading.


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_of_a_split_are_read_from_a_file(name: str, tmp_path: Path) -> None:
    data = written(tmp_path / name, POOL, LABELLED, MOVIES)
    assert read_rows(data, "Conflict_Resolution") == [
        BenchRow(
            POOL["context"], tuple(POOL["questions"]), (("oboe", "the oboe"), ("Bern",)), "factconsolidation_sh_6k"
        )
    ]
    assert [row.source for row in read_rows(data, "Test_Time_Learning")] == ["icl_trec_coarse_6600shot_balance"]


def test_a_parquet_file_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([POOL]), path)
    same = read_rows(written(tmp_path / "rows.json", POOL), "Conflict_Resolution")
    assert read_rows(str(path), "Conflict_Resolution") == same


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"needs pyarrow.*deltamem-agents\[parquet\].*\.json"):
        read_rows(str(tmp_path / "rows.parquet"), "Conflict_Resolution")


def test_only_requested_sources_are_kept(tmp_path: Path) -> None:
    other = {**POOL, "metadata": {"source": "factconsolidation_mh_6k"}}
    data = written(tmp_path / "rows.json", POOL, other)
    assert [row.source for row in read_rows(data, "Conflict_Resolution", "_mh_")] == ["factconsolidation_mh_6k"]
    with pytest.raises(ConfigError, match=r"no row whose metadata's source is factconsolidation… with '64k' in it"):
        read_rows(data, "Conflict_Resolution", "64k")
    with pytest.raises(ConfigError, match="no row whose metadata's source is icl_…;"):
        read_rows(data, "Test_Time_Learning")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("context"), "'context' is None"),
        (lambda row: row.update(context=" "), "'context' is ' '"),
        (lambda row: row.update(questions="What?"), "'questions' is 'What"),
        (lambda row: row.update(questions=[]), r"'questions' is \[\]"),
        (lambda row: row.update(questions=["a", 3]), r"'questions' is \['a', 3\]"),
        (lambda row: row.update(answers=[["oboe"]]), "'answers' is .*not a list of texts for each of 2 questions"),
        (lambda row: row.update(answers=["oboe", "Bern"]), "'answers' is .*not a list of texts"),
        (lambda row: row.update(answers=[["oboe"], []]), "'answers' is .*not a list of texts"),
        (lambda row: row.pop("metadata"), "'metadata' is None, which has no 'source'"),
        (lambda row: row.update(metadata={}), r"'metadata' is \{\}"),
    ],
)
def test_an_invalid_row_is_named(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    row = dict(POOL)
    change(row)
    with pytest.raises(ConfigError, match=rf"rows\.json, row 2: {message}") as refused:
        read_rows(written(tmp_path / "rows.json", POOL, row), "Conflict_Resolution")
    assert "expected rows of" in str(refused.value)


def test_invalid_json_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(POOL) + "\n{\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 2: "):
        read_rows(str(path), "Conflict_Resolution")
    (tmp_path / "rows.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rows\.json: found dict"):
        read_rows(str(tmp_path / "rows.json"), "Conflict_Resolution")


def test_a_data_set_is_downloaded_only_by_its_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def fetch(dataset: str, name: str, *, repo_type: str) -> str:
        asked.append((dataset, name, repo_type))
        if dataset == "nobody/nothing":
            raise OSError("404\nmore")
        return written(tmp_path / "fetched.json", POOL)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    (row,) = read_rows("ai-hyz/MemoryAgentBench", "Conflict_Resolution")
    assert row.source == "factconsolidation_sh_6k"
    assert asked == [("ai-hyz/MemoryAgentBench", "data/Conflict_Resolution-00000-of-00001.parquet", "dataset")]
    with pytest.raises(DownloadError, match=r"'nobody/nothing' could not be fetched: 404; check"):
        read_rows("nobody/nothing", "Conflict_Resolution")
    with pytest.raises(ConfigError, match=r"'no such file' is no file; expected"):
        read_rows("no such file", "Conflict_Resolution")
    assert len(asked) == 2


# Tasks.


def row_of(row: dict[str, Any]) -> BenchRow:
    return BenchRow(
        row["context"], tuple(row["questions"]), tuple(map(tuple, row["answers"])), row["metadata"]["source"]
    )


def test_numbered_facts_are_absorbed_one_by_one_in_order() -> None:
    task = conflict_task(row_of(POOL), "facts")
    assert [message.content for message in task.sessions[0]] == [
        "0. Mia plays the harp.",
        "1. Leo lives in Bern.",
        "2. Mia plays the oboe.",
    ]
    assert [line.text for line in task.lines] == [message.content for message in task.sessions[0]]
    assert all(message.role == "user" for message in task.sessions[0])
    question = task.questions[0]
    assert (question.query, question.golds, question.kind) == ("What does Mia play?", ("oboe", "the oboe"), "facts")
    assert "larger number holds" in question.text and question.query in question.text


def test_labelled_texts_may_have_several_lines() -> None:
    task = label_task(row_of(LABELLED), "labels")
    assert [line.text for line in task.lines] == ["Is it cold?\nOr not?\nlabel: 3", "How far is it?\nlabel: 0"]
    assert task.questions[0].text.endswith("Is it hot?")
    assert task.questions[0].begun == "label:"


@pytest.mark.parametrize(("make", "row"), [(conflict_task, LABELLED), (label_task, POOL)])
def test_a_context_of_another_kind_is_refused(make: Callable[..., object], row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected numbered facts or labelled texts"):
        make(row_of(row), "x")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("Oboe.", 1), ("She plays the oboe", 1), ("oboes", 0), ("harp\noboe", 0), ("", 0), ("\n\nOboe", 1)],
)
def test_only_the_first_line_may_contain_the_answer(reply: str, expected: float) -> None:
    assert conflict_score(LongQuestion("?", "?", ("the oboe", "hautboy"), "x"), reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("3", 1),
        (" label: 3", 1),
        ("Label:3.", 1),
        ("3\nlabel: 4", 1),
        ("13", 0),
        ("3 or 4", 0),
        ("", 0),
        ("label: 4", 0),
    ],
)
def test_a_label_is_right_only_if_the_line_has_nothing_else(reply: str, expected: float) -> None:
    assert label_score(LongQuestion("?", "?", ("3",), "x"), reply) == expected


# Generated rows.


@pytest.mark.slow
@given(st.sampled_from(FACT_COUNTS), st.integers(1, 20), st.integers(1, 3))
def test_in_a_pool_the_later_of_two_contradicting_facts_is_the_answer(count: int, questions: int, seeds: int) -> None:
    size = Size(questions, tuple(range(seeds)))
    rows = list(conflict_rows(count, size))
    assert rows == list(conflict_rows(count, size))
    asked = [sum(len(row.questions) for row in rows if row.seed == seed) for seed in size.seeds]
    assert asked == [-(-questions // seeds)] * seeds
    for row in rows:
        lines = row.context.splitlines()[1:]
        assert [int(line.split(".")[0]) for line in lines] == list(range(count + count // 2))
        for question, (gold,) in zip(row.questions, row.answers, strict=True):
            (who,) = set(re.findall(r"\w+", question)) & set(values_of("person", "train"))
            told = [line for line in lines if re.search(rf"\b{gold}\b", line) and re.search(rf"\b{who}\b", line)]
            assert told
            subject = told[-1].split(". ", 1)[1].replace(gold, "…")
            same = [line for line in lines if _without_value(line, subject)]
            assert len(same) == 2
            assert gold in same[-1] and gold not in same[0]
            assert held_out(gold)


def _without_value(line: str, subject: str) -> bool:
    """Whether a line equals `subject` apart from the value."""
    before, after = subject.split("…")
    said = line.split(". ", 1)[1]
    return said.startswith(before) and said.endswith(after)


@given(st.sampled_from(LABEL_COUNTS), st.integers(1, 40))
def test_all_labels_are_shown_and_no_question_is(count: int, questions: int) -> None:
    size = Size(questions, (1,))
    rows = list(label_rows(count, size))
    assert rows == list(label_rows(count, size))
    assert sum(len(row.questions) for row in rows) == questions
    for row in rows:
        task = label_task(row, "x")
        labels = [line.text.rsplit("label: ", 1)[1] for line in task.lines]
        assert sorted(labels) == sorted([str(label) for label in range(count)] * EXAMPLES)
        assert not any(line.text.startswith(question) for line in task.lines for question in row.questions)
        assert {gold for golds in row.answers for gold in golds} <= set(labels)


def test_label_numbers_are_redrawn_for_every_row() -> None:
    """So prior knowledge is useless: over the rows, one text gets several labels."""
    labels: dict[str, set[str]] = {}
    for row in label_rows(4, Size(48, (1, 2))):
        for line in label_task(row, "x").lines:
            text, label = line.text.split("\nlabel: ")
            labels.setdefault(text, set()).add(label)
    assert max(map(len, labels.values())) >= 3


# The commands.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("conflict", [f"{count} facts" for count in FACT_COUNTS]),
        ("label-learning", [f"{count} labels" for count in LABEL_COUNTS]),
    ],
)
def test_generated_tasks_are_measured_with_every_kind_of_prompt(command: str, names: list[str], tiny: Tiny) -> None:
    report = run_json("eval", command, *tiny.options, "--quick", "--questions", "4", "--prompt-tokens", "320")
    shown = ("recent window", "question only", "BM25 snippets")
    assert [figure["name"] for figure in report["figures"]] == [f"{name} · {one}" for name in names for one in shown]
    assert all(figure["questions"] == 4 for figure in report["figures"])


@pytest.mark.slow
def test_rows_of_a_file_are_measured(tiny: Tiny, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.json", POOL, {**POOL, "metadata": {"source": "factconsolidation_mh_6k"}})
    options = [*tiny.options, "--data", data, "--prompt-tokens", "320"]
    report = run_json("eval", "conflict", *options)
    assert {figure["name"].split(" · ")[0] for figure in report["figures"]} == {
        "factconsolidation_sh_6k",
        "factconsolidation_mh_6k",
    }
    shown = run("eval", "conflict", *options, "--questions", "2")
    assert shown.exit_code == 0, shown.output
    assert "BM25 snippets" in shown.stdout
    assert "no file" in refusal("eval", "conflict", *tiny.options, "--data", "nowhere")
    assert run("eval", "conflict", *tiny.options, "--source", "sh").exit_code == 2
    assert run("eval", "conflict", *options, "--quick").exit_code == 2
