"""`deltamem eval recall`: what a memory holds, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.options import DEFAULT_MODEL, AdapterDir, Device, Json, Model, open_engine
from deltamem_agents.cli.screen import emit, nbytes, plural, stdout, table

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.evaluation.recall import Rate, RecallReport
    from deltamem_agents.training.episodes import Episode

app = typer.Typer(no_args_is_help=True, help="Measure what a memory holds.")


class HeldOut(StrEnum):
    """What else of the episodes was never seen in training, beside the values."""

    ATTRIBUTES = "attributes"
    PHRASINGS = "phrasings"


@app.callback()
def _group() -> None:
    """Measure what a memory holds."""


@app.command()
def recall(
    facts: Annotated[
        list[int] | None,
        typer.Option("--facts", metavar="N", min=1, help="Facts told in an episode; may be repeated.  [default: 1]"),
    ] = None,
    count: Annotated[int, typer.Option("--episodes-count", metavar="N", min=2, help="Episodes for each.")] = 200,
    file: Annotated[
        Path | None,
        typer.Option("--episodes", metavar="FILE", exists=True, dir_okay=False, help="Your own episodes, as JSONL."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Equal seeds draw equal episodes.")] = 0,
    distractors: Annotated[
        tuple[int, int],
        typer.Option("--distractors", metavar="MIN MAX", min=0, help="Small talk in between, in exchanges."),
    ] = (0, 3),
    held_out: Annotated[
        list[HeldOut] | None,
        typer.Option(
            "--held-out",
            metavar="attributes|phrasings",
            help="Take these too from what was never trained on; may be repeated.",
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure recall from the state alone, beside the controls that any such figure needs.

    Conversations are absorbed and hidden, then each is asked about in a fresh prompt and answered greedily. The
    answer's first word, and all of its words, have to be exactly right. Values told were never seen in training.

    The arms are the memory itself; the memory off; a zero state; another conversation's state; and a random state of
    equal norm. Intervals are bootstrap 95 % intervals over episodes.

    A line of FILE is {"messages": [{"role", "content"}], "questions": [{"question", "answer"}]}. A question may have
    a "prefix", the beginning of the reply; without one the free reply is searched for the answer.

    JSON: {"facts" (null for FILE), "episodes", "questions", "state_bytes", "history_tokens" (mean), "arms": {"memory",
    "off", "zero_state", "wrong_conversation", "random_state": each {"first": {"rate", "low", "high"}, "whole": the
    same}}}; a list of such objects when --facts is given more than once.

    Example: deltamem eval recall --facts 1 --facts 4 --json
    """
    if file is not None and (facts or held_out):
        raise typer.BadParameter("FILE brings its own facts; leave --facts and --held-out out", param_hint="--episodes")
    if distractors[0] > distractors[1]:
        raise typer.BadParameter(f"MIN {distractors[0]} is above MAX {distractors[1]}", param_hint="--distractors")
    engine = open_engine(model, adapter, "memory:", device)
    try:
        if file is not None:
            from deltamem_agents.evaluation.recall import read_episodes

            reports = [_evaluate(engine, read_episodes(file), None, seed)]
        else:
            reports = [
                _evaluate(engine, _drawn(engine, number, distractors, held_out or (), count, seed), number, seed)
                for number in facts or [1]
            ]
    finally:
        engine.close()
    if as_json:
        emit([asdict(report) for report in reports] if len(reports) > 1 else asdict(reports[0]))
        return
    for report in reports:
        _print_report(report)


def _drawn(
    engine: DeltaMemEngine, facts: int, distractors: tuple[int, int], held_out: Sequence[HeldOut], count: int, seed: int
) -> list[Episode]:
    from deltamem_agents.evaluation.recall import generated_episodes
    from deltamem_agents.training.episodes import EpisodeShape
    from deltamem_agents.training.trainer import open_words

    shape = EpisodeShape(
        facts,
        distractors,
        split="evaluation",
        held_out_attributes=HeldOut.ATTRIBUTES in held_out,
        held_out_phrasings=HeldOut.PHRASINGS in held_out,
    )
    return generated_episodes(open_words(engine.tokenizer), shape, count, seed)


def _evaluate(engine: DeltaMemEngine, episodes: Sequence[Episode], facts: int | None, seed: int) -> RecallReport:
    from deltamem_agents.evaluation.recall import evaluate_recall
    from deltamem_agents.loading.progress import step

    told = f" of {plural(facts, 'fact')}" if facts is not None else ""
    with step(f"recall{told}, {plural(len(episodes), 'episode')}", True) as advance:
        return evaluate_recall(engine, episodes, seed=seed, facts=facts, advance=advance)


def _print_report(report: RecallReport) -> None:
    told = [] if report.facts is None else [f"{plural(report.facts, 'fact')} each"]
    counts = [plural(report.episodes, "episode"), *told, plural(report.questions, "question")]
    sizes = [f"history of {report.history_tokens:.0f} tokens on average", f"state of {nbytes(report.state_bytes)}"]
    console = stdout()
    console.print(" · ".join([*counts, *sizes]))
    columns = ("first word right", "95 % interval", "whole answer right", "95 % interval ")
    shown = table("asked with", *columns, right=columns)
    for arm, result in report.arms.items():
        cells = (*_cells(result.first), *_cells(result.whole))
        shown.add_row(arm.replace("_", " "), *cells, style="bold" if arm == "memory" else None)
    console.print(shown)


def _cells(rate: Rate) -> tuple[str, str]:
    return f"{rate.rate:.1%}", f"{rate.low:.1%} – {rate.high:.1%}"
