"""Laws of the pointer: what was told becomes more likely where it is asked for, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from deltamem_agents.memory.pointer import NOTHING, Candidates, Pointer
from deltamem_agents.memory.writes import Writes

LAYERS, RANK, VOCABULARY = 3, 16, 50
POINTER = Pointer(torch.full((LAYERS, 1), 1 / LAYERS))


def writes(tokens: int, seed: int = 0) -> Writes:
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(tokens, LAYERS, 1, RANK, generator=generator), dim=-1)
    gates = torch.full((tokens, LAYERS, 1, 1), 0.8)
    return Writes(keys, torch.randn(keys.shape, generator=generator), gates, gates)


def bonuses(told: Candidates, queries: torch.Tensor, *said: int) -> dict[int, float]:
    ids, bonus = POINTER.bonus(torch.zeros(VOCABULARY), queries, told, said)
    return dict(zip(ids.tolist(), bonus.tolist(), strict=True))


def test_the_token_whose_key_is_asked_for_becomes_most_likely() -> None:
    kept = writes(4)
    found = bonuses(Candidates.of([(kept, [7, 8, 9, 10], None)]), kept.keys[2])
    assert max(found, key=lambda token: found[token]) == 9 and found[9] > 0


def test_what_was_told_goes_on_where_the_reply_says_its_beginning() -> None:
    kept = writes(2)
    away = -kept.keys.sum(0)
    told = Candidates.of([(kept, [7, 8], [1, 7, 8, 2])])
    assert told.before.tolist() == [NOTHING, 1, 7, 8]
    assert bonuses(told, away, 30, 7)[8] > bonuses(told, away, 30)[8] == 0


def test_a_bonus_is_never_negative_and_each_token_has_one() -> None:
    kept = writes(6)
    for query in writes(20, seed=1).keys:
        ids, bonus = POINTER.bonus(
            torch.zeros(VOCABULARY), query, Candidates.of([(kept, [5, 5, 6, 6, 7, 8], None)]), [5]
        )
        assert ids.tolist() == [5, 6, 7, 8] and bool((bonus >= 0).all())


def test_several_statements_point_as_each_of_them() -> None:
    one, other = (writes(2, 1), [3, 4], [3, 4]), (writes(2, 2), [5, 6], [9, 5, 6])
    both = bonuses(Candidates.of([one, other]), one[0].keys[0], 5)
    alone = {**bonuses(Candidates.of([one]), one[0].keys[0], 5), **bonuses(Candidates.of([other]), one[0].keys[0], 5)}
    assert both == pytest.approx(alone)


def test_a_text_that_does_not_hold_what_was_written_gives_the_written_tokens() -> None:
    kept = writes(2)
    assert Candidates.of([(kept, [7, 8], [8, 7])]).ids.tolist() == [7, 8]
