"""Laws of neutral text: it is what the frozen model says by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltamem_agents.lab.training import neutral
from deltamem_agents.lab.training.left_alone import neutral_prompts
from deltamem_agents.lab.training.neutral import own_prompts, own_replies
from deltamem_agents.types import Message
from tiny_training import GATED, silent, word_engine, word_model

PROMPTS = neutral_prompts()[:7]


def test_a_neutral_text_is_a_prompt_and_the_models_own_greedy_reply() -> None:
    loaded, engine = word_model(), word_engine(GATED)
    found = own_replies(loaded, PROMPTS, max_tokens=8, say=silent)
    asked = [[Message("user", prompt)] for prompt in PROMPTS]
    replies = engine.greedy_replies(None, asked, max_tokens=8)
    expected = [(*user, Message("assistant", text.strip())) for user, text in zip(asked, replies, strict=True)]
    assert found == [pair for pair in expected if pair[1].content]
    assert len(found) > 3


def test_a_memory_on_the_model_says_nothing_in_it() -> None:
    carrying = replace(word_model(), model=word_engine(GATED).model)
    attached = own_replies(carrying, PROMPTS, max_tokens=8, say=silent)
    assert attached == own_replies(word_model(), PROMPTS, max_tokens=8, say=silent)


def test_replies_do_not_depend_on_how_prompts_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    whole = own_replies(word_model(), PROMPTS, max_tokens=8, say=said.append)
    monkeypatch.setattr(neutral, "BATCH", 2)
    assert own_replies(word_model(), PROMPTS, max_tokens=8, say=said.append) == whole
    assert said == [
        "replies of the frozen model: 7 of 7",
        *(f"replies of the frozen model: {n} of 7" for n in (2, 4, 6, 7)),
    ]


@pytest.mark.slow
def test_prompts_are_the_models_own_different_ones_and_the_same_for_equal_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = word_model()
    # A random model seldom ends a message.
    monkeypatch.setattr(neutral, "DRAWS_A_PROMPT", 200)
    before = torch.random.get_rng_state()
    found = own_prompts(loaded, 5, max_tokens=60, seed=3, say=silent)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(found) == len(set(found)) == 5
    assert all(prompt.strip() == prompt and "<|im_" not in prompt for prompt in found)
    assert own_prompts(loaded, 5, max_tokens=60, seed=3, say=silent) == found
    assert own_prompts(loaded, 5, max_tokens=60, seed=4, say=silent) != found


def test_a_model_that_ends_no_message_gives_no_prompts() -> None:
    assert own_prompts(word_model(), 2, max_tokens=1, seed=3, say=silent) == []
