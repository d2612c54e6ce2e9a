"""Laws of the pointer: it raises the logits of statement tokens that the question asks for, and lowers none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from deltamem_agents.memory.pointer import STATIC_FEATURES, STEP_FEATURES, Candidates, PointedAt, Pointer, features
from deltamem_agents.memory.writes import Writes

LAYERS, RANK, VOCABULARY = 3, 16, 50
FEATURES = STATIC_FEATURES + STEP_FEATURES + 2 * LAYERS


def pointer(*, match: float = 0.0, goes_on: float = 0.0, near: float = 0.0) -> Pointer:
    """A pointer that sums a few features with these weights."""
    hidden = torch.zeros(1, FEATURES)
    hidden[0, 4:6] = near
    hidden[0, STATIC_FEATURES + LAYERS] = goes_on
    hidden[0, -LAYERS:] = match / LAYERS
    return Pointer(hidden, torch.zeros(1), torch.full((1,), 8.0), -4.0, frozenset({99}))


POINTER = pointer(match=1.0, goes_on=1.0)
NOWHERE = torch.zeros(LAYERS, 1, RANK)


def writes(tokens: int, seed: int = 0) -> Writes:
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(tokens, LAYERS, 1, RANK, generator=generator), dim=-1)
    gates = torch.full((tokens, LAYERS, 1, 1), 0.8)
    return Writes(keys, torch.randn(keys.shape, generator=generator), gates, gates)


def bonuses(candidates: Candidates, queries: torch.Tensor, *said: int) -> dict[int, float]:
    ids, bonus = POINTER.bonus(torch.zeros(VOCABULARY), queries, candidates, said)
    return dict(zip(ids.tolist(), bonus.tolist(), strict=True))


def told(*statements: PointedAt, queries: torch.Tensor = NOWHERE, asked: tuple[int, ...] = ()) -> Candidates:
    return POINTER.candidates(statements, queries, asked)


def test_the_token_whose_key_matches_the_query_gets_the_largest_bonus() -> None:
    kept = writes(4)
    found = bonuses(told((kept, [7, 8, 9, 10], None)), kept.keys[2])
    assert max(found, key=lambda token: found[token]) == 9 and found[9] > 0


def test_a_token_that_continues_the_statement_gets_a_larger_bonus() -> None:
    kept = writes(2)
    away = -kept.keys.sum(0)
    found = told((kept, [7, 8], [1, 7, 8, 2]))
    assert found.before.tolist() == [[-1, -1], [1, -1], [7, 1], [8, 7]]
    assert bonuses(found, away, 30, 7)[8] > 10 * bonuses(found, away, 30)[8]


def test_tokens_near_a_question_word_get_larger_bonuses_unless_it_is_common() -> None:
    text, near = [3, 4, 5, 6, 7, 8], pointer(near=1.0)
    found = near.candidates([(writes(6), text, text)], NOWHERE, [4])
    ids, bonus = near.bonus(torch.zeros(VOCABULARY), NOWHERE, found, [])
    assert bonus[2] == bonus[0] > bonus[3] > bonus[4] > bonus[5] and ids.tolist() == text
    common = near.candidates([(writes(6), text, text)], NOWHERE, [99])
    assert len(near.bonus(torch.zeros(VOCABULARY), NOWHERE, common, [])[1].unique()) == 1


def test_a_token_in_the_reply_gets_no_bonus_unless_it_continues_the_statement() -> None:
    found = told((writes(4), [7, 4, 4, 9], None))
    queries = writes(4).keys[1]
    assert bonuses(found, queries)[4] > 0
    # The second 4 continues the statement after the first; 7 does not continue anything.
    assert bonuses(found, queries, 7, 4)[4] > 0 and bonuses(found, queries, 7, 4)[7] == 0
    assert bonuses(found, queries, 7, 4, 4, 9) == {4: 0, 7: 0, 9: 0}


def test_bonuses_are_never_negative_and_their_token_ids_distinct() -> None:
    kept = writes(6)
    for query in writes(20, seed=1).keys:
        ids, bonus = POINTER.bonus(torch.zeros(VOCABULARY), query, told((kept, [5, 5, 6, 6, 7, 8], None)), [5])
        assert ids.tolist() == [5, 6, 7, 8] and bool((bonus >= 0).all())


def test_an_eager_pointers_surplus_scales_with_the_models_uncertainty() -> None:
    eager = replace(POINTER, out_bias=POINTER.out_bias + 6)
    both, found = replace(POINTER, eager=eager), told((writes(4), [7, 8, 9, 10], None))
    for logit, sure in ((0.0, False), (40.0, True)):
        logits = torch.zeros(VOCABULARY)
        logits[0] = logit
        plain, raised, most = (each.bonus(logits, NOWHERE, found, ())[1] for each in (POINTER, both, eager))
        if sure:
            torch.testing.assert_close(raised, plain)
        else:
            torch.testing.assert_close(raised, plain + (1 - 1 / VOCABULARY) * (most - plain))


def test_bonuses_of_several_statements_are_those_of_each_alone() -> None:
    one, other = (writes(2, 1), [3, 4], [3, 4]), (writes(2, 2), [5, 6], [9, 5, 6])
    both = bonuses(told(one, other), one[0].keys[0], 5)
    alone = {**bonuses(told(one), one[0].keys[0], 5), **bonuses(told(other), one[0].keys[0], 5)}
    assert both == pytest.approx(alone)


def test_if_the_text_lacks_written_tokens_only_these_are_candidates() -> None:
    kept = writes(2)
    assert told((kept, [7, 8], [8, 7])).ids.tolist() == [7, 8]


@given(st.integers(0, 99), st.lists(st.integers(0, VOCABULARY - 1), max_size=9), st.booleans())
def test_the_bonus_is_softplus_of_a_tanh_layer_on_the_features(seed: int, said: list[int], eager: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def network() -> Pointer:
        return Pointer(*(torch.randn(shape, generator=generator) for shape in ((5, FEATURES), (5,), (5,))), 0.3)

    drawn = replace(network(), eager=network() if eager else None)
    tokens = torch.randint(0, VOCABULARY, (6,), generator=generator).tolist()
    candidates = drawn.candidates([(writes(6, seed), tokens, tokens)], writes(1, seed + 1).keys[0], tokens[:2])
    logits = 3 * torch.randn(VOCABULARY, generator=generator)
    queries = writes(1, seed + 2).keys[0]
    judged = features(logits, queries, candidates, said)

    def plain(one: Pointer) -> torch.Tensor:
        return F.softplus(torch.tanh(judged @ one.hidden.T + one.hidden_bias) @ one.out + one.out_bias)

    expected = plain(drawn)
    if drawn.eager is not None:
        expected = expected + (1 - logits.softmax(0).max()) * (plain(drawn.eager) - expected).clamp_min(0)
    found = dict(zip(*(part.tolist() for part in drawn.bonus(logits, queries, candidates, said)), strict=True))
    for place, token in enumerate(candidates.ids.tolist()):
        goes_on = bool(said) and candidates.before[place, 0] == said[-1]
        assert found[token] >= float(expected[place]) - 1e-4 or (token in said and not goes_on)
    raised = [
        float(each)
        for each, token, before in zip(expected, candidates.ids.tolist(), candidates.before[:, 0].tolist(), strict=True)
        if token not in said or (said and before == said[-1])
    ]
    assert max(found.values()) == pytest.approx(max(raised, default=0.0), rel=1e-4, abs=1e-5)
