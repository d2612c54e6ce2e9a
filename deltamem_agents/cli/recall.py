"""`deltamem eval recall`: measures what a memory holds, with controls, and draws pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.figures import print_report, print_subject
from deltamem_agents.cli.options import DEFAULT_MODEL, AdapterDir, Device, Json, Model, Save, open_engine, watch
from deltamem_agents.cli.screen import emit, plural, stdout

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.lab.evaluation.draws import Size
    from deltamem_agents.lab.evaluation.report import Figure, Report

ALL = "all"
SUITE_NAMES = (
    "capacity",
    "held-out",
    "updates",
    "sides",
    "distance",
    "untold",
    "misled",
    "overview",
    "harmless",
    "natural",
    "people",
)
SESSION_TOKENS = 1000
"""Repeated here so that --help and usage errors do not import the suites; a test compares."""


Suites = Annotated[
    list[str] | None,
    typer.Argument(metavar="SUITE", help=f"{', '.join(SUITE_NAMES)}, or {ALL}.  [default: capacity]"),
]
Facts = Annotated[
    list[int] | None,
    typer.Option(
        "--facts", metavar="N", min=1, help="For the suite capacity: only this number of facts; may be repeated."
    ),
]
Tokens = Annotated[
    list[int] | None,
    typer.Option("--tokens", metavar="N", min=0, help="For the suite distance: only this distance; may be repeated."),
]
Questions = Annotated[
    int | None,
    typer.Option("--questions", metavar="N", min=4, help="Questions per figure, over all seeds.  [default: 300]"),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="48 questions per figure, one seed, and distances up to 1,000 tokens.")
]
Episodes = Annotated[
    Path | None,
    typer.Option("--episodes", metavar="FILE", exists=True, dir_okay=False, help="Your own episodes, as JSONL."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw capacity and distance (.png, .svg, .pdf).")
]
Saved = Annotated[
    list[Path] | None,
    typer.Option("--from", metavar="REPORT", help="Show saved reports instead of measuring; may be repeated."),
]


def recall(
    suites: Suites = None,
    facts: Facts = None,
    tokens: Tokens = None,
    questions: Questions = None,
    quick: Quick = False,
    episodes: Episodes = None,
    plot: Plot = None,
    saved: Saved = None,
    save: Save = None,
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure recall from the memory alone, together with the controls that such a figure needs.

    Conversations are absorbed. Questions about them are then asked in a new prompt that does not show them, with greedy
    decoding. The beginning of the reply is given ("Your dog's name is"), and the rest must be the whole answer,
    exactly. In the suites natural and people replies are free, and the value may stand anywhere. No told value was seen
    in training.

    The arms are the memory; memory off; a zero state; another conversation's state; and a random state of equal norm in
    every layer. Intervals are 95 %, by bootstrap over conversations. Three seeds draw the conversations.

    A line of an episodes FILE is {"messages": [{"role", "content"}], "questions": [{"question", "answer"}]}. A
    question may have a "prefix", the beginning of the reply. Without one, the free reply is searched for the answer.

    JSON: {"subject" (what was measured), "figures": [{"suite", "name", "place" (position on the picture's axis),
    "questions", "conversations", "history_tokens" (mean), "arms": {arm: {measure: {"value", "low", "high",
    "by_seed", "unit"}}}}], "seeds", "settings"}; a list of these for several REPORTs.

    Examples: deltamem eval recall --quick · deltamem eval recall capacity distance --save mine.json --plot mine.png ·
    deltamem eval recall --from a.json --from b.json --plot both.png
    """
    if plot is not None:
        from deltamem_agents.lab.pictures import import_matplotlib

        import_matplotlib()  # Fail before hours of measuring, not after.
    if saved:
        reports = _read(saved)
    else:
        wanted = _wanted(suites or [], facts, tokens, episodes)
        reports = [_measure(wanted, facts, episodes, _size(questions, tokens, quick), save, (model, adapter, device))]
    _tell(reports, as_json)
    if plot is not None:
        _draw(reports, plot, as_json)


