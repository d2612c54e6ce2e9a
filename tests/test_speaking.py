"""Laws of which tokens of a prompt predict a reply, and where the memory begins to be used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.chat.speaking import lead_length, replies
from deltamem_agents.types import Message
from tiny_training import each_template, renderer

TALK = (Message("user", "My cat is Tom."), Message("assistant", "Noted."), Message("user", "Who is my cat?"))


@given(st.lists(st.integers(-1, 2), max_size=40), st.booleans())
def test_a_token_counts_if_it_or_the_next_one_is_the_assistants(owner: list[int], prompted: bool) -> None:
    marked = replies(owner, TALK, prompted=prompted)
    # Replies before the one to be generated are history.
    said = [not prompted and one == 1 for one in owner]
    assert len(marked) == len(owner)
    for place, speaks in enumerate(marked):
        following = prompted if place + 1 == len(owner) else said[place + 1]
        assert speaks == (said[place] or following)


def test_a_continued_reply_counts_from_its_beginning() -> None:
    assert replies([-1, 0, -1, 1, 1], TALK[:2], prompted=True) == (False, False, True, True, True)


@each_template
@pytest.mark.parametrize("prompted", [True, False])
def test_no_user_content_counts(template: str, prompted: bool) -> None:
    rendered = renderer(template).render(TALK, generation_prompt=prompted)
    marked = replies(rendered.owner, TALK, prompted=prompted)
    assert not any(speaks for speaks, owner in zip(marked, rendered.owner, strict=True) if owner in (0, 2))
    assert marked[-1] == prompted


@each_template
@pytest.mark.parametrize("instructions", [(), (Message("system", "Be kind."),)], ids=["alone", "instructed"])
def test_the_lead_ends_one_token_before_the_first_content_that_is_not_a_system_message(
    template: str, instructions: tuple[Message, ...]
) -> None:
    messages = (*instructions, *TALK)
    rendered = renderer(template).render(messages, generation_prompt=True)
    assert lead_length(rendered.owner, messages) == list(rendered.owner).index(len(instructions)) - 1
    assert rendered.owner[lead_length(rendered.owner, messages)] == -1


def test_the_lead_is_never_negative() -> None:
    assert lead_length([0, 0, -1], TALK) == 0
    assert lead_length([], ()) == 0
