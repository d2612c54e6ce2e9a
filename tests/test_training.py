"""Laws of training runs: they change only the adapter, and resume where they were interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError, TrainingDivergedError
from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.corpus.splits import split_of
from deltamem_agents.lab.training import preserved, warm_start
from deltamem_agents.lab.training import trainer as training
from deltamem_agents.lab.training.neutral import own_replies
from deltamem_agents.lab.training.recipe import GateFit, Recipe, Stage
from deltamem_agents.lab.training.run_folder import (
    LOG_FILE,
    NEUTRAL_FILE,
    OPTIMISER_FILE,
    RECIPE_FILE,
    RunFolder,
)
from deltamem_agents.lab.training.trainer import Trainer, initialise
from deltamem_agents.loading import model_fingerprint
from deltamem_agents.memory.adapter_file import load_adapter
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.memory.delta_rule import floored_gate
from deltamem_agents.types import Message
from tiny_training import FULL, GATED, RECIPE, few_texts, renderer, silent, word_model

# One xdist worker runs them all, since they share one complete run.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]

UNREHEARSED = replace(RECIPE, warm_start=replace(RECIPE.warm_start, rehearsal=None))
"""A recipe that starts from random projections."""


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Makes runs ask few questions and generate few neutral texts."""
    patch.setattr(training, "EVALUATED_QUESTIONS", 3)
    few_texts(patch)


@pytest.fixture(autouse=True)
def _small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def trainer(folder: Path, recipe: Recipe = RECIPE, say: Callable[[str], None] = silent) -> Trainer:
    return Trainer(word_model(), renderer(), recipe, folder, say)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(load_adapter(folder, word_model().model).named_parameters())


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without the steps' times."""
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        trainer(folder).run()
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    found, expected = weights_of(folder), weights_of(other)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert log_of(folder) == log_of(other)
    ours, theirs = load_file(folder / OPTIMISER_FILE), load_file(other / OPTIMISER_FILE)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_log_has_every_step_and_evaluation_once(whole_run: Path) -> None:
    rows = log_of(whole_run)
    assert [row["step"] for row in rows if "loss" in row] == list(range(9))
    assert [row["step"] for row in rows if "held_out_values" in row] == [0, 3, 6, 9]
    assert [row["step"] for row in rows if row.get("neutral") is not None] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if row.get("untold", 0) > 0] == [7, 8]
    assert set(rows[-1]["held_out_values"]) == {f"{n} facts, {kind}" for n in (1, 2) for kind in KINDS}
    noises = [row["noise"] for row in rows if "loss" in row]
    assert max(noises) > 0 and all(0 <= noise < 1 for noise in noises)


KINDS = ("whole answer", "first token")


def test_a_run_changes_the_adapter_and_nothing_of_the_model(tmp_path: Path) -> None:
    loaded = word_model()
    run = Trainer(loaded, renderer(), replace(UNREHEARSED, stages=RECIPE.stages[:1]), tmp_path, silent)
    before = {name: value.detach().clone() for name, value in run.adapter.named_parameters()}
    attention = loaded.model.config._attn_implementation
    run.run()
    assert run.step == 2
    assert any(not torch.equal(value, before[name]) for name, value in run.adapter.named_parameters())
    assert model_fingerprint(loaded.model) == loaded.model_fingerprint
    assert loaded.model.config._attn_implementation == attention
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    attach(loaded.model, run.adapter).detach()