def _read(paths: Sequence[Path]) -> list[Report]:
    from deltamem_agents.lab.evaluation.report import read_report

    return [read_report(path) for path in paths]


def _wanted(
    suites: Sequence[str], facts: Sequence[int] | None, tokens: Sequence[int] | None, episodes: Path | None
) -> list[str]:
    unknown = [name for name in suites if name not in (*SUITE_NAMES, ALL)]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is unknown; use one of {', '.join(SUITE_NAMES)}, {ALL}")
    if episodes is not None and (suites or facts or tokens):
        message = "FILE has its own facts; use it without SUITE, --facts and --tokens"
        raise typer.BadParameter(message, param_hint="--episodes")
    if facts and suites and "capacity" not in suites:
        raise typer.BadParameter("only the suite capacity has numbers of facts", param_hint="--facts")
    if tokens and not {"distance", ALL} & set(suites):
        raise typer.BadParameter("only the suite distance has distances; name it", param_hint="--tokens")
    if tokens and any(distance % SESSION_TOKENS for distance in tokens):
        raise typer.BadParameter(f"{tokens} are not all multiples of {SESSION_TOKENS}", param_hint="--tokens")
    return list(SUITE_NAMES) if ALL in suites else list(dict.fromkeys(suites)) or ["capacity"]


def _size(questions: int | None, tokens: Sequence[int] | None, quick: bool) -> Size:
    from deltamem_agents.lab.evaluation.draws import FULL, QUICK

    size = QUICK if quick else FULL
    if tokens:
        size = replace(size, distances=tuple(sorted(set(tokens))))
    return size if questions is None else replace(size, questions=questions)


def _measure(
    wanted: Sequence[str],
    facts: Sequence[int] | None,
    episodes: Path | None,
    size: Size,
    save: Path | None,
    opened: tuple[str, str | None, str],
) -> Report:
    """Measures a report. It is saved after every figure, so an interrupted run keeps what it has."""
    from deltamem_agents.lab.evaluation.report import Report, Subject

    model, adapter, device = opened
    engine = open_engine(model, adapter, "memory:", device)
    try:
        name = Path(adapter).name if adapter else "shipped"
        settings: dict[str, int | str] = {"questions": size.questions}
        if episodes is not None:
            settings = {"episodes": episodes.name}
        report = Report(Subject.of(engine, name), (), size.seeds if episodes is None else (0,), settings)
        figures = _own(engine, episodes) if episodes is not None else _figures(engine, wanted, facts, size)
        for figure in figures:
            report = replace(report, figures=(*report.figures, figure))
            if save is not None:
                report.save(save)
    finally:
        engine.close()
    return report


def _figures(
    engine: DeltaMemEngine, wanted: Sequence[str], facts: Sequence[int] | None, size: Size
) -> Iterator[Figure]:
    from deltamem_agents.lab.evaluation.suites import SUITES, capacity, run_suite

    for name in wanted:
        suite = capacity(tuple(facts)) if facts and name == "capacity" else SUITES[name].run
        yield from run_suite(engine, suite, size, watch)


def _own(engine: DeltaMemEngine, path: Path) -> Iterator[Figure]:
    from deltamem_agents.lab.evaluation.episodes_file import read_episodes
    from deltamem_agents.lab.evaluation.recall import Case, Title, evaluate_recall

    cases = [Case.of(episode) for episode in read_episodes(path)]
    title = Title("episodes", f"{path.name}, {plural(len(cases), 'conversation')}")
    yield evaluate_recall(engine, title, cases, watch=watch)


def _tell(reports: Sequence[Report], as_json: bool) -> None:
    if as_json:
        emit([report.to_json() for report in reports] if len(reports) > 1 else reports[0].to_json())
        return
    from deltamem_agents.lab.evaluation.suites import SUITES

    for report in reports:
        print_subject(report.subject)
        print_report(report, {name: suite.about for name, suite in SUITES.items()})


def _draw(reports: Sequence[Report], plot: Path, as_json: bool) -> None:
    from deltamem_agents.lab.pictures.recall import recall_picture

    recall_picture(reports, plot)
    if not as_json:
        stdout().print(f"picture: {plot}")
