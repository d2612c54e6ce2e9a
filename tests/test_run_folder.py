"""Laws of a run's folder: whenever the process is killed, it holds a complete checkpoint."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from children import killed_at
from deltamem_agents.lab.training.run_folder import (
    Checkpoint,
    RunFolder,
)
from deltamem_agents.memory.adapter_file import load_adapter
from deltamem_agents.memory.attach import Adapter
from tiny_training import RECIPE, word_model

SAVE_CALLS = ("fsync", "replace", "rename")


def saved_at(step: int, adapter: Adapter) -> Checkpoint:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(step)
    weights = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
    moments = {(kind, name): value.clone() for name, value in weights.items() for kind in ("exp_avg", "exp_avg_sq")}
    return Checkpoint(step, float(step), weights, moments)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_killed_during_a_save_resumes_from_a_complete_checkpoint(tmp_path: Path) -> None:
    loaded = word_model()
    adapter = Adapter.for_model(RECIPE.adapter, loaded.model)
    folder = RunFolder(tmp_path, RECIPE)
    folder.save(saved_at(1, adapter), adapter)
    step, moments = 1, 0
    while killed_at(moments + 1, SAVE_CALLS, partial(save_next, folder, step + 1, adapter)):
        moments += 1
        found = RunFolder(tmp_path, RECIPE).checkpoint()
        assert found is not None
        assert found.step in (step, step + 1)
        step = found.step
        assert all(bool((value == step).all()) for value in (*found.weights.values(), *found.moments.values()))
        usable = load_adapter(tmp_path, loaded.model)
        (filled,) = {float(value) for parameter in usable.parameters() for value in parameter.unique()}
        assert filled in range(1, step + 1)
    assert moments >= 6
    with RunFolder(tmp_path, RECIPE).claimed():
        assert not list(tmp_path.glob("*.tmp"))


def save_next(folder: RunFolder, step: int, adapter: Adapter) -> None:
    folder.save(saved_at(step, adapter), adapter)
