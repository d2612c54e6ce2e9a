"""Laws of matching: the statement whose key matches the query best comes first; below the floor nothing is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from deltamem_agents.errors import ConfigError, StateError
from deltamem_agents.memory.matcher import Matcher, Replacing
from deltamem_agents.memory.recall import StatementIndex
from deltamem_agents.memory.writes import Writes
from deltamem_agents.types import Role

LAYERS, RANK = 3, 16


def statement(seed: int, tokens: int = 3, strength: float = 0.8) -> Writes:
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(tokens, LAYERS, 1, RANK, generator=generator), dim=-1)
    gates = torch.full((tokens, LAYERS, 1, 1), strength)
    return Writes(keys, torch.randn(keys.shape, generator=generator), gates, gates)


def index(matcher: Matcher, *statements: Writes) -> StatementIndex:
    found = StatementIndex(matcher)
    for writes in statements:
        found.add(writes, None, "user")
    return found


def test_the_statement_whose_key_matches_the_query_comes_first() -> None:
    statements = [statement(seed) for seed in range(50)]
    matcher = Matcher.uniform(LAYERS, 1)
    for number in (0, 17, 49):
        queries = statements[number].keys[1][None]
        scores = index(matcher, *statements).scores(queries, [])
        assert index(matcher, *statements).chosen(queries, []) == [(number, float(scores[number]))]
        assert scores.argmax() == number


def test_scoring_between_additions_does_not_change_scores() -> None:
    statements = [statement(seed, tokens=1 + seed % 4) for seed in range(9)]
    matcher = Matcher.uniform(LAYERS, 1)
    queries = statement(77).keys
    found = StatementIndex(matcher)
    for each in statements:
        found.add(each, None, "user")
        found.scores(queries, [])
    assert torch.equal(found.scores(queries, []), index(matcher, *statements).scores(queries, []))


def test_a_weakly_written_token_is_not_matched() -> None:
    weak = statement(1, strength=0.01)
    assert index(Matcher.uniform(LAYERS, 1), weak).scores(weak.keys, []).tolist() == pytest.approx([-10])


def test_half_precision_writes_give_nearly_the_same_scores() -> None:
    statements = [statement(seed) for seed in range(40)]
    matcher, queries = Matcher.uniform(LAYERS, 1), statement(99).keys
    full, half = index(matcher, *statements), index(matcher, *(each.half() for each in statements))
    torch.testing.assert_close(full.scores(queries, []), half.scores(queries, []), atol=3e-2, rtol=0)


SCORES = st.floats(-1, 1, width=32)


@given(st.lists(SCORES, max_size=12), SCORES, st.floats(0, 1), st.integers(1, 4))
def test_choosing_respects_the_floor_the_margin_and_the_number(
    scores: list[float], floor: float, margin: float, most: int
) -> None:
    matcher = Matcher(torch.ones(1, 1), floor=floor, margin=margin, most=most)
    given = torch.tensor(scores)
    found = matcher.best(given, matcher.heights(given, torch.zeros(len(scores))) >= floor)
    chosen = [place for place, _ in found]
    assert [score for _, score in found] == torch.tensor(scores)[chosen].tolist()
    assert len(chosen) <= most and len(set(chosen)) == len(chosen)
    assert bool(chosen) == any(score >= floor for score in torch.tensor(scores).tolist())
    for place in chosen:
        assert scores[place] >= floor and scores[place] >= max(scores) - margin - 1e-6
    assert chosen == sorted(chosen, key=lambda place: -scores[place])


@pytest.mark.parametrize(("words", "read"), [([1], False), ([1, 2], True), ([7, 8], False)])
def test_a_statement_with_more_of_the_questions_words_reaches_the_floor_earlier(words: list[int], read: bool) -> None:
    """Words count nothing in the score itself."""
    asked, writes = [1, 2, 3], statement(5)
    matcher = replace(Matcher.uniform(LAYERS, 1), words=0.0, near=0.0)
    found = StatementIndex(matcher)
    found.add(writes, [*words, 99], "user")
    for other in range(9):
        found.add(statement(other + 10), [], "user")
    score = float(found.scores(writes.keys[:1], asked)[0])
    strict = replace(matcher, floor=score + 1.0, coverage=2.0, newest=0.0)
    assert bool(found.chosen(writes.keys[:1], asked, matcher=strict)) == read


def test_a_statement_whose_keys_match_well_enough_is_read_below_the_floor() -> None:
    writes = statement(5)
    matcher = replace(Matcher.uniform(LAYERS, 1), floor=1e9)
    found = index(matcher, writes, statement(6))
    score = float(found.scores(writes.keys[:1], [])[0])
    for sure, read in ((score - 0.1, [0]), (score + 0.2, [])):
        assert [place for place, _ in found.chosen(writes.keys[:1], [], matcher=replace(matcher, sure=sure))] == read


def test_a_word_in_common_decides_between_equal_keys() -> None:
    found, writes = StatementIndex(Matcher.uniform(LAYERS, 1)), statement(5)
    for terms in ([1, 2, 3], [1, 2, 4], [1, 5, 5, 6]):
        found.add(writes, terms, "user")
    assert [found.chosen(writes.keys, [1, rare])[0][0] for rare in (3, 4, 5)] == [0, 1, 2]


def test_the_assistants_statements_score_lower_than_the_users() -> None:
    found, writes = StatementIndex(Matcher.uniform(LAYERS, 1)), statement(5)
    for role in ("assistant", "user", "assistant"):
        found.add(writes, [1], role)
    assert found.chosen(writes.keys, [1])[0][0] == 1


FITTED = replace(Matcher.uniform(LAYERS, 1), floor=0.0)
"""A matcher with a floor, as fitted ones have."""


@given(st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_a_reply_of_the_assistant_is_read_only_if_nothing_else_may_be(seed: int, other: int, before: bool) -> None:
    """However well the reply matches: it repeats the question's words, so a wrong one would match best."""
    reply, told, asked = statement(seed), statement(other), [1, 2, 3]
    matcher = replace(FITTED, assistant=50.0, floor=-50.0)
    rows = [(reply, [1, 2, 3, 4], "assistant"), (told, [1, 5], "user")]
    found = StatementIndex(matcher)
    for writes, terms, role in rows if before else rows[::-1]:
        found.add(writes, terms, role)
    by_user = int(before)
    assert [place for place, _ in found.chosen(reply.keys[:1], asked)] == [by_user]
    alone = torch.arange(2) != by_user
    assert [place for place, _ in found.chosen(reply.keys[:1], asked, alone)] == [1 - by_user]


