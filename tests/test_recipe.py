"""Laws of recipes: they survive JSON, and invalid settings are refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents.config import PRESETS, AdapterConfig
from deltamem_agents.errors import ConfigError, NewerFormatError
from deltamem_agents.lab.corpus.episodes import EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.training.recipe import RECIPES, Recipe, Rehearsal, Stage, WarmStart
from tiny_training import LEARNED_WORDS, RECIPE

OF_VERSION_0_1 = Path(__file__).parent / "recipes_0_1"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_by_name_and_names_its_model(path: Path) -> None:
    recipe = Recipe.load(path.stem)
    assert recipe == Recipe.load(path)
    assert recipe.steps > 0
    assert recipe.adapter.base_model == recipe.model
    for shape in (*recipe.warm_start.shapes, *(shape for stage in recipe.stages for shape in stage.shapes)):
        EpisodeGenerator([*LEARNED_WORDS, "abbey", "willow", "meadow"], shape).draw(random.Random(0))


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, *(Recipe.load(path) for path in sorted(RECIPES.glob("*.json")))],
)
def test_a_recipe_survives_a_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_recipe_without_a_warm_start_key_has_the_default_one() -> None:
    data = RECIPE.to_json()
    del data["warm_start"]
    assert Recipe.from_json(data).warm_start == WarmStart()
    assert Recipe.from_json({**data, "warm_start": {}}).warm_start == WarmStart()
    assert Recipe.from_json({**data, "warm_start": {"rehearsal": {}}}).warm_start == WarmStart()
    assert Recipe.from_json({**data, "warm_start": {"rehearsal": {"steps": 5}}}).warm_start == WarmStart(
        rehearsal=Rehearsal(steps=5)
    )
    assert Recipe.from_json({**data, "warm_start": {"rehearsal": None}}).warm_start == WarmStart(rehearsal=None)


def test_json_lists_become_tuples() -> None:
    shape = {"distractors": [0, 2], "values": ["word", "date"], "tellers": ["user", "tool"], "about": ["person"]}
    stage = {"steps": 3, "facts": [1, 8], "asides": [0, 1], "shapes": [shape]}
    (read,) = Recipe.from_json({**RECIPE.to_json(), "stages": [stage]}).stages
    whole = EpisodeShape(distractors=(0, 2), values=("word", "date"), tellers=("user", "tool"), about=("person",))
    assert read == Stage(steps=3, facts=(1, 8), asides=(0, 1), shapes=(whole,))


MISSING = object()


def altered(path: Sequence[str | int], value: object, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe's JSON with one value changed or removed."""
    data = json.loads(json.dumps(data or RECIPE.to_json()))
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["learning_rate"], 1e-3, "recipe: unknown keys learning_rate; known are model, adapter"),
        (["stages", 1, "fact"], 1, "recipe, stage 2: unknown keys fact; known are steps, facts"),
        (["warm_start", "epochs"], 1, "recipe, warm_start: unknown keys epochs"),
        (["adapter", "ranks"], 1, "unknown keys ranks"),
        (["model"], MISSING, "recipe: model is missing"),
        (["stages"], MISSING, "recipe: stages is missing"),
        (["adapter"], MISSING, "recipe: adapter is missing"),
        (["stages", 0, "steps"], MISSING, "recipe, stage 1: steps is missing"),
        (["stages", 0, "steps"], 0, "stage 1: steps is 0, expected a whole number above 0"),
        (["stages", 0, "steps"], "10", "stage 1: steps is '10'"),
        (["stages", 0, "facts"], [], r"facts is \(\), expected a list of whole numbers above 0"),
        (["stages", 0, "facts"], [1, 0], "facts is"),
        (["stages", 0, "facts"], 3, "facts is 3"),
        (["stages", 0, "asides"], [3, 1], r"asides is \(3, 1\), expected \[fewest, most\]"),
        (["stages", 0, "asides"], [1], "asides is"),
        (["stages", 0, "noise_weight"], -1, "stage 1: noise_weight is -1, expected 0 or more"),
        (["stages", 0, "replayed"], True, "stage 1: unknown keys replayed"),
        (
            ["stages", 0, "shapes"],
            ["words"],
            "stage 1: no shape is named 'words'; known shapes: none",
        ),
        (["shapes"], {"words": {"word": 1}}, "recipe, shapes, words: unknown keys word; known are facts"),
        (["shapes"], ["words"], r"recipe, shapes is \['words'\], expected an object"),
        (["defaults"], 3, "recipe, defaults is 3, expected an object"),
        (["defaults"], {"step": 3}, "recipe, stage 1: unknown keys step"),
        (["format"], "2", "recipe: format is '2', expected a whole number above 0"),
        (["stages", 0, "question_writes"], 1.5, "question_writes is 1.5, expected from 0 to 1"),
        (["stages", 0, "shapes"], [], r"stage 1: shapes is \(\), expected a list of at least one shape"),
        (["stages", 0, "shapes"], "small", "shapes is 'small'"),
        (["stages", 0, "shapes"], [3], "recipe, stage 1, shapes is 3, expected an object"),
        (["stages", 0, "shapes", 0, "distractor"], 1, "stage 1, shapes: unknown keys distractor; known are facts"),
        (["stages", 0, "shapes", 0, "distractors"], [3, 1], r"distractors is \(3, 1\), expected \[fewest, most\]"),
        (["stages", 0, "shapes", 0, "changed"], 1.5, "changed is 1.5, expected from 0 to 1"),
        (["stages", 0, "shapes", 0, "word_share"], "much", "word_share is 'much', expected from 0 to 1"),
        (["stages", 0, "shapes", 0, "values"], ["wrod"], r"values is \('wrod',\), expected a list of word, number"),
        (["stages", 0, "shapes", 0, "tellers"], [], r"tellers is \(\), expected a list of user, assistant"),
        (["stages", 0, "shapes", 0, "about"], "user", "about is 'user', expected a list of user, person"),
        (["stages", 0, "shapes", 0, "changes_around"], -1, "changes_around is -1, expected a whole number"),
        (["stages", 0, "shapes", 0, "split"], "evaluation", "split is 'evaluation', expected 'train'"),
        (["stages", 0, "shapes", 0, "held_out_attributes"], True, "held_out_attributes is True, expected false"),
        (["warm_start", "shapes", 0, "held_out_phrasings"], True, "warm_start: held_out_phrasings is True"),
        (["warm_start", "shapes"], [], "warm_start: shapes is"),
        (["warm_start", "episodes"], 0, "episodes is 0, expected a whole number above 0"),
        (["warm_start", "rehearsal", "steps"], 0, "warm_start, rehearsal: steps is 0, expected a whole number above 0"),
        (["warm_start", "rehearsal", "facts"], [0], "rehearsal: facts is"),
        (["warm_start", "rehearsal", "asides"], -1, "rehearsal: asides is -1"),
        (["warm_start", "rehearsal", "gain"], 1, "warm_start, rehearsal: unknown keys gain; known are steps, facts"),
        (["warm_start", "rehearsal"], 3, "warm_start, rehearsal is 3, expected an object"),
        (["warm_start"], None, "recipe, warm_start is None, expected an object"),
        (["stages", 0, "rate"], None, "rate is None"),
        (["stages", 0], "first", "stage 1 is 'first', expected an object"),
        (["stages"], {}, "stages is {}, expected a list"),
        (["stages"], [], "expected at least one stage"),
        (["save_every"], 0, "save_every is 0"),
        (["seed"], "x", "seed is 'x'"),
        (["made_up_words"], 0.5, "made_up_words is 0.5, expected a whole number"),
        (["own_prompts"], -1, "own_prompts is -1, expected a whole number"),
        (["erased"], 1, "erased is 1, expected above 0 and below 1"),
        (["adapter"], "tsw", "recipe, adapter is 'tsw', expected an object"),
        (["adapter", "memory_write_granularity"], "message_mean", "key_shift"),
        (["adapter", "read_scope"], "all", "adapter.read_scope is 'all'; only 'replies' can be trained"),
        (["adapter", "preset"], "mine", "preset is 'mine', expected one of published, shipped"),
        (["adapter", "gate_floor"], 1, "gate_floor is 1, expected a number from 0 to below 1"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(path: list[str | int], value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(altered(path, value))


def test_only_adapters_that_write_tokens_can_be_trained() -> None:
    with pytest.raises(ConfigError, match="only 'token' can be trained"):
        replace(RECIPE, adapter=AdapterConfig(memory_write_granularity="message_mean"))


def test_shapes_can_be_named_and_defaults_apply_to_every_stage() -> None:
    data = {
        "format": 2,
        "model": "tiny",
        "adapter": {"preset": "shipped", "rank": 4, "base_model": "tiny"},
        "shapes": {"few": {"distractors": [0, 0]}, "many": {"distractors": [1, 3]}},
        "warm_start": {"shapes": ["few"]},
        "defaults": {"shapes": ["few", "many"], "questions": 6, "rate": 0.5},
        "stages": [{"steps": 1}, {"steps": 2, "shapes": ["many", {"word_share": 1.0}], "rate": 0.25}],
    }
    few, many = EpisodeShape(distractors=(0, 0)), EpisodeShape(distractors=(1, 3))
    assert Recipe.from_json(data) == Recipe(
        model="tiny",
        adapter=AdapterConfig(rank=4, base_model="tiny", **PRESETS["shipped"]),  # type: ignore[arg-type]
        warm_start=WarmStart(shapes=(few,)),
        stages=(
            Stage(steps=1, shapes=(few, many), questions=6, rate=0.5),
            Stage(steps=2, shapes=(many, EpisodeShape(word_share=1.0)), questions=6, rate=0.25),
        ),
    )


# Formats.


def test_a_recipe_of_a_later_format_is_refused_by_name() -> None:
    with pytest.raises(NewerFormatError, match="recipe: format is 3, this version reads up to 2; upgrade"):
        Recipe.from_json(altered(["format"], 3))


@pytest.mark.parametrize("name", ["small", "lasting"])
def test_a_recipe_of_version_0_1_is_the_same_recipe(name: str) -> None:
    assert Recipe.load(OF_VERSION_0_1 / f"{name}.json") == Recipe.load(name)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["stages", 0, "replayed"], False, "recipe, stage 1: replayed is False, expected true"),
        (["stages", 0, "replayed"], MISSING, "recipe, stage 1: replayed is 'missing', expected true, since"),
        (["warm_start", "gate_fit", "introduced"], MISSING, "warm_start, gate_fit: introduced is 'missing', expected"),
        (["warm_start"], None, "recipe, warm_start is None, expected an object"),
        (["adapter", "read_scope"], "all", "only 'replies' can be trained"),
    ],
)
def test_settings_that_only_version_0_1_supports_are_refused_by_name(
    path: list[str | int], value: object, message: str
) -> None:
    data = json.loads((OF_VERSION_0_1 / "lasting.json").read_bytes())
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(altered(path, value, data))


