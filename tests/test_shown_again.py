"""Laws of the statements whose text returns to the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.recalling import AROUND_MESSAGE, exchanges
from deltamem_agents.types import Message, ToolCall
from tiny_engine import tiny_engine

ENGINE = tiny_engine(config=SELECTIVE)
SAID = [
    Message("user", "My dog is called Biscuit, and what is the weather in Oslo?"),
    Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Oslo"}, "1"),)),
    Message("tool", "Rain in Oslo.", tool_call_id="1", name="weather"),
    Message("assistant", "It rains there."),
    Message("user", "I moved to Lisbon last spring."),
    Message("assistant", "How nice for Biscuit."),
]
(MEMORY,) = ENGINE.remember_batch([SAID])


@given(st.permutations(range(len(MEMORY.statements))), st.integers(0, 6), st.integers(0, 300))
def test_each_message_is_shown_once_and_in_order(order: Sequence[int], count: int, budget: int) -> None:
    """For any choice in any order, even if a chosen statement is already shown in the exchange of another one."""
    chosen = [MEMORY.statements[number] for number in order[:count]]
    shown, in_window = exchanges(ENGINE._speaker, MEMORY, chosen, [Message("user", "Where?")], budget)
    texts = [message.content for message in shown]
    assert texts == [message.content for message in SAID if message.content in texts]
    assert in_window <= {each.id for each in chosen}
    assert {each.text for each in chosen if each.id in in_window} <= set(texts)
    size = sum(ENGINE.count_tokens([message]) + AROUND_MESSAGE for message in shown)
    assert size <= budget
    if budget >= 300:
        assert in_window == {each.id for each in chosen if each.text}


@pytest.mark.parametrize("first", [0, 2])
def test_two_statements_of_one_exchange_are_shown_together(first: int) -> None:
    by_text = {each.text: each for each in MEMORY.statements}
    both = [by_text[SAID[first].content], by_text[SAID[2 - first].content]]
    shown, in_window = exchanges(ENGINE._speaker, MEMORY, both, [Message("user", "Where?")], 300)
    assert len(shown) == 3 and in_window == {each.id for each in both}