@given(st.lists(st.integers(1, 5), max_size=6), st.lists(st.integers(1, 5), max_size=6))
def test_a_statement_without_a_word_besides_the_questions_is_not_read(terms: list[int], asked: list[int]) -> None:
    """Such as the same question, asked before."""
    writes, found = statement(5), StatementIndex(FITTED)
    found.add(writes, terms, "user")
    may = not terms or bool(set(terms) - set(asked))
    assert bool(found.chosen(writes.keys[:1], asked)) == may
    assert found.chosen(writes.keys[:1], asked, matcher=FITTED.without_floor())


def test_the_newer_of_two_equal_statements_comes_first() -> None:
    found = StatementIndex(Matcher.uniform(LAYERS, 1))
    for writes in (statement(5), statement(6), statement(5)):
        found.add(writes, [1, 2], "user")
    assert found.chosen(statement(5).keys, [1])[0][0] == 2


def test_neighbours_with_words_of_the_question_raise_a_statements_score() -> None:
    found, writes = StatementIndex(Matcher.uniform(LAYERS, 1)), statement(5)
    for number in range(60):
        found.add(writes, [7] if number in (20, 40, 41) else [100 + number], "user")
    scores = found.scores(writes.keys, [7])
    assert scores[40] > scores[20] > scores[39] > scores[10]


