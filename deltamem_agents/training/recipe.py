"""A training run as a value: what is trained, on what, in which order. Recipes are JSON files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError
from deltamem_agents.training.episodes import EpisodeShape

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class WarmStart:
    """The fit on activations before the first step: episodes drawn, descent steps, gain of the correction."""

    episodes: int = 6000
    steps: int = 300
    gain: float = 30.0


@dataclass(frozen=True)
class Stage:
    """A stretch of training. Each step draws one number of `facts` and as many episodes as give `questions`.

    `distractors`: fewest and most small-talk exchanges. `rate`: learning rate after `warmup` steps, falling
    along a cosine to `rate_end` at the stage's end. `question_writes`: share of the steps in which the
    question is written while it is read, as in use. `neutral_every`: after how many steps one goes to
    leaving other prompts alone (0: never), its loss weighted `neutral_weight`.
    """

    steps: int
    facts: tuple[int, ...] = (1,)
    questions: int = 12
    distractors: tuple[int, int] = (0, 2)
    changed: float = 0.0
    asked_before: float = 0.0
    rate: float = 1e-3
    rate_end: float = 1e-4
    warmup: int = 20
    question_writes: float = 0.0
    neutral_every: int = 0
    neutral_weight: float = 1.0
    beta_weight: float = 0.0

    def shape(self, facts: int) -> EpisodeShape:
        return EpisodeShape(facts, self.distractors, changed=self.changed, asked_before=self.asked_before)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's outcome beside the machine it runs on."""

    model: str
    adapter: AdapterConfig
    stages: tuple[Stage, ...]
    warm_start: WarmStart | None = field(default_factory=WarmStart)
    seed: int = 0
    evaluate_every: int = 200
    save_every: int = 50

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage that step `step` of the run belongs to, and how many of its steps come before."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise ConfigError(f"the recipe ends {step} steps before the one asked for")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Raises ConfigError naming a key that is missing or not known."""
        try:
            return cls(
                **{
                    **data,
                    "adapter": AdapterConfig.from_json(data["adapter"]),
                    "stages": tuple(_stage(stage) for stage in data["stages"]),
                    "warm_start": WarmStart(**data["warm_start"]) if data.get("warm_start") else None,
                }
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the recipe does not fit: {error}; compare it with those that ship") from None

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """A recipe by path, or by the name of one that ships."""
        path = Path(name)
        if not path.is_file():
            path = RECIPES / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.json")))
            raise ConfigError(f"no recipe {str(name)!r}; give a JSON file or one of: {known}")
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


def _stage(data: Mapping[str, Any]) -> Stage:
    return Stage(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
