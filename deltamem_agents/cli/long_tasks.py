"""`deltamem eval locomo`, `conflict` and `label-learning`: questions about long histories, under one prompt budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.figures import print_report, print_subject
from deltamem_agents.cli.options import DEFAULT_MODEL, AdapterDir, Device, Json, Model, Save, open_engine, watch
from deltamem_agents.cli.screen import emit

if TYPE_CHECKING:
    from deltamem_agents.lab.evaluation.agent_bench import BenchRow, Split
    from deltamem_agents.lab.evaluation.draws import Size
    from deltamem_agents.lab.evaluation.long_tasks import LongTask, Rows, Scored

PromptTokens = Annotated[
    int,
    typer.Option("--prompt-tokens", metavar="N", min=64, help="Content tokens of a prompt, the same for every arm."),
]
Questions = Annotated[
    int | None, typer.Option("--questions", metavar="N", min=1, help="Ask only N random questions.  [default: all]")
]
BenchData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|ID",
        help="Rows of MemoryAgentBench: .json, .jsonl, .parquet, or ai-hyz/MemoryAgentBench to fetch it from the Hub. "
        "If left out, tasks are generated.",
    ),
]
Source = Annotated[
    str, typer.Option("--source", metavar="TEXT", help="Only rows of --data whose source name contains TEXT.")
]
Quick = Annotated[bool, typer.Option("--quick", help="48 generated questions per figure, one seed.")]


def locomo(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", exists=True, dir_okay=False, help="LoCoMo's own JSON file.")
    ],
    questions: Questions = None,
    prompt_tokens: PromptTokens = 1024,
    save: Save = None,
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """LoCoMo: questions about two people's conversations over many months, scored with its own token F1.

    Every question is asked with three kinds of prompt: the newest turns that fit, the question alone, and the turns
    that BM25 finds. The first two are asked with the memory, with memory off, and with the controls. So "recent window,
    off" is the frozen model, and "question only, memory" is the memory alone. A memory of statements is searched with
    the question; exchanges that it returns to the window count towards the prompt. Only the reply's first line is
    scored. Adversarial questions offer two options, as in the benchmark, so guessing is right half of the time.

    The data is not part of this package: get locomo10.json from the benchmark's authors.

    JSON: as for `deltamem eval recall`.

    Example: deltamem eval locomo --data locomo10.json --questions 200 --prompt-tokens 512
    """
    from deltamem_agents.lab.evaluation.locomo import ROWS, locomo_score, read_locomo
    from deltamem_agents.lab.evaluation.long_tasks import sampled
    from deltamem_agents.lab.evaluation.token_f1 import porter_stem

    porter_stem()
    tasks = sampled(read_locomo(data), questions)
    settings: dict[str, int | str] = {"data": data.name, "prompt_tokens": prompt_tokens}
    if questions is not None:
        settings["questions"] = questions
    _evaluate(tasks, ROWS, locomo_score, settings, prompt_tokens, (model, adapter, device), save, as_json)


def conflict(
    data: BenchData = None,
    source: Source = "",
    questions: Questions = None,
    quick: Quick = False,
    prompt_tokens: PromptTokens = 512,
    save: Save = None,
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Numbered facts that contradict each other, where the later one is right. In the format of MemoryAgentBench.

    Arms as in `deltamem eval locomo`. A reply is right if its first line contains an accepted answer.

    Examples: deltamem eval conflict --quick ·
    deltamem eval conflict --data ai-hyz/MemoryAgentBench --source sh_6k
    """
    from deltamem_agents.lab.evaluation.agent_bench import conflict_score, conflict_task
    from deltamem_agents.lab.evaluation.bench_tasks import FACT_COUNTS, conflict_rows
    from deltamem_agents.lab.evaluation.long_tasks import Rows

    def generated(size: Size) -> Iterator[tuple[str, BenchRow]]:
        for count in FACT_COUNTS:
            yield from ((f"{count} facts", row) for row in conflict_rows(count, size))

    tasks, settings = _tasks(data, source, questions, quick, "Conflict_Resolution", conflict_task, generated)
    rows = Rows("conflict", "right", _kinds(tasks))
    _evaluate(tasks, rows, conflict_score, settings, prompt_tokens, (model, adapter, device), save, as_json)


