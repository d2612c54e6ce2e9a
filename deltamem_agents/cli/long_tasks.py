"""`deltamem eval locomo`, `conflict` and `label-learning`: long histories in four arms under one prompt budget."""

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
    int, typer.Option("--prompt-tokens", metavar="N", min=64, help="Contents of a prompt, the same for every arm.")
]
Questions = Annotated[
    int | None, typer.Option("--questions", metavar="N", min=1, help="Ask so many, drawn at random.  [default: all]")
]
BenchData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|ID",
        help="Rows of MemoryAgentBench: .json, .jsonl, .parquet, or ai-hyz/MemoryAgentBench to fetch it from the Hub. "
        "Without it, tasks are generated.",
    ),
]
Source = Annotated[
    str, typer.Option("--source", metavar="TEXT", help="Only rows of DATA whose source has this in its name.")
]
Quick = Annotated[bool, typer.Option("--quick", help="48 generated questions a figure, of one seed.")]


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
    """LoCoMo: questions about two people's conversations over many months, scored by its own token F1.

    Every question is asked with the newest turns that fit the prompt, with the question alone, and with the turns
    that BM25 finds; the first two with each memory: off, the conversation's own, and the controls. "recent window,
    off" is the frozen model, "question only, memory" the memory alone. Of a memory of statements those are read that
    the question is about, and what of them returns to the window counts to the prompt. The reply's first line counts.
    Adversarial questions offer two options, as the benchmark does; guessing is right half of the time.

    The data is not part of this package: take locomo10.json from the benchmark's authors.

    JSON: as of `deltamem eval recall`.

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
    """Numbered facts that contradict each other: the later one holds. In the form of MemoryAgentBench.

    Arms as in `deltamem eval locomo`. A reply is right when the accepted answer stands in its first line.

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
    """Texts with numbers for labels, learned from examples. In the form of MemoryAgentBench's test-time learning.

    Arms as in `deltamem eval locomo`. A reply is right when its first line is the label. Generated tasks have 4 or
    8 labels, so that guessing is right in 25 or 12.5 % of cases.

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
    """The tasks, and what has to be said to get them again."""
    from deltamem_agents.lab.evaluation.agent_bench import read_rows
    from deltamem_agents.lab.evaluation.draws import FULL, QUICK
    from deltamem_agents.lab.evaluation.long_tasks import sampled

    if data is None:
        if source:
            raise typer.BadParameter("generated tasks have no sources; name --data", param_hint="--source")
        size = QUICK if quick else FULL
        size = size if questions is None else replace(size, questions=questions)
        return [made(row, name) for name, row in generated(size)], {"questions": size.questions}
    if quick:
        raise typer.BadParameter("only generated tasks have a quick size; give --questions", param_hint="--quick")
    tasks = sampled([made(row, row.source) for row in read_rows(data, split, source)], questions)
    settings: dict[str, int | str] = {"data": Path(data).name, "source": source}
    return tasks, settings if questions is None else {**settings, "questions": questions}


def _kinds(tasks: Sequence[LongTask]) -> dict[str, frozenset[str]]:
    """A row for each kind of question, in order of first appearance."""
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