def test_a_run_from_an_adapter_skips_the_warm_start(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(*_: object, **__: object) -> None:
        raise AssertionError("a warm start")

    monkeypatch.setattr(training, "warm_start", fits)
    expected = weights_of(whole_run)
    start = load_adapter(whole_run, word_model().model)
    recipe = replace(RECIPE, stages=RECIPE.stages[:1])
    run = Trainer(word_model(), renderer(), recipe, tmp_path, silent, start)
    interrupt_at(run, 0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    found = weights_of(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = trainer(tmp_path, recipe)
    again.run()
    assert again.step == recipe.steps
    assert any(not torch.equal(value, expected[name]) for name, value in weights_of(tmp_path).items())


def test_a_run_from_an_adapter_may_add_and_fit_hidden_gate_units(whole_run: Path, tmp_path: Path) -> None:
    start = load_adapter(whole_run, word_model().model)
    recipe = replace(
        RECIPE,
        adapter=replace(RECIPE.adapter, gate_hidden=3),
        warm_start=replace(RECIPE.warm_start, gate_fit=GateFit(steps=3)),
        stages=(replace(RECIPE.stages[0], steps=1, rate=0.0, rate_end=0.0),),
    )
    said: list[str] = []
    run = Trainer(word_model(), renderer(), recipe, tmp_path, said.append, start)
    run.run()
    assert any("write gates, step 0 of 3" in line for line in said)
    expected, found = weights_of(whole_run), weights_of(tmp_path)
    fitted = {name for name in found if name not in expected or not torch.equal(found[name], expected[name])}
    assert {name.rsplit(".", 1)[-1] for name in fitted} == {
        "beta_proj",
        "beta_bias",
        "gate_hidden_proj",
        "gate_hidden_bias",
        "beta_hidden_proj",
    }


def test_a_stage_may_freeze_the_write_gates(tmp_path: Path) -> None:
    stage = replace(RECIPE.stages[0], gates_kept=True)
    run = trainer(tmp_path, replace(UNREHEARSED, stages=(stage,)))
    before = {name: value.detach().clone() for name, value in run.adapter.named_parameters()}
    run.run()
    kept = {
        name.rsplit(".", 1)[-1] for name, value in run.adapter.named_parameters() if torch.equal(value, before[name])
    }
    assert kept == {"beta_proj", "beta_bias"}


def test_an_adapter_of_another_geometry_is_refused_as_a_start(whole_run: Path, tmp_path: Path) -> None:
    start = load_adapter(whole_run, word_model().model)
    recipe = replace(RECIPE, adapter=replace(RECIPE.adapter, rank=RECIPE.adapter.rank + 1))
    with pytest.raises(ConfigError, match=rf"rank={RECIPE.adapter.rank}, the recipe expects rank="):
        Trainer(word_model(), renderer(), recipe, tmp_path, silent, start)
    assert not (tmp_path / LOG_FILE).exists()


def interrupt_at(run: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run._train_step

    def interrupted(begun: float) -> training.Report:
        if run.step == step:
            raise KeyboardInterrupt
        return real(begun)

    monkeypatch.setattr(run, "_train_step", interrupted)


@pytest.mark.parametrize("stops", [(0,), (1,), (3,), (2, 3), (4, 5, 5)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    stops: tuple[int, ...], whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in stops:
        run = trainer(tmp_path)
        interrupt_at(run, step, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        attach(run._model, run.adapter).detach()
    resumed = trainer(tmp_path)
    # There is a checkpoint at every second step. Steps before the last one are not repeated.
    assert resumed.step == stops[-1] - stops[-1] % 2
    resumed.run()
    assert_same_run(tmp_path, whole_run)


def test_the_learning_rate_grows_with_the_size_of_the_weights(tmp_path: Path) -> None:
    """The size of Adam's first step is its learning rate, whatever the gradient."""
    recipe = replace(UNREHEARSED, stages=(replace(RECIPE.stages[0], steps=1),))
    run = trainer(tmp_path, recipe)
    with torch.no_grad():
        for slot in range(len(run.adapter.indices)):
            run.adapter.layer(slot).get_parameter("delta_o_proj").fill_(8 * training.USUAL_SIZE)
            run.adapter.layer(slot).get_parameter("delta_q_proj").fill_(training.USUAL_SIZE / 8)
    before = {name: value.detach().clone() for name, value in run.adapter.named_parameters()}
    run.run()
    moved = {name: float((value.detach() - before[name]).abs().max()) for name, value in run.adapter.named_parameters()}
    for slot in run.adapter.indices:
        rate = moved[f"layers.{slot}.delta_q_proj"]
        assert rate == pytest.approx(recipe.stages[0].rate, rel=0.05)
        assert moved[f"layers.{slot}.delta_o_proj"] == pytest.approx(8 * rate, rel=0.05)


def test_a_run_interrupted_during_its_warm_start_begins_again(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(warm_start, "rehearse", raising(KeyboardInterrupt))
        trainer(tmp_path).run()
    RunFolder(tmp_path, RECIPE).log({"step": 0, "seconds": 0.0, "held_out_values": {}})
    trainer(tmp_path).run()
    assert_same_run(tmp_path, whole_run)


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_warm_start_is_not_repeated_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, stages=RECIPE.stages[:1])
    run = trainer(tmp_path, recipe)
    interrupt_at(run, 0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    monkeypatch.setattr(training, "warm_start", raising(AssertionError))
    trainer(tmp_path, recipe).run()


def test_a_finished_run_is_not_changed(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = trainer(folder)
    assert run.step == RECIPE.steps
    run.run()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_incomplete_log_line_is_removed(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    with (folder / LOG_FILE).open("ab") as log:
        log.write(b'{"step": 7, "sec')
    trainer(folder).run()
    assert log_of(folder) == log_of(whole_run)


def test_another_recipe_in_the_same_folder_is_refused(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"another recipe; continue it with its own recipe\.json"):
        trainer(folder, replace(RECIPE, seed=4))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert trainer(folder, Recipe.load(folder / RECIPE_FILE)).step == RECIPE.steps


def test_a_recipe_file_with_defaults_left_out_is_the_same_recipe(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    data = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    del data["stages"][0]["noise_weight"]
    del data["stages"][0]["shapes"][0]["split"]
    (folder / RECIPE_FILE).write_text(json.dumps(data), encoding="utf-8")
    assert trainer(folder).step == RECIPE.steps


def test_only_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path, RECIPE).claimed(), pytest.raises(ConfigError, match="another process is training"):
        trainer(tmp_path).run()
    with RunFolder(tmp_path, RECIPE).claimed():
        pass


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save()
    # With this checkpoint, the run below does no warm start and logs none.
    saved = (tmp_path / OPTIMISER_FILE).read_bytes()
    with torch.no_grad():
        next(run.adapter.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDivergedError, match="step 0: the loss is nan"):
        run.run()
    assert (tmp_path / OPTIMISER_FILE).read_bytes() == saved
    assert not (tmp_path / LOG_FILE).exists()
    attach(run._model, run.adapter).detach()


def test_a_damaged_checkpoint_is_refused_and_kept(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    path = folder / OPTIMISER_FILE
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"optimiser\.safetensors is damaged"):
        trainer(folder)
    assert path.read_bytes() == before


def test_an_incomplete_checkpoint_is_refused_by_name(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole_run, folder)
    moments = {name: value for name, value in load_file(folder / OPTIMISER_FILE).items() if "weight:" not in name}
    save_file(moments, folder / OPTIMISER_FILE, {"step": "7", "seconds": "1.0"})
    with pytest.raises(
        ConfigError, match=r"optimiser\.safetensors holds no complete checkpoint; restore it from a backup"
    ):
        trainer(folder)


def test_neutral_replies_are_the_frozen_models_and_are_generated_once_per_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(UNREHEARSED, stages=(replace(RECIPE.stages[1], steps=3),))
    run = trainer(tmp_path, recipe)
    interrupt_at(run, 2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    attach(run._model, run.adapter).detach()
    made = (tmp_path / NEUTRAL_FILE).read_bytes()
    kept = RunFolder(tmp_path, recipe).own_replies(NEUTRAL_FILE)
    assert kept and kept == own_replies(word_model(), preserved.neutral_prompts(), max_tokens=6, say=silent)
    monkeypatch.setattr(preserved, "own_replies", raising(AssertionError))
    trainer(tmp_path, recipe).run()
    assert (tmp_path / NEUTRAL_FILE).read_bytes() == made


@given(texts=st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_neutral_texts_survive_saving(texts: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    pairs = [(Message("user", prompt), Message("assistant", reply)) for prompt, reply in texts]
    folder = RunFolder(tmp_path_factory.mktemp("run"), RECIPE)
    assert folder.own_replies(NEUTRAL_FILE) is None
    folder.keep_own_replies(NEUTRAL_FILE, pairs)
    assert RunFolder(folder.path, RECIPE).own_replies(NEUTRAL_FILE) == pairs


def test_progress_is_evaluated_on_values_that_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(UNREHEARSED, stages=(replace(RECIPE.stages[1], steps=3),))
    run, trained, watched = trainer(tmp_path, recipe), set[str](), set[str]()
    answered, replayed = run._answered, run._replayed

    def watch(episodes: Sequence[Episode]) -> Any:
        watched.update(question.answer for episode in episodes for question in episode.questions)
        return answered(episodes)

    def train(*args: Any) -> Any:
        episodes, *rest = replayed(*args)
        trained.update(question.answer for episode in episodes for question in episode.questions)
        return episodes, *rest

    monkeypatch.setattr(run, "_answered", watch)
    monkeypatch.setattr(run, "_replayed", train)
    run.run()
    assert {split_of(value) for value in trained} == {"train"}
    assert {split_of(value) for value in watched} == {"validation"}


def test_the_learning_rate_rises_during_warmup_and_then_decays() -> None:
    stage = Stage(steps=30, rate=1e-3, rate_end=1e-4, warmup=10)
    rates = [training._rate(stage, into) for into in range(30)]
    assert rates[:10] == pytest.approx([1e-4 * (into + 1) for into in range(10)])
    assert rates[10] == pytest.approx(1e-3) and rates[10:] == sorted(rates[10:], reverse=True)
    assert training._rate(stage, 30) == pytest.approx(1e-4)
    assert 1e-4 < rates[-1] < 1.2e-4


@pytest.mark.parametrize("erased", [0.3, 0.7])
def test_erase_gates_start_at_the_given_value_for_all_tokens(erased: float) -> None:
    adapter = Adapter.for_model(replace(GATED, erase_gate=True), word_model().model)
    initialise(adapter, erased)
    for slot in range(len(adapter.indices)):
        assert not bool(adapter.layer(slot).erase_proj.any())
        assert torch.allclose(adapter.layer(slot).erase_bias.sigmoid(), torch.tensor(erased))


@pytest.mark.parametrize("config", [GATED, replace(FULL, couple_lambda=False)], ids=["gated", "learned keep gate"])
def test_write_gates_start_nearly_shut_and_read_and_keep_gates_open(config: AdapterConfig) -> None:
    """Initial gate values do not depend on the floor. Otherwise a gate with a floor would start closed and never
    write."""
    adapter = Adapter.for_model(config, word_model().model)
    initialise(adapter)
    for name, value in adapter.named_parameters():
        begins = {"beta_bias": 0.18, "read_bias": 0.82}
        kind = name.split(".")[-1]
        if kind in begins:
            torch.testing.assert_close(floored_gate(value, config.gate_floor), torch.full_like(value, begins[kind]))
        else:
            assert bool((value == 6.0).all()) if kind == "lambda_bias" else bool(value.any()), name
