"""Laws of the suites of `deltamem eval recall`: what each draws and counts, end to end on a random two-layer model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltamem_agents.cli.recall import SESSION_TOKENS, SUITE_NAMES
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.episodes import held_out
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.evaluation import distance, harmless, natural, people, untold
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import FULL, HELD_OUT_VALUES, QUICK, Size, drawn_cases, generated_episodes
from deltamem_agents.lab.evaluation.matching import contains
from deltamem_agents.lab.evaluation.recall import FIRST, WHOLE, unwatched
from deltamem_agents.lab.evaluation.report import Figure
from deltamem_agents.lab.evaluation.suites import COUNTS, SUITES, capacity, conversation, run_suite
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message, Sampling
from tiny_training import word_engine

# One xdist worker runs them all, since they share the figures of one run.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("suites")]

Figures = Callable[[str], list[Figure]]
ARMS = {arm.value for arm in Arm}
SIZE = Size(4, (1, 2), (0, 1000))
WORDS = open_words(word_engine().tokenizer)


@pytest.fixture(scope="module", autouse=True)
def _short_replies() -> Iterator[None]:
    """Limits replies: a random model rarely ends one by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untold, "FREE_REPLY_TOKENS", 6)
        patch.setattr(natural, "FREE_REPLY_TOKENS", 6)
        patch.setattr(natural, "_SAMPLING", Sampling(max_tokens=6))
        # Two people are enough for these tests.
        everybody = people.people
        patch.setattr(people, "people", lambda split: everybody(split)[:2])
        patch.setattr(people, "REPLY_TOKENS", 6)
        patch.setattr(people, "HISTORY_TOKENS", 500)
        yield


@pytest.fixture(scope="module")
def engine() -> DeltaMemEngine:
    return word_engine()


@pytest.fixture(scope="module")
def figures(engine: DeltaMemEngine) -> Figures:
    """Runs each requested suite once; capacity with two counts."""
    runs = {name: suite.run for name, suite in SUITES.items()} | {"capacity": capacity((1, 4))}
    return cache(lambda name: list(run_suite(engine, runs[name], SIZE, unwatched)))


def told_by_each(monkeypatch: pytest.MonkeyPatch, engine: DeltaMemEngine, value: str) -> None:
    """Makes every reply give `value`."""
    monkeypatch.setattr(engine, "greedy_replies", lambda states, asked, *, max_tokens: [f" {value}."] * len(asked))


# Every suite.


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_every_figure_has_enough_questions_and_all_controls(name: str, figures: Figures) -> None:
    assert figures(name)
    for figure in figures(name):
        assert figure.suite == name
        assert figure.questions >= SIZE.questions
        assert set(figure.arms) - {natural.READ_ONLY, people.HISTORY_ARM, people.SNIPPETS_ARM} == ARMS
        assert figure.history_tokens > 0
        measured = {tuple(measures) for measures in figure.arms.values()}
        assert len(measured) == 1
        for measures in figure.arms.values():
            for found in measures.values():
                # The suite people has fixed conversations and therefore no seeds.
                assert len(found.by_seed) == (1 if name == people.SUITE else len(SIZE.seeds))
                assert found.low <= found.value <= found.high


@pytest.mark.parametrize("name", ["capacity", "untold", "harmless", "natural"])
def test_a_suite_gives_equal_figures_on_an_engine_with_equal_weights(name: str, figures: Figures) -> None:
    run = capacity((1, 4)) if name == "capacity" else SUITES[name].run
    assert list(run_suite(word_engine(), run, SIZE, unwatched)) == figures(name)


def test_the_command_line_knows_every_suite() -> None:
    assert set(SUITE_NAMES) == set(SUITES)
    assert SESSION_TOKENS == distance.SESSION_TOKENS
    assert FULL.questions >= 300 and len(FULL.seeds) == 3
    assert QUICK.questions < 100 and max(QUICK.distances) < max(FULL.distances)


