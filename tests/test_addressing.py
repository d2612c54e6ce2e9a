"""Laws of addressing: training keys, queries and values on told values alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deltamem_agents.lab.training.composing import WriteWeights
from deltamem_agents.lab.training.direct_path import ReadWeights, directions, matching_loss
from deltamem_agents.lab.training.recipe import Rehearsal
from deltamem_agents.lab.training.told_tokens import Asked, Pairs, draw_asked
from deltamem_agents.lab.training.trainer import initialise
from deltamem_agents.lab.training.warm_start import rehearse, values_that_say
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import unit
from tiny_activations import HIDDEN, LAYERS, WORLD
from tiny_engine import tiny_llama
from tiny_training import GATED, silent

CONFIG = replace(GATED, rank=8)
FOUND = WORLD.activations(400, seed=1)
PAIRS = Pairs.of(FOUND)
UNSEEN = Pairs.of(WORLD.activations(120, seed=2))


def fresh() -> Adapter:
    torch.manual_seed(0)
    adapter = Adapter.for_model(CONFIG, tiny_llama())
    initialise(adapter)
    return adapter


@pytest.fixture(scope="module")
def addressed() -> Adapter:
    """An adapter after 130 steps of addressing and one of rehearsal."""
    adapter = fresh().requires_grad_(False)
    plan = Rehearsal(steps=1, facts=(1,), questions=8, asides=1, addressing=130)
    rehearse(adapter, FOUND, PAIRS, WORLD.rows, plan, seed=0, say=silent)
    return adapter


def test_drawn_questions_are_about_different_subjects() -> None:
    for seed in range(20):
        asked = draw_asked(PAIRS, 4, random.Random(seed))
        subjects = [PAIRS.subjects[int(PAIRS.telling[at])] for at in (*asked.told, *asked.never_told)]
        assert len(asked.told) == 4 and len(asked.never_told) == 2
        assert len(set(subjects)) == 6


def test_with_too_few_subjects_all_of_them_are_told() -> None:
    asked = draw_asked(PAIRS, 64, random.Random(0))
    assert len({PAIRS.subjects[int(PAIRS.telling[at])] for at in asked.told}) == len(asked.told) == 10
    assert len(asked.never_told) == 0


def matches(adapter: Adapter, found: Pairs, places: Tensor, asked: Asked) -> Tensor:
    """Matches of the questions at `places` (layers, tellings, hidden) with the told values, for all of `asked`."""
    levels = []
    for slot in range(LAYERS):
        memory = adapter.layer(slot)
        told, before = found.told[slot, asked.told], found.before[slot, asked.told]
        keys = unit(told @ memory.memory_k_proj.T + before @ memory.memory_k_shift_proj.T)
        questions = places[slot, found.telling[torch.cat([asked.told, asked.never_told])]]
        levels.append(unit(questions @ memory.memory_q_proj.T) @ keys.T)
    return torch.stack(levels).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("places", [UNSEEN.asked, UNSEEN.begun], ids=["at the answer", "where the reply begins"])
def test_a_question_matches_its_value_or_nothing_if_never_told(addressed: Adapter, places: Tensor) -> None:
    right, told, others = [], [], []
    for seed in range(30):
        asked = draw_asked(UNSEEN, 4, random.Random(seed))
        level = matches(addressed, UNSEEN, places, asked)
        right += level[:4].argmax(1).eq(torch.arange(4)).tolist()
        told += level[:4].diagonal().tolist()
        others += level[4:].max(1).values.tolist()
    assert sum(right) / len(right) > 0.9
    assert sum(told) / len(told) > 0.5 > sum(others) / len(others)


def test_initial_values_map_back_to_their_tokens() -> None:
    values, says = values_that_say(CONFIG, PAIRS, WORLD.rows, seed=0)
    assert values.shape == (LAYERS, CONFIG.width, HIDDEN) and says.shape == (LAYERS, HIDDEN, CONFIG.width)
    said = torch.einsum("lnh,lwh,ldw->nd", UNSEEN.told, values, says)
    right = (normalize(said, dim=-1) @ directions(WORLD.rows).T).argmax(1).eq(UNSEEN.target).float().mean()
    assert float(right) > 0.6


@pytest.mark.slow
def test_the_matching_loss_is_lower_for_right_matches(addressed: Adapter) -> None:
    """Compared with other tellings' values in their place."""
    losses = {}
    say = torch.stack([addressed.layer(slot).get_parameter("delta_o_proj") for slot in range(LAYERS)])
    asked = draw_asked(UNSEEN, 4, random.Random(0))
    other = asked.told.roll(1)
    swapped = replace(
        UNSEEN,
        told=UNSEEN.told.index_copy(1, asked.told, UNSEEN.told[:, other]),
        before=UNSEEN.before.index_copy(1, asked.told, UNSEEN.before[:, other]),
    )
    for name, found in (("right", UNSEEN), ("wrong", swapped)):
        writing, reading = WriteWeights.of(addressed), ReadWeights.of(addressed)
        loss = matching_loss(CONFIG, writing, reading, say, torch.tensor(2.5), found, asked, WORLD.rows)
        losses[name] = float(loss)
    assert losses["right"] < losses["wrong"] / 2


def test_the_matching_loss_trains_keys_queries_and_values_but_no_gates() -> None:
    adapter = fresh()
    say, sharpness = torch.randn(LAYERS, HIDDEN, CONFIG.width), torch.tensor(2.5)
    asked = draw_asked(PAIRS, 4, random.Random(0))
    writing, reading = WriteWeights.of(adapter), ReadWeights.of(adapter)
    matching_loss(CONFIG, writing, reading, say, sharpness, PAIRS, asked, WORLD.rows).backward()
    learned = {name.split(".")[-1] for name, parameter in adapter.named_parameters() if parameter.grad is not None}
    assert learned >= {"memory_q_proj", "memory_k_proj", "memory_k_shift_proj", "memory_v_proj"}
    assert not {"beta_proj", "read_proj", "delta_o_proj"} & learned


def test_one_attribute_is_told_of_some_people_and_not_of_others() -> None:
    people = replace(
        PAIRS,
        subjects=tuple(frozenset({str(number)}) for number in range(len(PAIRS.subjects))),
        attributes=tuple(str(number // 8) for number in range(len(PAIRS.subjects))),
    )
    shared = 0
    for seed in range(20):
        asked = draw_asked(people, 8, random.Random(seed))
        told, never = ({people.attributes[one] for one in people.telling[part].tolist()} for part in asked_parts(asked))
        shared += bool(told & never)
    assert shared > 10


def asked_parts(asked: Asked) -> tuple[Tensor, Tensor]:
    return asked.told, asked.never_told
