"""Laws of pairs: told tokens, and the positions that ask for them."""

from __future__ import annotations

import torch

from deltamem_agents.lab.training.told_tokens import Pairs, joined_pairs
from tiny_activations import WORLD

FOUND = [WORLD.activations(tellings, seed=tellings) for tellings in (3, 5)]


def test_pairs_hold_every_told_token_and_the_one_before_it() -> None:
    pairs, source = Pairs.of(FOUND[0]), FOUND[0].tellings
    assert bool(source.told[FOUND[0].told_at].all()) and pairs.subjects == FOUND[0].subjects
    assert torch.equal(pairs.told, source.inputs[:, source.told])
    assert torch.equal(pairs.before, source.inputs[:, source.told.nonzero().squeeze(-1) - 1])


def test_pairs_also_hold_other_tokens_of_tellings_and_questions() -> None:
    pairs, found = Pairs.of(FOUND[1]), FOUND[1]
    others = found.tellings.inputs[:, ~found.tellings.told]
    both = torch.cat([others, found.questions.inputs], dim=1)
    assert 3 * len(found.subjects) < pairs.beside.shape[1] <= 4 * len(found.subjects)
    for place in pairs.beside.unbind(1):
        assert bool((both == place[:, None]).all(-1).all(0).any())
    assert torch.equal(joined_pairs([pairs, pairs]).beside[:, pairs.beside.shape[1] :], pairs.beside)


def test_joined_pairs_renumber_their_tellings() -> None:
    parts = [Pairs.of(found) for found in FOUND]
    both = joined_pairs(parts)
    assert both.telling.tolist() == list(range(8)) and both.subjects == parts[0].subjects + parts[1].subjects
    for name in ("told", "before", "asked", "begun"):
        assert torch.equal(getattr(both, name)[:, 3:], getattr(parts[1], name)), name
    assert torch.equal(both.target[:3], parts[0].target)