def test_the_error_for_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'wied'.*wide"):
        Recipe.load("wied")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff"])
def test_a_file_that_is_not_a_recipe_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not valid JSON|expected an object"):
        Recipe.load(path)


def test_each_step_belongs_to_its_stage() -> None:
    first, second, third = RECIPE.stages
    assert [RECIPE.stage_at(step) for step in range(RECIPE.steps)] == [
        *((first, into) for into in range(2)),
        *((second, into) for into in range(5)),
        *((third, into) for into in range(2)),
    ]
    with pytest.raises(ConfigError, match="the recipe has 9 steps"):
        RECIPE.stage_at(9)


def test_a_stage_may_override_how_often_episodes_are_renewed() -> None:
    warm, stage = WarmStart(renewed_every=4), Stage(steps=10)
    recipe = replace(RECIPE, warm_start=warm, stages=(stage, replace(stage, steps=5, renewed_every=2), stage))
    counts = [recipe.renewals_before(step) for step in range(recipe.steps)]
    assert counts[:10] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert counts[10:15] == [2, 2, 3, 3, 4]
    # Counted on from the run's start: at steps 16, 20 and 24.
    assert counts[15:] == [4, 5, 5, 5, 5, 6, 6, 6, 6, 7]
    assert not any(
        replace(RECIPE, warm_start=replace(warm, renewed_every=0)).renewals_before(step) for step in range(9)
    )
