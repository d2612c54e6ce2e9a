"""Reports: the results of an evaluation, and their JSON file, from which pictures are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltamem_agents import __version__
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError, NewerFormatError
from deltamem_agents.lab.evaluation.estimates import Estimate

REPORT_FORMAT = 1


@dataclass(frozen=True)
class Figure:
    """One row of an evaluation: the measures with the memory and with its controls.

    `suite`, `name`: what was told and asked. `place`: position on the suite's axis, such as the number of facts; None
    without an axis. `history_tokens`: mean number of content tokens absorbed. `arms`: estimates by arm and measure.
    """

    suite: str
    name: str
    questions: int
    conversations: int
    history_tokens: float
    arms: Mapping[str, Mapping[str, Estimate]]
    place: float | None = None


@dataclass(frozen=True)
class Subject:
    """The model and adapter that were measured. `geometry`: (layers, heads, r) of a state.

    `fingerprint`: fingerprint of the adapter's weights.
    """

    model: str
    adapter: str
    fingerprint: str
    geometry: tuple[int, int, int]
    state_bytes: int
    dtype: str
    device: str

    @classmethod
    def of(cls, engine: DeltaMemEngine, adapter: str) -> Subject:
        """`adapter`: the adapter's display name."""
        state, weights = engine.new_state(), next(engine.model.parameters())
        return cls(
            model=engine.model_name,
            adapter=adapter,
            fingerprint=engine.fingerprint.adapter,
            geometry=state.geometry,
            state_bytes=state.nbytes,
            dtype=str(weights.dtype).removeprefix("torch."),
            device=weights.device.type,
        )


@dataclass(frozen=True)
class Report:
    """The figures of one adapter, with the `seeds` and `settings` that reproduce them."""

    subject: Subject
    figures: tuple[Figure, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, int | str] = field(default_factory=dict)
    version: str = __version__
    format: int = REPORT_FORMAT

    def of_suite(self, suite: str) -> tuple[Figure, ...]:
        return tuple(figure for figure in self.figures if figure.suite == suite)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: Path) -> None:
        """Writes it as JSON. Raises OSError."""
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Reads a saved report. Raises ConfigError for an invalid file, NewerFormatError for one of a later version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _misfit(path, str(error)) from None
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > REPORT_FORMAT:
        raise NewerFormatError(
            f"{path} is a report of format {version}, this version reads up to {REPORT_FORMAT}; upgrade the package"
        )
    if version != REPORT_FORMAT:
        raise _misfit(path, f"its format is {version!r}")
    try:
        subject = data["subject"]
        return Report(
            Subject(**{**subject, "geometry": tuple(subject["geometry"])}),
            tuple(_figure(row) for row in data["figures"]),
            tuple(data["seeds"]),
            data["settings"],
            data["version"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _misfit(path, f"{type(error).__name__}: {error}") from None


def _figure(row: Mapping[str, Any]) -> Figure:
    arms = {
        arm: {
            name: Estimate(**{**estimate, "by_seed": tuple(estimate["by_seed"])}) for name, estimate in measures.items()
        }
        for arm, measures in row["arms"].items()
    }
    return Figure(**{**row, "arms": arms})


def _misfit(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path} is no report of an evaluation ({found}); expected what `deltamem eval recall --save FILE` writes, "
        "run it again to get one"
    )
