"""Laws of episodes as tensors: which tokens are padding, written, filler (asides) and learned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.training.batches import LIKE_LENGTH, HistoryBatch, history_batch, question_batch, told_places
from deltamem_agents.types import Message
from tiny_engine import CHATML
from tiny_training import asides_of, each_template, episodes_of, histories_of, renderer, word_tokenizer


@each_template
def test_asides_are_the_contents_after_the_history_and_hold_no_told_value(template: str) -> None:
    episodes, asides = episodes_of(4), asides_of(4)
    history = history_batch(renderer(template), histories_of(episodes), asides)
    _, told = told_places(renderer(template), episodes, history)
    assert bool(told.any()) and not bool((told & history.aside).any())
    assert not bool((history.aside & ~history.writable).any())
    for row, (episode, aside) in enumerate(zip(episodes, asides, strict=True)):
        plain = renderer(template).render(episode.messages, generation_prompt=False)
        before, contents = len(plain.ids) - len(history.lead), history.writable[row]
        assert torch.equal(history.aside[row, before:], contents[before:])
        assert not bool(history.aside[row, :before].any())
        assert bool(history.aside[row].any()) == bool(aside)
    assert not bool(history_batch(renderer(template), histories_of(episodes)).aside.any())


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_groups_of_similar_length_hold_every_row_once_with_little_padding(lengths: list[int], seed: int) -> None:
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(1, 9, valid.shape, generator=torch.Generator().manual_seed(seed)) * valid
    whole = HistoryBatch(
        torch.tensor([5]), tokens, valid, valid & (tokens < 5), valid & (tokens > 3), valid & (tokens > 6)
    )
    groups = whole.of_like_length()
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(len(lengths)))
    for rows, group in groups:
        own = [lengths[row] for row in rows.tolist()]
        assert min(own) >= LIKE_LENGTH * max(own) and group.tokens.shape == (len(own), max(own))
        for name in ("tokens", "valid", "replies", "writable", "aside"):
            assert torch.equal(getattr(group, name), getattr(whole, name)[rows, : max(own)])


def test_different_system_parts_in_one_batch_are_refused() -> None:
    histories = [[Message("system", text), Message("user", "Hello.")] for text in ("Be kind.", "Be short.")]
    with pytest.raises(ConfigError, match="different system parts"):
        history_batch(renderer(), histories)
    assert history_batch(renderer(), [histories[0], histories[0]]).writable.any()


@pytest.mark.parametrize("front", ["", "'<|im_start|>' + "])
def test_a_template_with_fewer_than_two_leading_tokens_is_refused(front: str) -> None:
    bare = CHATML.replace("'<|im_start|>' + message['role'] + '\n' + ", front)
    assert bare != CHATML
    with pytest.raises(ConfigError, match=r"fewer than two tokens in front .* give the tokenizer"):
        question_batch(renderer(bare), episodes_of(1))


@each_template
def test_the_reply_is_learned_up_to_its_end_of_turn_token(template: str) -> None:
    questions = question_batch(renderer(template), episodes_of(2))
    tokenizer = word_tokenizer()
    for index in range(len(questions.tokens)):
        learned = questions.targets[questions.places[:, 0] == index].tolist()
        assert learned[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert tokenizer.decode(learned[:-1]).startswith("Your ")
        shown = questions.tokens[index][questions.valid[index]].tolist()
        assert shown[-len(learned) + 1 :] == learned[:-1]
