"""Recipes: everything that defines a training run, as frozen dataclasses read from JSON.

In the JSON, "shapes" holds named episode shapes that other parts refer to by name, and "defaults" holds settings that
apply to every stage. "adapter" may name a "preset" and then lists only what differs from it.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError, NewerFormatError
from deltamem_agents.lab.corpus.episodes import About, EpisodeShape, Teller, ValueKind

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Part = TypeVar("_Part", bound=DataclassInstance)

RECIPES = Path(__file__).parent / "recipes"

RECIPE_FORMAT = 2
"""Version 0.1 wrote format 1 without a "format" key. Format 1 also allowed stages without replay."""


@dataclass(frozen=True)
class Rehearsal:
    """Fit of the memory's projections on cached activations, before training through the model.

    `steps`: number of steps. `facts`: facts per conversation; each step draws one of these numbers. `questions`:
    answers per step, approximately. `asides`: maximum number of filler exchanges per conversation. `addressing`: steps
    beforehand that train keys, queries and values on told values alone (see `warm_start.py`).
    """

    steps: int = 600
    facts: tuple[int, ...] = (1, 2, 4, 8)
    questions: int = 64
    asides: int = 6
    addressing: int = 0

    def __post_init__(self) -> None:
        _check(self, ("steps", "questions"), *_AT_LEAST_ONE)
        _check(self, ("asides", "addressing"), "a whole number", lambda value: _is_whole(value, 0))
        _check(self, ("facts",), "a list of whole numbers above 0", lambda value: value and _are_whole(value, 1))


@dataclass(frozen=True)
class GateFit:
    """Fit of the write gates alone, on single tokens (see `gate_fit.py`).

    `steps`: number of steps. `opened`: minimum target gate for told tokens. `shut`: loss weight of a filler token
    relative to a fact token. `dropout`: dropout rate on the gates' inputs. `beside`: number of other tokens from
    tellings per step, whose gates are held at their previous values.
    """

    steps: int = 500
    opened: float = 0.85
    shut: float = 6.0
    dropout: float = 0.1
    beside: int = 768

    def __post_init__(self) -> None:
        _check(self, ("steps",), *_AT_LEAST_ONE)
        _check(self, ("beside",), "a whole number", lambda value: _is_whole(value, 0))
        _check(self, ("opened", "dropout"), "from 0 up to but not 1", lambda value: 0 <= value < 1)
        _check(self, ("shut",), "0 or more", lambda value: value >= 0)


@dataclass(frozen=True)
class WarmStart:
    """The activations that stages replay, collected before the first step, and what is fitted on them.

    `shapes`, `episodes`: kinds and number of episodes to run through the frozen model. `facts`: facts per episode; each
    episode draws one of these numbers. `renewed_every`: steps after which a quarter of the episodes is replaced by new
    ones (0: never); a stage may override it. `addressed`: number of additional episodes of which only told tokens and
    the positions that ask for them are kept, to train keys and queries. `spoken`: number of words collected behind the
    beginning of a statement, to train what is stored of a value (see `told_tokens.py`). `rehearsal`: how the
    projections are fitted on the episodes; null skips it. `gate_fit`: how write gates are fitted after that; null skips
    it.
    """

    shapes: tuple[EpisodeShape, ...] = (EpisodeShape(distractors=(0, 0), word_share=0.7),)
    episodes: int = 4000
    facts: tuple[int, ...] = (1,)
    renewed_every: int = 0
    addressed: int = 0
    spoken: int = 0
    rehearsal: Rehearsal | None = field(default_factory=Rehearsal)
    gate_fit: GateFit | None = None

    def __post_init__(self) -> None:
        _check(self, ("episodes",), *_AT_LEAST_ONE)
        _check(self, ("renewed_every", "addressed", "spoken"), "a whole number", lambda value: _is_whole(value, 0))
        _check(self, ("facts",), "a list of whole numbers above 0", lambda value: value and _are_whole(value, 1))
        _check_shapes(self)


@dataclass(frozen=True)
class Stage:
    """A phase of training.

    Each step draws one number from `facts`. It composes conversations with this number of facts each, enough of them
    for `questions` questions. Conversations concatenate exchanges of the warm start's episodes; only replies run
    through the model (see `replay.py`).

    - `asides`: minimum and maximum number of filler exchanges per eight facts; the same range gives the number of
      questions inserted in between.
    - `shapes`: episode shapes for neutral prompts and for the progress evaluation; their own `facts` is ignored.
    - `rate`, `warmup`, `rate_end`: learning rate after `warmup` steps, and where its cosine decay ends.
    - `question_writes`: share of steps in which question and reply are also written as they are read, as in use.
    - `neutral_every`, `neutral_weight`: interval in steps (0: never), and weight, of a loss that keeps the frozen
      model's predictions on unrelated prompts.
    - `begin_weight`: extra weight of a reply's first token, which decides whether the model answers from memory.
    - `noise_weight`: weight of the penalty on write gates that are open on filler.
    - `gate_weight`: weight of the write gates' classification loss, told tokens against all others.
    - `probe_weight`: weight of reading answers from the state with a linear probe, and of matching questions with
      told values (see `probe.py`).
    - `untold_weight`: weight of keeping the frozen model's replies to questions about facts never told.
    - `renewed_every`: steps of this stage after which a quarter of the episodes is replaced (0: the warm start's
      setting).
    - `gates_kept`: freeze the write gates, for instance after a gate fit.
    """

    steps: int
    facts: tuple[int, ...] = (1,)
    questions: int = 12
    shapes: tuple[EpisodeShape, ...] = (EpisodeShape(distractors=(0, 1)),)
    asides: tuple[int, int] = (0, 0)
    rate: float = 1e-3
    rate_end: float = 1e-4
    warmup: int = 20
    question_writes: float = 0.0
    neutral_every: int = 0
    neutral_weight: float = 1.0
    begin_weight: float = 0.0
    noise_weight: float = 0.0
    gate_weight: float = 0.0
    probe_weight: float = 0.0
    untold_weight: float = 0.0
    renewed_every: int = 0
    gates_kept: bool = False

    def __post_init__(self) -> None:
        _check(self, ("steps", "questions"), *_AT_LEAST_ONE)
        _check(self, ("warmup", "neutral_every", "renewed_every"), "a whole number", lambda value: _is_whole(value, 0))
        _check(self, ("rate", "rate_end", *_WEIGHTS), "0 or more", lambda value: value >= 0)
        _check(self, ("question_writes",), *_FROM_0_TO_1)
        _check(self, ("facts",), "a list of whole numbers above 0", lambda value: value and _are_whole(value, 1))
        _check(self, ("asides",), *_FEWEST_AND_MOST)
        _check(self, ("gates_kept",), "true or false", lambda value: isinstance(value, bool))
        _check_shapes(self)


@dataclass(frozen=True)
class DrawnStep:
    """One step: its `stage`, its 0-based number `into` the stage, and what it drew. `rng` draws everything else."""

    stage: Stage
    into: int
    facts: int
    shape: EpisodeShape
    rng: random.Random


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run's result apart from the machine.

    `made_up_words`: number of words of several tokens that may be told, in addition to all words of one token.
    `own_prompts`: number of neutral prompts generated by the frozen model itself (see `neutral.py`). `erased`: initial
    value of the erase gates, the share that they remove of what a key finds in the state. `evaluate_every`,
    `save_every`: steps between progress evaluations on held-out values, and between checkpoints.
    """

    model: str
    adapter: AdapterConfig
    stages: tuple[Stage, ...]
    warm_start: WarmStart = field(default_factory=WarmStart)
    seed: int = 0
    made_up_words: int = 0
    own_prompts: int = 0
    erased: float = 0.7
    evaluate_every: int = 200
    save_every: int = 50

    def __post_init__(self) -> None:
        _check(self, ("model",), "a name", lambda value: isinstance(value, str))
        _check(self, ("evaluate_every", "save_every"), *_AT_LEAST_ONE)
        _check(self, ("erased",), "above 0 and below 1", lambda value: 0 < value < 1)
        _check(self, ("seed", "made_up_words", "own_prompts"), "a whole number", lambda value: _is_whole(value, 0))
        _check(self, ("stages",), "at least one stage", bool)
        for name, trained in (("memory_write_granularity", "token"), ("read_scope", "replies")):
            if (found := getattr(self.adapter, name)) != trained:
                raise ConfigError(f"recipe: adapter.{name} is {found!r}; only {trained!r} can be trained")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def renewals_before(self, step: int) -> int:
        """How many times a quarter of the warm start's episodes has been replaced before step `step`."""
        every = self.warm_start.renewed_every
        begun, renewals = 0, 0
        for stage in self.stages:
            into = min(step - begun, stage.steps)
            if stage.renewed_every:
                renewals += into // stage.renewed_every
            elif every:
                renewals += (begun + into) // every - begun // every
            begun += into
        return renewals

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of the run's step `step`, and the step's 0-based number within that stage."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise ConfigError(f"the recipe has {self.steps} steps, expected one of them, counted from 0")

    def drawn_step(self, step: int) -> DrawnStep:
        """The training data of step `step`. Depends on the seed and the step alone, so a resumed run draws the same."""
        stage, into = self.stage_at(step)
        rng = random.Random(f"{self.seed} {step}")
        return DrawnStep(stage, into, rng.choice(stage.facts), rng.choice(stage.shapes), rng)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_json` restores an equal recipe."""
        return {"format": RECIPE_FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Raises ConfigError naming the missing, unknown or invalid key, NewerFormatError for a later format."""
        given = dict(_mapping(data, "recipe"))
        if _format_of(given) == 1:
            given = _of_format_1(given)
        if "adapter" in given:
            given["adapter"] = _adapter(given["adapter"])
        shapes = _mapping(given.pop("shapes", {}), "recipe, shapes")
        named = {name: _build(EpisodeShape, shape, f"recipe, shapes, {name}") for name, shape in shapes.items()}
        defaults = _mapping(given.pop("defaults", {}), "recipe, defaults")
        if "stages" in given:
            given["stages"] = tuple(
                _build(Stage, {**defaults, **stage}, where, named) for where, stage in _stages(given["stages"])
            )
        if "warm_start" in given:
            given["warm_start"] = _build(WarmStart, given["warm_start"], "recipe, warm_start", named)
        return _build(cls, given, "recipe")

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """A recipe by path, or a shipped one by name."""
        path = Path(name)
        if not path.is_file():
            path = RECIPES / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.json")))
            raise ConfigError(f"no recipe {str(name)!r}; give a JSON file or one of: {known}")
        try:
            data = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON ({error}); compare it with the shipped recipes") from None
        return cls.from_json(data)


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}, expected an object of settings by name")
    return data


def _stages(stages: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each stage with its name for error messages."""
    if not isinstance(stages, list | tuple):
        raise ConfigError(f"recipe: stages is {stages!r}, expected a list")
    for number, stage in enumerate(stages, 1):
        where = f"recipe, stage {number}"
        yield where, _mapping(stage, where)


def _adapter(data: object) -> AdapterConfig:
    settings = dict(_mapping(data, "recipe, adapter"))
    return AdapterConfig.of_preset(settings.pop("preset", "published"), **settings)


def _format_of(given: dict[str, Any]) -> int:
    """Pops the recipe's format."""
    found = given.pop("format", 1)
    if not _is_whole(found, 1):
        raise ConfigError(f"recipe: format is {found!r}, expected a whole number above 0")
    if found > RECIPE_FORMAT:
        raise NewerFormatError(
            f"recipe: format is {found}, this version reads up to {RECIPE_FORMAT}; upgrade the package"
        )
    return int(found)


def _of_format_1(given: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a format 1 recipe. Steps that were optional then are always done now."""
    changed = dict(given)
    if "stages" in given:
        changed["stages"] = [_without(stage, "replayed", where) for where, stage in _stages(given["stages"])]
    warm_start = given.get("warm_start")
    if isinstance(warm_start, Mapping) and isinstance(warm_start.get("gate_fit"), Mapping):
        where = "recipe, warm_start, gate_fit"
        changed["warm_start"] = {**warm_start, "gate_fit": _without(warm_start["gate_fit"], "introduced", where)}
    return changed


def _without(part: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Removes a setting of format 1 whose default was false and which is now always true."""
    if part.get(name, False) is not True:
        raise ConfigError(
            f"{where}: {name} is {part.get(name, 'missing')!r}, expected true, since this version trains nothing else; "
            f'set it to true, or remove it and give the recipe "format": {RECIPE_FORMAT}'
        )
    return {key: value for key, value in part.items() if key != name}


def _build(kind: type[_Part], data: object, where: str, named: Mapping[str, EpisodeShape] | None = None) -> _Part:
    """A dataclass from JSON, lists converted to tuples. `named`: episode shapes that may be given by name."""
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in _mapping(data, where).items()}
    if isinstance(settings.get("shapes"), tuple):
        settings["shapes"] = tuple(_shape(shape, where, named or {}) for shape in settings["shapes"])
    for name, part in (("rehearsal", Rehearsal), ("gate_fit", GateFit)):
        if settings.get(name) is not None:
            settings[name] = _build(part, settings[name], f"{where}, {name}")
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    needed = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    missing = sorted(needed - set(settings))
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} is missing; compare it with the shipped recipes")
    try:
        return kind(**settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _shape(shape: object, where: str, named: Mapping[str, EpisodeShape]) -> EpisodeShape:
    if not isinstance(shape, str):
        return _build(EpisodeShape, shape, f"{where}, shapes")
    if shape not in named:
        known = ", ".join(named) or "none"
        raise ConfigError(f"{where}: no shape is named {shape!r}; known shapes: {known}")
    return named[shape]


def _check(part: object, names: Sequence[str], expected: str, fits: Callable[[Any], object]) -> None:
    """Raises ConfigError for a value of the wrong type or out of range."""
    for name in names:
        value = getattr(part, name)
        try:
            fine = fits(value)
        except TypeError:
            fine = False
        if not fine:
            raise ConfigError(f"{name} is {value!r}, expected {expected}")


def _check_shapes(part: Stage | WarmStart) -> None:
    """Raises ConfigError for invalid shapes, and for shapes that include held-out material."""
    _check(part, ("shapes",), "a list of at least one shape", lambda value: value and _are(EpisodeShape, value))
    for shape in part.shapes:
        _check(shape, ("distractors",), *_FEWEST_AND_MOST)
        _check(shape, _CHANCES, *_FROM_0_TO_1)
        _check(shape, ("changes_around",), "a whole number", lambda value: _is_whole(value, 0))
        for name, known in (("values", ValueKind), ("tellers", Teller), ("about", About)):
            _check(shape, (name,), *_some_of(get_args(known)))
        _check(shape, ("split",), "'train', the training split", lambda value: value == "train")
        held_out = ("held_out_attributes", "held_out_phrasings")
        _check(shape, held_out, "false, since they are reserved for evaluation", lambda value: value is False)


def _some_of(known: Sequence[str]) -> _Expected:
    return f"a list of {', '.join(known)}", lambda value: value and set(value) <= set(known)


def _are(kind: type, values: Iterable[object]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_whole(values: Iterable[object], least: int) -> bool:
    return all(_is_whole(value, least) for value in values)


_Expected: TypeAlias = tuple[str, Callable[[Any], object]]

_AT_LEAST_ONE: _Expected = ("a whole number above 0", lambda value: _is_whole(value, 1))
_FROM_0_TO_1: _Expected = ("from 0 to 1", lambda value: 0 <= value <= 1)
_FEWEST_AND_MOST: _Expected = (
    "[fewest, most]",
    lambda value: _are_whole(value, 0) and len(value) == 2 and value[0] <= value[1],
)
_WEIGHTS = tuple(f"{of}_weight" for of in ("neutral", "begin", "noise", "gate", "probe", "untold"))
_CHANCES = ("word_share", "changed", "asked_before", "same_attribute", "paired", "other_prefixes", "everyday")