def test_words_of_most_questions_count_less() -> None:
    matcher = replace(Matcher.uniform(LAYERS, 1), commonness={1: 0.1})
    found, writes = StatementIndex(matcher), statement(5)
    for terms in ([1], [2], [3]):
        found.add(writes, terms, "user")
    assert found.chosen(writes.keys, [1, 2])[0][0] == 1


def test_a_prompt_that_asks_for_nothing_reads_nothing() -> None:
    asking = statement(8).keys[0]
    matcher = replace(Matcher.uniform(LAYERS, 1), asking=asking, asking_bias=-1.0)
    found = index(matcher, statement(5))
    assert found.chosen(asking[None], []) and not found.chosen(-asking[None], [])


REPLACING = Replacing(alike=0.6, alike_long=0.95, alike_owner=0.6, long=4, missing=0.1, behind=3.0)


def told(*statements: tuple[Writes, list[int], Role], replacing: Replacing | None = REPLACING) -> StatementIndex:
    """An index of statements, given as (writes, words, role). Most tests query the first statement's first key."""
    found = StatementIndex(replace(Matcher.uniform(LAYERS, 1), newest=0.0, replacing=replacing))
    for writes, terms, role in statements:
        found.add(writes, terms, role)
    return found


def weaker(writes: Writes) -> Writes:
    """The same writes with slightly rotated keys, which match the same query less well."""
    keys = F.normalize(writes.keys + 0.5 * statement(123, len(writes.keys)).keys, dim=-1)
    return replace(writes, keys=keys)


def test_a_newer_update_replaces_a_better_match() -> None:
    old, other = statement(5), statement(6)
    asked = [(old, [1, 2], "user"), (other, [3], "user"), (weaker(old), [1, 2], "user")]
    assert told(*asked, replacing=None).chosen(old.keys[:1], [1])[0][0] == 0
    (place, score), *others = told(*asked).chosen(old.keys[:1], [1])
    assert place == 2 and not others
    assert score == float(told(*asked).scores(old.keys[:1], [1])[2])


def test_the_newest_of_several_updates_is_read() -> None:
    old = statement(5)
    asked = [(old, [1], "user"), (weaker(old), [1], "user"), (weaker(old), [1, 9], "user"), (statement(8), [4], "user")]
    assert told(*asked).chosen(old.keys[:1], [1])[0][0] == 2


@pytest.mark.parametrize(
    "newer",
    [
        pytest.param((weaker(statement(5)), [1], "user"), id="about another person: a word of the question is missing"),
        pytest.param((statement(6), [1, 2], "user"), id="about another fact: other keys"),
        pytest.param((weaker(statement(5)), [1, 2], "assistant"), id="said by the assistant"),
    ],
)
def test_only_updates_of_the_same_fact_replace_a_statement(newer: tuple[Writes, list[int], Role]) -> None:
    old = statement(5)
    assert told((old, [1, 2], "user"), newer).chosen(old.keys[:1], [1, 2])[0][0] == 0


def test_a_newer_statement_with_a_much_lower_score_replaces_nothing() -> None:
    old = statement(5)
    asked = [(old, [1], "user"), (weaker(old), [1], "user")]
    assert told(*asked, replacing=replace(REPLACING, behind=0.1)).chosen(old.keys[:1], [1])[0][0] == 0


def test_a_newer_statement_below_the_floor_replaces_nothing() -> None:
    old = statement(5)
    asked = [(old, [1, 2], "user"), (weaker(old), [1, 3], "user")]
    best, newer = told(*asked).scores(old.keys[:1], [1]).tolist()
    for floor, place in ((newer - 0.01, 1), ((best + newer) / 2, 0)):
        found = told(*asked)
        matcher = replace(Matcher.uniform(LAYERS, 1), newest=0.0, replacing=REPLACING, floor=floor)
        assert found.chosen(old.keys[:1], [1], matcher=matcher)[0][0] == place