def label_learning(
    data: BenchData = None,
    source: Source = "",
    questions: Questions = None,
    quick: Quick = False,
    prompt_tokens: PromptTokens = 512,
    save: Save = None,
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Learning to label texts with numbers from examples. In the format of MemoryAgentBench's test-time learning.

    Arms as in `deltamem eval locomo`. A reply is right if its first line is the label. Generated tasks have 4 or 8
    labels, so guessing is right in 25 or 12.5 % of cases.

    Examples: deltamem eval label-learning --quick ·
    deltamem eval label-learning --data ai-hyz/MemoryAgentBench --source trec_coarse --questions 100
    """
    from deltamem_agents.lab.evaluation.agent_bench import label_score, label_task
    from deltamem_agents.lab.evaluation.bench_tasks import LABEL_COUNTS, label_rows
    from deltamem_agents.lab.evaluation.long_tasks import Rows

    def generated(size: Size) -> Iterator[tuple[str, BenchRow]]:
        for count in LABEL_COUNTS:
            yield from ((f"{count} labels", row) for row in label_rows(count, size))

    tasks, settings = _tasks(data, source, questions, quick, "Test_Time_Learning", label_task, generated)
    rows = Rows("label-learning", "right", _kinds(tasks))
    _evaluate(tasks, rows, label_score, settings, prompt_tokens, (model, adapter, device), save, as_json)


def _tasks(
    data: str | None,
    source: str,
    questions: int | None,
    quick: bool,
    split: Split,
    made: Callable[[BenchRow, str], LongTask],
    generated: Callable[[Size], Iterator[tuple[str, BenchRow]]],
) -> tuple[list[LongTask], dict[str, int | str]]:
    """The tasks, and the settings that reproduce them."""
    from deltamem_agents.lab.evaluation.agent_bench import read_rows
    from deltamem_agents.lab.evaluation.draws import FULL, QUICK
    from deltamem_agents.lab.evaluation.long_tasks import sampled

    if data is None:
        if source:
            raise typer.BadParameter("generated tasks have no sources; pass --data", param_hint="--source")
        size = QUICK if quick else FULL
        size = size if questions is None else replace(size, questions=questions)
        return [made(row, name) for name, row in generated(size)], {"questions": size.questions}
    if quick:
        raise typer.BadParameter("only generated tasks have a quick size; use --questions", param_hint="--quick")
    tasks = sampled([made(row, row.source) for row in read_rows(data, split, source)], questions)
    settings: dict[str, int | str] = {"data": Path(data).name, "source": source}
    return tasks, settings if questions is None else {**settings, "questions": questions}


def _kinds(tasks: Sequence[LongTask]) -> dict[str, frozenset[str]]:
    """One row per kind of question, in order of first appearance."""
    return {one.kind: frozenset({one.kind}) for task in tasks for one in task.questions}


def _evaluate(
    tasks: Sequence[LongTask],
    rows: Rows,
    scored: Scored,
    settings: dict[str, int | str],
    prompt_tokens: int,
    opened: tuple[str, str | None, str],
    save: Path | None,
    as_json: bool,
) -> None:
    from deltamem_agents.lab.evaluation.long_tasks import evaluate_tasks
    from deltamem_agents.lab.evaluation.report import Report, Subject

    model, adapter, device = opened
    engine = open_engine(model, adapter, "memory:", device)
    try:
        figures = evaluate_tasks(engine, tasks, rows, scored, prompt_tokens=prompt_tokens, watch=watch)
        subject = Subject.of(engine, Path(adapter).name if adapter else "shipped")
    finally:
        engine.close()
    seeds = tuple(dict.fromkeys(task.seed for task in tasks))
    report = Report(subject, tuple(figures), seeds, {**settings, "prompt_tokens": prompt_tokens})
    if save is not None:
        report.save(save)
    if as_json:
        emit(report.to_json())
    else:
        print_subject(report.subject)
        print_report(report, {}, all_intervals=True)
