"""Laws of given answers, of replies that are continued, and of the window of messages that fits."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.chat.blocks import FRONT, steady_start
from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.errors import MessageError, WindowError
from deltamem_agents.types import Message
from rendering import (
    CALLS,
    HELLO,
    KINDS,
    TOOL_TURNS,
    WEATHER,
    each_kind,
    owned,
)
from tiny_tokenizers import LLAMA3, byte_bpe

# Answers and prefills


@each_kind
@pytest.mark.parametrize("answer", ["Oslo", "Oslo, Norway", "<|im_end|>"])
def test_an_answer_is_what_the_assistant_would_say_after_the_prompt(kind, answer):
    prompt, tokens = KINDS[kind].encode_answer(HELLO, answer)
    assert prompt == KINDS[kind].render(HELLO)
    decode = KINDS[kind]._tokenizer.decode
    assert decode(tokens).strip() == answer
    said = KINDS[kind].render([*HELLO, Message("assistant", answer)], generation_prompt=False)
    assert owned(KINDS[kind], said, 3) == decode(tokens)


@each_kind
@pytest.mark.parametrize(
    ("prefill", "answer", "together"),
    [
        ("You live in", "Oslo", "You live in Oslo"),
        ("You live in ", "Oslo", "You live in Oslo"),
        ("You live in", " Oslo", "You live in Oslo"),
        ("You live in:", "Oslo", "You live in:Oslo"),
        ("The code is blu", "e.", "The code is blu e."),
        ("(", "Oslo)", "(Oslo)"),
        ("hello", "!", "hello!"),
    ],
)
def test_an_answer_continues_what_the_assistant_began(kind, prefill, answer, together):
    template = KINDS[kind]
    messages = [*HELLO, Message("assistant", prefill)]
    prompt, tokens = template.encode_answer(messages, answer)
    whole = template.render([*HELLO, Message("assistant", together)], continue_final=True)
    assert tokens
    assert prompt.ids + tokens == whole.ids
    began = template.render(messages, continue_final=True)
    assert prompt.ids == began.ids[: len(prompt.ids)]
    assert len(prompt.owner) == len(prompt.ids)


@each_kind
def test_an_empty_beginning_is_none(kind):
    begun = [*HELLO, Message("assistant", " ")]
    assert KINDS[kind].encode_answer(begun, "Oslo") == KINDS[kind].encode_answer(HELLO, "Oslo")
    assert KINDS[kind].render(begun, continue_final=True) == KINDS[kind].render(HELLO)


@each_kind
def test_a_prefilled_prompt_ends_inside_the_assistants_turn(kind):
    template = KINDS[kind]
    rendered = template.render([*HELLO, Message("assistant", "You live in")], continue_final=True)
    assert rendered.text.endswith("You live in")
    assert rendered.owner[-1] == 3
    assert rendered.ids[-1] not in template.end_ids


def test_only_an_assistants_text_can_be_continued():
    with pytest.raises(MessageError, match="role user"):
        KINDS["chatml"].render(HELLO, continue_final=True)
    with pytest.raises(MessageError, match="tool calls"):
        KINDS["chatml"].render([*HELLO, Message("assistant", "x", CALLS)], continue_final=True)
    with pytest.raises(MessageError, match="empty"):
        KINDS["chatml"].encode_answer(HELLO, " ")


# The window

WINDOWS = st.lists(st.sampled_from(["user", "assistant", "call", "tool"]), min_size=1, max_size=10)


def conversation(system: int, kinds: list[str]) -> list[Message]:
    messages = [Message("system", f"Rule {i}.") for i in range(system)]
    for i, kind in enumerate(kinds):
        calls = CALLS[:1] if kind == "call" else ()
        messages.append(Message("assistant" if kind == "call" else kind, f"word {i} " * (1 + i % 3), calls))  # type: ignore[arg-type]
    return messages


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chatml", "gemma", "tooled"])
@given(system=st.integers(0, 2), kinds=WINDOWS, budget=st.integers(1, 400))
@settings(max_examples=40)
def test_the_widest_window_holds_the_newest_messages_that_fit_and_no_fewer(kind, system, kinds, budget):
    template = KINDS[kind]
    messages = conversation(system, kinds)
    lead = messages[:system]

    def size(start: int) -> int:
        return template.count([*lead, *messages[start:]])

    cuts = [i for i in range(system, len(messages)) if i == system or messages[i].role != "tool"]
    try:
        start = template.widest_window(messages, budget)
    except WindowError as error:
        assert size(cuts[-1]) > budget
        assert str(size(cuts[-1])) in str(error) and str(budget) in str(error)
        return
    assert start in cuts
    assert size(start) <= budget
    assert start == cuts[0] or size(cuts[cuts.index(start) - 1]) > budget
    # The chosen window begins no earlier, and shows as much of the question as fits.
    begins = template.fit_window(messages, budget)
    assert begins in cuts and begins >= start
    assert start > cuts[0] or begins == start
    asked = max((i for i, message in enumerate(messages) if message.role == "user"), default=begins)
    assert start > asked or begins <= asked


def test_a_window_keeps_a_result_with_its_call():
    messages = [*HELLO, *TOOL_TURNS[:4]]
    template = KINDS["chatml"]
    budget = template.count(messages[4:])
    assert template.fit_window(messages, budget) == 4
    with pytest.raises(WindowError, match=r"takes \d+ tokens.*room for.*raise window_tokens"):
        template.fit_window(messages, budget - 1)


def test_tools_count_in_the_window():
    template = KINDS["chatml"]
    budget = template.count(HELLO)
    assert template.fit_window(HELLO, budget) == 0
    with pytest.raises(WindowError):
        template.fit_window(HELLO, budget, tools=[WEATHER])


def test_a_long_history_is_measured_in_few_renderings(monkeypatch):
    template = ChatTemplate(byte_bpe(LLAMA3))
    messages = [Message("user" if i % 2 == 0 else "assistant", f"word {i}") for i in range(512)]
    sizes = []
    count = template.count
    monkeypatch.setattr(template, "count", lambda *a, **k: sizes.append(1) or count(*a, **k))
    start = template.fit_window(messages, 300)
    assert 0 < start < 512
    assert len(sizes) <= 11


# The first message of a sliding window


def places(sizes: list[int], start: int) -> list[int]:
    return [sum(sizes[start:at]) for at in range(start, len(sizes))]


def begins(messages: list[Message], sizes: list[int], budget: int) -> int:
    """Index of the first message of a window over messages of these sizes."""
    first, size = len(sizes), 0
    while first and size + sizes[first - 1] <= budget:
        first -= 1
        size += sizes[first]
    if first == 0:
        return 0
    return steady_start(messages, range(first, len(messages)), places(sizes, first))


def talk(seed: int, turns: int, tokens: int) -> tuple[list[Message], list[int]]:
    """A conversation up to a user's message, whose replies are all the same."""
    chance = random.Random(seed)
    messages = [
        Message(("user", "assistant")[at % 2], f"{seed} {at}" if at % 2 == 0 else "Yes.") for at in range(2 * turns - 1)
    ]
    return messages, [chance.randint(tokens // 2, 3 * tokens // 2) for _ in messages]


@given(seed=st.integers(0, 999), turns=st.integers(20, 60), cut=st.integers(0, 30))
def test_a_start_is_found_in_what_is_shown_alone(seed, turns, cut):
    messages, sizes = talk(seed, turns, 40)
    start = begins(messages, sizes, 600)
    # A client that trims its history itself, to no less than what fits, gets the same message.
    first = next(at for at in range(len(messages)) if sum(sizes[at:]) <= 600)
    gone = min(cut, first - 1)
    assert begins(messages[gone:], sizes[gone:], 600) + gone == start
    assert first <= start < len(messages)
    past = sum(sizes[first:-1])
    assert sum(sizes[start:-1]) >= (1 - FRONT) * past


@pytest.mark.slow
def test_a_start_only_moves_on_and_stays_for_most_turns():
    prefilled: dict[int, list[float]] = {50: [], 500: []}
    for seed in range(10):
        messages, sizes = talk(seed, 550, 40)
        for around, found in prefilled.items():
            # Turn by turn: a user's message is the newest.
            ends = range(2 * (around - 40), 2 * (around + 40), 2)
            starts = [begins(messages[: end + 1], sizes[: end + 1], 800) for end in ends]
            assert starts == sorted(starts)
            stays = [a == b for a, b in pairwise(starts)]
            for end, start, stayed in zip(ends[1:], starts[1:], stays, strict=True):
                found.append(sum(sizes[end - 1 : end + 1]) if stayed else sum(sizes[start : end + 1]))
            assert sum(stays) > 0.5 * len(stays)
    early, late = (sum(found) / len(found) for found in prefilled.values())
    assert late <= 1.05 * early
    # Instead of the whole window of 800 tokens: about 2 / FRONT − 1 times the 80 new tokens.
    assert late < (2 / FRONT) * 80


def test_a_question_is_shown_with_the_steps_taken_for_it():
    asked = [Message("user", "Which of them is oldest?"), *(Message("assistant", f"Step {n}") for n in range(4))]
    messages = [*talk(0, 20, 40)[0], *asked]
    at = len(messages) - len(asked)
    assert steady_start(messages, range(at, len(messages)), places([200] * len(messages), at)) == at
    assert steady_start(messages, range(at - 1, len(messages)), places([200] * len(messages), at - 1)) == at - 1
    # If not even the question's steps fit, the window over them moves in blocks too.
    assert (
        at + 1 <= steady_start(messages, range(at + 1, len(messages)), places([200] * len(messages), at + 1)) <= at + 2
    )