def test_a_long_statement_is_replaced_only_by_a_very_similar_one() -> None:
    long = statement(5, tokens=4)
    for newer, place in ((weaker(long), 0), (long, 1)):
        rows: list[tuple[Writes, list[int], Role]] = [(long, [1], "user"), (newer, [1, 2], "user")]
        found = told(*rows).chosen(long.keys[:1], [1])
        assert found[0][0] == place


CITY, SISTER, TOM = 1, 50, 51
"""Words: what is asked for, and whose it is."""


def owned(*statements: tuple[Writes, list[int]]) -> StatementIndex:
    """An index of the user's statements, given as (writes, words). SISTER and TOM tell whose a fact is."""
    found = StatementIndex(replace(Matcher.uniform(LAYERS, 1), newest=0.0, words=0.0, near=0.0, replacing=REPLACING))
    for writes, terms in statements:
        found.add(writes, terms, "user", frozenset(terms) & {SISTER, TOM})
    return found


def asked_of(found: StatementIndex, writes: Writes, *words: int) -> int:
    """The first statement that a question with these words and the first key of `writes` reads."""
    return found.chosen(writes.keys[:1], words, owners=frozenset(words) & {SISTER, TOM})[0][0]


@pytest.mark.parametrize("mine_first", [True, False])
def test_the_same_fact_of_each_owner_is_told_apart_in_any_order(mine_first: bool) -> None:
    mine = statement(5)
    told = [(mine, [CITY]), (weaker(mine), [CITY, SISTER]), (weaker(mine), [CITY, TOM])]
    found = owned(*(told if mine_first else told[::-1]))
    places = {(): 0, (SISTER,): 1, (TOM,): 2}
    for owner, place in places.items():
        assert asked_of(found, mine, CITY, *owner) == (place if mine_first else 2 - place)


def test_a_newer_fact_of_the_same_owner_replaces_the_older_one_and_no_others() -> None:
    old = statement(5)
    found = owned((old, [CITY, SISTER]), (weaker(old), [CITY]), (weaker(old), [CITY, SISTER]), (weaker(old), [CITY]))
    assert asked_of(found, old, CITY, SISTER) == 2 and asked_of(found, old, CITY) == 3


def test_another_kind_of_fact_of_the_owner_asked_about_replaces_nothing() -> None:
    city, job = statement(5), statement(6)
    assert asked_of(owned((city, [CITY]), (job, [2, SISTER])), city, CITY, SISTER) == 0


def test_a_statement_of_several_facts_is_not_replaced_for_its_owners() -> None:
    several = statement(5, tokens=4)
    found = owned((weaker(several), [CITY]), (several, [CITY, SISTER, TOM]))
    assert asked_of(found, several, CITY) == 1


def test_a_question_about_somebody_else_reads_no_short_statement() -> None:
    mine, several = statement(5), statement(6, tokens=4)
    matcher = replace(Matcher.uniform(LAYERS, 1), owned_from=4)
    found = StatementIndex(matcher)
    found.add(mine, [CITY], "user")
    queries, asked = mine.keys[:1], [CITY, SISTER]
    assert found.chosen(queries, asked)[0][0] == 0
    assert found.chosen(queries, asked, owners=frozenset({SISTER})) == []
    assert found.chosen(queries, asked, matcher=matcher.without_floor(), owners=frozenset({SISTER}))[0][0] == 0
    found.add(several, [CITY], "user")
    assert found.chosen(queries, asked, owners=frozenset({SISTER}))[0][0] == 1
    without_text = index(matcher, mine)
    assert without_text.chosen(queries, asked, owners=frozenset({SISTER}))[0][0] == 0
    found.add(mine, [SISTER], "user")
    assert found.chosen(queries, asked, owners=frozenset({SISTER}))[0][0] == 2


