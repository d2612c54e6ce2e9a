"""Laws of small talk and neutral prompts: they state no fact, and evaluation shares none with training."""

from __future__ import annotations

import random
import re

import pytest

from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.corpus.tables import read_table
from deltamem_agents.lab.evaluation import harmless
from deltamem_agents.lab.training import preserved

TRAINED, KEPT = preserved.neutral_prompts(), harmless.unrelated_prompts()
TRAINED_FIRST_PERSON = read_table(preserved.DATA, "neutral_prompts")["first_person"]
KEPT_FIRST_PERSON = read_table(harmless.DATA, "unrelated_prompts")["first_person"]
SELF = re.compile(r"\b(I|I'm|I'd|me|my|My|mine)\b")
FACT = re.compile(
    r"\b[Mm]y( \S+){1,3} (is|are|was) (?![^.!]*\?)|\bI (live|work|drive|play|own|was born)\b|"
    r"\b(named|my name|call me|I'm a|I am an?)\b",
    re.IGNORECASE,
)


def spoken(held_out: bool) -> set[str]:
    rng = random.Random(0)
    return {text for _ in range(2000) for text in small_talk(rng, held_out=held_out)}


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_evaluation_and_training_share_no_small_talk() -> None:
    assert not spoken(True) & spoken(False)
    assert all("{" not in text for text in spoken(True) | spoken(False))


def test_small_talk_rarely_repeats() -> None:
    assert len(spoken(False)) > 1500 and len(spoken(True)) > 1000


def test_small_talk_is_determined_by_the_generator() -> None:
    first, second = random.Random(7), random.Random(7)
    assert [small_talk(first) for _ in range(20)] == [small_talk(second) for _ in range(20)]


def test_there_are_enough_prompts_and_none_twice() -> None:
    assert len(TRAINED) >= 330 and len(KEPT) >= 230
    assert min(len(TRAINED_FIRST_PERSON), len(KEPT_FIRST_PERSON)) >= 30
    assert len({normal(prompt) for prompt in (*TRAINED, *KEPT)}) == len(TRAINED) + len(KEPT)


@pytest.mark.parametrize("prompts", [TRAINED_FIRST_PERSON, KEPT_FIRST_PERSON])
def test_first_person_prompts_mention_the_user(prompts: tuple[str, ...]) -> None:
    assert not [prompt for prompt in prompts if not SELF.search(prompt)]


def test_no_prompt_states_a_fact() -> None:
    assert not [prompt for prompt in (*TRAINED, *KEPT) if FACT.search(prompt)]


@pytest.mark.parametrize(
    "fact",
    ["My city is Oslo.", "By the way, my lucky charm is blue.", "I live in Oslo.", "I am a baker.", "Call me Al."],
)
def test_the_fact_pattern_detects_facts(fact: str) -> None:
    assert FACT.search(fact)