# What is drawn.


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.sampled_from(COUNTS))
@example(1, 3, 200)
def test_each_seed_draws_its_share_of_the_questions(questions: int, seeds: int, facts: int) -> None:
    size = Size(questions, tuple(range(seeds)))
    cases = drawn_cases(WORDS, conversation(facts), size)
    asked = Counter({seed: 0 for seed in size.seeds})
    for case in cases:
        asked[case.seed] += len(case.questions)
        assert 1 <= len(case.questions) <= facts
        assert len({one.text for one in case.questions}) == len(case.questions)
    assert set(asked.values()) == {-(-questions // seeds)}


def test_only_some_of_many_facts_are_asked_for() -> None:
    cases = drawn_cases(WORDS, replace(HELD_OUT_VALUES, facts=32), Size(24, (1,)))
    assert len(cases) == 12
    assert {len(case.questions) for case in cases} == {2}


def test_cases_are_determined_by_the_seed() -> None:
    one, other = (drawn_cases(WORDS, HELD_OUT_VALUES, Size(8, (seed,))) for seed in (1, 2))
    assert drawn_cases(WORDS, HELD_OUT_VALUES, Size(8, (1,))) == one
    assert one != other
    assert generated_episodes(WORDS, HELD_OUT_VALUES, 5, 1)[:3] == generated_episodes(WORDS, HELD_OUT_VALUES, 3, 1)


def test_every_answer_is_held_out_from_training() -> None:
    for shape in (HELD_OUT_VALUES, replace(HELD_OUT_VALUES, facts=4, values=("phrase", "number", "date", "time"))):
        cases = drawn_cases(WORDS, shape, Size(40, (1,)))
        assert all(held_out(asked.answer) for case in cases for asked in case.questions)


def test_a_conversations_other_values_count_as_confusions() -> None:
    shape = replace(HELD_OUT_VALUES, facts=4)
    for case in drawn_cases(WORDS, shape, Size(16, (1,)), confusions=True):
        for asked in case.questions:
            assert len(asked.wrong) == 3
            assert asked.answer not in asked.wrong
    assert all(not asked.wrong for case in drawn_cases(WORDS, shape, SIZE) for asked in case.questions)


# Suite by suite.


def test_capacity_figures_are_placed_by_their_number_of_facts(figures: Figures) -> None:
    one, four = figures("capacity")
    assert (one.place, four.place) == (1, 4)
    assert one.conversations > four.conversations or four.conversations == SIZE.questions
    assert set(one.arms["memory"]) == {WHOLE, FIRST}
    assert set(four.arms["memory"]) == {WHOLE, FIRST, "another's value"}


def test_only_changed_facts_have_an_old_value(figures: Figures) -> None:
    for figure in figures("updates"):
        assert ("old value" in figure.arms["memory"]) == ("changed later" in figure.name)


def test_fifty_changes_make_a_long_conversation(figures: Figures) -> None:
    *_, kept = figures("updates")
    once = figures("updates")[0]
    assert kept.history_tokens > 10 * once.history_tokens


def test_a_distance_has_the_stated_length(figures: Figures) -> None:
    at_once, far = figures("distance")
    assert (at_once.place, far.place) == (0, 1000)
    assert 1000 <= far.history_tokens - at_once.history_tokens < 1200


def test_distance_states_equal_those_of_the_whole_history(
    engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states at each distance equal those of the whole history, absorbed session by session."""
    monkeypatch.setattr(distance, "SESSION_TOKENS", 40)
    read: list[list[MemoryState]] = []
    real = distance.readings

    def readings(cases: Any, states: list[MemoryState], arms: Any) -> Any:
        read.append(states)
        return real(cases, states, arms)

    heard: list[list[Message]] = []
    absorbed = distance.absorbed

    def listening(engine: Any, talks: Sequence[Sequence[Message]], tick: Any, states: Any = None) -> Any:
        heard.append(list(talks[0]))
        return absorbed(engine, talks, tick, states)

    monkeypatch.setattr(distance, "readings", readings)
    monkeypatch.setattr(distance, "absorbed", listening)
    list(distance.distance(engine, WORDS, Size(4, (1,), (0, 40, 120)), unwatched))
    state = engine.new_state()
    for talk in heard:
        state = engine.absorb(state, talk)
    assert len(heard) == 4
    torch.testing.assert_close(read[-1][0].matrices, state.matrices, rtol=1e-3, atol=1e-4)


def test_every_conversation_has_its_own_small_talk(engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Sequence[Sequence[Message]]] = []
    absorbed = distance.absorbed

    def listening(engine: Any, talks: Any, tick: Any, states: Any = None) -> Any:
        heard.append(talks)
        return absorbed(engine, talks, tick, states)

    monkeypatch.setattr(distance, "absorbed", listening)
    monkeypatch.setattr(distance, "SESSION_TOKENS", 40)
    list(distance.distance(engine, WORDS, Size(8, (1,), (0, 40)), unwatched))
    _, fillers = heard
    assert len({tuple(talk) for talk in fillers}) == len(fillers)


def test_a_told_value_in_an_untold_reply_is_always_counted(
    engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always answers with a told value is counted, with free replies and with given beginnings."""
    said: dict[str, str] = {}

    def greedy_replies(states: Any, conversations: Sequence[Sequence[Message]], *, max_tokens: int) -> list[str]:
        return [" " + said[messages[0].content] for messages in conversations]

    real = untold._case

    def remembering(*arguments: Any) -> Any:
        case = real(*arguments)
        for asked in case.questions:
            assert asked.wrong and asked.prefix
            assert not any(contains(asked.text, value) for value in asked.wrong)
            said[asked.text] = asked.wrong[0]
        return case

    monkeypatch.setattr(untold, "_case", remembering)
    monkeypatch.setattr(engine, "greedy_replies", greedy_replies)
    for figure in untold.untold(engine, WORDS, Size(4, (1,)), unwatched):
        for measures in figure.arms.values():
            assert measures[untold.SAME].value == 1.0
        assert figure.arms["memory"][untold.FREE].value > 0.7
        assert figure.arms["memory"][untold.BEGUN].value > 0.7


@pytest.mark.parametrize("name", ["harmless", "untold"])
def test_a_zero_state_and_memory_off_change_nothing(name: str, figures: Figures) -> None:
    for figure in figures(name):
        for arm in ("off", "zero_state"):
            measures = figure.arms[arm]
            if untold.SAME in measures:
                assert measures[untold.SAME].value == 1.0
            if harmless.MARGIN in measures:
                assert measures[harmless.MARGIN].value == pytest.approx(0, abs=1e-6)
            if harmless.PERPLEXITY in measures:
                assert measures[harmless.PERPLEXITY].value == pytest.approx(1, abs=1e-6)


def test_a_random_adapters_disturbance_is_measured(figures: Figures) -> None:
    """The tiny engine's corrections are large, so the measures must show a disturbance."""
    replies, texts = figures("harmless")
    assert replies.arms["memory"][untold.SAME].value < 1.0
    assert replies.arms["memory"][harmless.MARGIN].value > 0
    assert texts.arms["memory"][harmless.PERPLEXITY].value != pytest.approx(1, abs=1e-3)
    assert texts.arms["memory"][harmless.PERPLEXITY].unit == "ratio"


def test_perplexity_is_the_likelihood_ratio_of_the_texts(engine: DeltaMemEngine) -> None:
    figure = list(harmless.harmless(engine, WORDS, Size(2, (1,)), unwatched))[1]
    cases = harmless._distributed(WORDS, Size(2, (1,)), harmless.neutral_replies())
    lost = tokens = 0.0
    for case in cases:
        state = engine.absorb(engine.new_state(), case.messages)
        for asked in case.questions:
            frozen, steered = (
                engine.score(memory, [Message("user", asked.text)], asked.answer) for memory in (None, state)
            )
            lost, tokens = lost + frozen.logprob - steered.logprob, tokens + frozen.tokens
    expected = torch.tensor(lost / tokens).exp().item()
    assert figure.arms["memory"][harmless.PERPLEXITY].value == pytest.approx(expected, rel=1e-3)


def test_there_are_enough_neutral_texts_and_none_twice() -> None:
    found = harmless.neutral_replies()
    assert len(found) >= 36
    assert len({prompt for prompt, _ in found}) == len(found)
    assert all(40 <= len(reply.split()) <= 90 for _, reply in found)


def test_natural_turns_are_whole_turns_in_a_store_of_their_own(
    engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts are told in one thread, each question has a new one, and the caller's store is not used."""
    turns: list[tuple[str, str, list[Message]]] = []
    real = DeltaMemEngine.run_turn

    def run_turn(self: DeltaMemEngine, agent: str, messages: Sequence[Message], **options: Any) -> Any:
        turns.append((agent, options["thread"], list(messages)))
        turn = real(self, agent, messages, **options)
        if options["thread"] != "told":
            turn = replace(turn, text="Your thing is " + "Zzyzx.")
        return turn

    monkeypatch.setattr(DeltaMemEngine, "run_turn", run_turn)
    figures = list(natural.natural(engine, WORDS, Size(4, (1,)), unwatched))
    assert engine.store.agents() == []
    assert all(figure.arms["memory"][WHOLE].value == 0 for figure in figures)
    for agent, thread, messages in turns:
        if thread != "told":
            assert len(messages) == 1
            assert sum(other[:2] == (agent, thread) for other in turns) <= len(natural.KINDS) * len(natural.COUNTS)
        else:
            assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]


def test_natural_also_measures_a_read_only_memory(engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by_each(monkeypatch, engine, "nothing")
    for figure in natural.natural(engine, WORDS, Size(4, (1,)), unwatched):
        assert set(figure.arms) == {*ARMS, natural.READ_ONLY}
        assert figure.arms[natural.READ_ONLY][WHOLE].value == 0