def test_a_common_word_of_only_the_older_statement_does_not_hide_an_update() -> None:
    old = statement(5)
    for commonness, place in ((1.0, 0), (0.05, 1)):
        found = StatementIndex(
            replace(Matcher.uniform(LAYERS, 1), newest=0.0, replacing=REPLACING, commonness={7: commonness})
        )
        for writes, terms in ((old, [CITY, 7]), (weaker(old), [CITY])):
            found.add(writes, terms, "user")
        # 99 stands in neither, so it says nothing about which of them is meant.
        assert found.chosen(old.keys[:1], [CITY, 7, 99])[0][0] == place


def test_a_question_for_what_the_assistant_said_reads_the_assistants_statement() -> None:
    advice = statement(8).keys[0]
    matcher = replace(Matcher.uniform(LAYERS, 1), advice=advice, advice_bias=-1.0, advised=3.0, newest=0.0)
    found, asked = StatementIndex(matcher), statement(9).keys[:1]
    for role in ("user", "assistant"):
        found.add(statement(5), [1], role)
    told = found.chosen(torch.cat([-asked, asked]), [1])
    assert told[0][0] == 0
    back = found.chosen(torch.cat([2 * advice[None] - asked, asked]), [1])
    assert back[0][0] == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=10), st.integers(0, 3))
def test_a_replacement_is_newer_and_allowed_to_be_read(statements: list[tuple[int, bool]], asked: int) -> None:
    able = torch.tensor([may for _, may in statements])
    rows = [(statement(seed), [seed], "user") for seed, _ in statements]
    queries = statement(asked).keys[:1]
    plain = told(*rows, replacing=None).chosen(queries, [asked], able)
    found = told(*rows).chosen(queries, [asked], able)
    assert bool(found) == bool(plain) == bool(able.any())
    assert all(able[place] for place, _ in found)
    for (place, _), (before, _) in zip(found[:1], plain[:1], strict=True):
        assert place >= before and statements[place][0] == statements[before][0]


@pytest.mark.parametrize(("strong", "other", "read"), [(1, 1, [0]), (5, 5, [0]), (6, 1, [0, 1]), (1, 6, [0, 1])])
def test_two_statements_are_read_only_if_one_holds_several_facts(strong: int, other: int, read: list[int]) -> None:
    best = statement(5, tokens=strong)
    found = StatementIndex(replace(Matcher.uniform(LAYERS, 1), margin=100.0, most=2, margin_from=6))
    for writes, terms in ((best, [1, 2]), (statement(6, tokens=other), [1, 2])):
        found.add(writes, terms, "user")
    assert sorted(place for place, _ in found.chosen(best.keys[:1], [1, 2])) == read


def test_a_question_for_everything_reads_the_newest_told_statements() -> None:
    everything = statement(8).keys[0]
    matcher = replace(
        Matcher.uniform(LAYERS, 1),
        overview=everything,
        overview_bias=-1.0,
        overview_most=2,
        floor=1e9,
        asking=-everything,
    )
    found = StatementIndex(matcher)
    for seed, role in enumerate(("user", "user", "assistant", "tool", "user", "user")):
        found.add(statement(seed, strength=0.01 if seed == 4 else 0.8), None, role)
    read = found.chosen(everything[None], [])
    assert [place for place, _ in read] == [5, 3]
    able = torch.tensor([True, True, True, False, True, False])
    assert [place for place, _ in found.chosen(everything[None], [], able)] == [1, 0]
    assert not found.chosen(-everything[None], [])
    assert StatementIndex(matcher).chosen(everything[None], []) == []


def test_an_empty_index_finds_nothing() -> None:
    matcher = Matcher.uniform(LAYERS, 1)
    empty, queries = StatementIndex(matcher), torch.zeros(1, LAYERS, 1, RANK)
    assert (
        empty.chosen(queries, []) == [] and not len(empty.scores(queries, [1])) and not len(empty.heights(queries, [1]))
    )


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(StateError, match="the matcher expects"):
        index(Matcher.uniform(LAYERS + 1, 1), statement(0))
    with pytest.raises(ConfigError, match="expected at least 1"):
        Matcher(torch.ones(1, 1), most=0)
