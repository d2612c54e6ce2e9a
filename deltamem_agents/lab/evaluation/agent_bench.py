"""Tasks in the format of MemoryAgentBench (ai-hyz/MemoryAgentBench on the Hub): a context, questions, accepted answers.

Two of its splits are supported. Conflict resolution has numbered facts, where a later fact overrides an earlier one.
Test-time learning has texts with numerical labels. Generated tasks of the same format use the same code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard

from deltamem_agents.errors import ConfigError, DownloadError
from deltamem_agents.lab.evaluation.context import Line
from deltamem_agents.lab.evaluation.long_tasks import LongQuestion, LongTask
from deltamem_agents.lab.evaluation.token_f1 import normalised
from deltamem_agents.types import Message

HUB_DATASET = "ai-hyz/MemoryAgentBench"

Split: TypeAlias = Literal["Conflict_Resolution", "Test_Time_Learning"]
SOURCES: dict[Split, str] = {"Conflict_Resolution": "factconsolidation", "Test_Time_Learning": "icl_"}
"""Prefix of the supported sources of each split. Test-time learning also has recommendations, which are not scored."""

_EXPECTED = (
    'expected rows of {"context": text, "questions": [text], "answers": [[accepted text]], "metadata": {"source"}}'
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class BenchRow:
    """One row of the benchmark. `source`: its data set. `seed`: evaluation seed of a generated row."""

    context: str
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    source: str
    seed: int = 0


def read_rows(data: str, split: Split, source: str = "") -> list[BenchRow]:
    """The split's rows whose source name contains `source`. `data`: a .json, .jsonl or .parquet file, or a Hub id.

    Only an explicit Hub id is downloaded. Raises ConfigError for an invalid row (by number), when no row is left, or
    when pyarrow is missing; DownloadError when the download fails.
    """
    found = []
    for number, row in enumerate(_raw_rows(data, split), 1):
        try:
            parsed = _row(row)
        except ValueError as error:
            raise ConfigError(f"{data}, row {number}: {error}; {_EXPECTED}") from None
        if parsed.source.startswith(SOURCES[split]) and source in parsed.source:
            found.append(parsed)
    if not found:
        wanted = f"{SOURCES[split]}…" + (f" with {source!r} in it" if source else "")
        raise ConfigError(f"{data} has no row whose metadata's source is {wanted}; name another file or --source")
    return found


def conflict_task(row: BenchRow, name: str) -> LongTask:
    """A task from a row of numbered facts, one per line after a heading."""
    lines = [line.strip() for line in row.context.splitlines() if re.match(r"\s*\d+\.\s", line)]
    return _task(row, name, lines, _ask_fact, "")


def label_task(row: BenchRow, name: str) -> LongTask:
    """A task from a row of examples, each of which ends with a line "label: …"."""
    examples: list[str] = []
    begun: list[str] = []
    for line in row.context.splitlines():
        if line.strip():
            begun.append(line.strip())
        if line.strip().startswith("label:"):
            examples.append("\n".join(begun))
            begun = []
    return _task(row, name, examples, _ask_label, "label:")


def conflict_score(question: LongQuestion, reply: str) -> float:
    """1 if the reply's first line contains an accepted answer, else 0."""
    said = f" {normalised(_first_line(reply))} "
    return float(any(f" {normalised(gold)} " in said for gold in question.golds))


def label_score(question: LongQuestion, reply: str) -> float:
    """1 if the reply's first line is an accepted label, with or without "label:" before it, else 0."""
    said = normalised(re.sub(r"^\s*label\s*:", "", _first_line(reply), flags=re.IGNORECASE))
    return float(said in {normalised(gold) for gold in question.golds})


def _task(row: BenchRow, name: str, lines: Sequence[str], ask: Callable[[str], str], begun: str) -> LongTask:
    """Raises ConfigError if the context has no line of the expected kind."""
    if not lines:
        raise ConfigError(
            f"{row.source}: the context begins {row.context[:60]!r}, expected numbered facts or labelled texts by line"
        )
    pairs = zip(row.questions, row.answers, strict=True)
    questions = tuple(LongQuestion(ask(question), question, golds, name, begun) for question, golds in pairs)
    history = tuple(Message("user", line) for line in lines)
    return LongTask(row.source, (history,), tuple(Line(line) for line in lines), questions, row.seed)


def _ask_fact(question: str) -> str:
    return (
        "Of the numbered facts you were given, one with a larger number holds against one with a smaller number. "
        f"Answer from them alone, in a few words.\nQuestion: {question}\nAnswer:"
    )


def _ask_label(question: str) -> str:
    return f"Give this text its number, as in the labelled examples. Answer with the number alone.\n{question}"


def _first_line(reply: str) -> str:
    return reply.strip().split("\n")[0]


def _raw_rows(data: str, split: Split) -> Iterator[Any]:
    path = Path(data)
    if not path.is_file():
        if not _HUB_ID.fullmatch(data):
            raise ConfigError(
                f"{data!r} is no file; expected a .json, .jsonl or .parquet file, or the Hub id {HUB_DATASET}"
            )
        path = _fetched(data, split)
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                yield _loaded(line, f"{data}, line {number}")
    else:
        rows = _loaded(path.read_bytes(), data)
        if not isinstance(rows, list):
            raise ConfigError(f"{data}: found {type(rows).__name__}; {_EXPECTED}")
        yield from rows


def _loaded(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; {_EXPECTED}") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{path.name} needs pyarrow, which cannot be imported ({error}); pip install 'deltamem-agents[parquet]', "
            "or give the rows as .json or .jsonl"
        ) from None
    yield from parquet.read_table(path).to_pylist()


def _fetched(dataset: str, split: Split) -> Path:
    from huggingface_hub import hf_hub_download

    name = f"data/{split}-00000-of-00001.parquet"
    try:
        return Path(hf_hub_download(dataset, name, repo_type="dataset"))
    except Exception as error:  # Network, permission and naming errors share no base class.
        reason = str(error).strip().split("\n")[0]
        raise DownloadError(
            f"{name} of the data set {dataset!r} could not be fetched: {reason}; check the name and the connection, "
            "or download the file and pass its path"
        ) from None


def _row(row: Any) -> BenchRow:
    """Raises ValueError saying what is invalid."""
    if not isinstance(row, dict):
        raise ValueError(f"found {row!r}")
    context, questions, answers = row.get("context"), row.get("questions"), row.get("answers")
    if not isinstance(context, str) or not context.strip():
        raise ValueError(f"'context' is {context!r}")
    if not _is_texts(questions):
        raise ValueError(f"'questions' is {questions!r}")
    if not isinstance(answers, list) or len(answers) != len(questions) or not all(map(_is_texts, answers)):
        raise ValueError(f"'answers' is {answers!r}, not a list of texts for each of {len(questions)} questions")
    metadata = row.get("metadata")
    source = metadata.get("source") if isinstance(metadata, dict) else None
    if not isinstance(source, str):
        raise ValueError(f"'metadata' is {metadata!r}, which has no 'source'")
    return BenchRow(context, tuple(questions), tuple(tuple(golds) for golds in answers), source)


def _is_texts(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) and value for value in values)
