"""Laws of comparing histories by digests: which messages are new, reworded, retried, edited or copied."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.chat.history import Alignment, align, digest, extend, known_ahead, shared_prefix, stands_in
from deltamem_agents.errors import MessageError
from deltamem_agents.types import Message, ThreadLog, ToolCall

FRESH, EXTENDS, WINDOWED, DIVERGED = Alignment


def said(words: str) -> list[str]:
    """Digests of messages in the notation of the module's table: "u1 a1 ok", where "ok" is a reply."""
    roles = {"u": "user", "v": "user", "s": "user", "p": "user", "t": "tool"}
    return [digest(Message(roles.get(word[0], "assistant"), word)) for word in words.split()]


def log_of(words: str) -> ThreadLog:
    return extend(ThreadLog(), said(words))


# The decision table


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("absorbed", "incoming", "outcome", "new"),
    [
        ("", "u1 a1 u2", FRESH, "u1 a1 u2"),
        ("u1 a1", "u1 a1 u2", EXTENDS, "u2"),
        ("u1 a1", "u1 a1", EXTENDS, ""),
        ("u1 a1 u2 a2", "u1 a1 u2 a2 u1", EXTENDS, "u1"),
        # Only new messages
        ("u1 a1", "u2", WINDOWED, "u2"),
        ("u1 a1", "u1'", WINDOWED, "u1'"),
        ("u1 a1", "", WINDOWED, ""),
        ("u1 a1 u2 a2", "u1", WINDOWED, "u1"),
        ("u1 a1 u2 a2 u3 a3", "u2", WINDOWED, "u2"),
        ("u1 a1 u2 a2 u3 a3", "u1 u2", WINDOWED, "u1 u2"),
        # A retry of the newest turn
        ("u1 a1", "u1", WINDOWED, ""),
        ("u1 a1 u2 a2", "u2", WINDOWED, ""),
        ("u1 a1 u2 u3 a2", "u2 u3", WINDOWED, ""),
        ("u1 a1 u2 a2", "u2 u3", WINDOWED, "u2 u3"),
        ("u1 a1 u2 a2 u3 a3", "u2 a2 u3", WINDOWED, ""),
        # A window, with or without a summary before it
        ("u1 a1 u2 a2", "u2 a2 u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2", "a2 u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2", "u2 a2", WINDOWED, ""),
        ("u1 a1 u2 a2", "s u2 a2 u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2", "s a2 u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2 u3 a3", "s u2 a2 u3 a3 u4", WINDOWED, "u4"),
        ("u1 ok u2 ok", "u2 ok u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2", "u1 a1 u2 a2 u3 a3 u4", EXTENDS, "u3 a3 u4"),
        ("u1 a1 t1 a2 u3 a3", "u1 a1 t1' a2 u3 a3 u4", EXTENDS, "u4"),
        # Replies that the app reworded
        ("u1 a1", "u1 a1' u2", EXTENDS, "u2"),
        ("u1 a1 u2 a2", "u1 a1' u2 a2' u3", EXTENDS, "u3"),
        ("u1 a1 u2 a2", "u2 a2' u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2", "a1' u2 a2' u3", WINDOWED, "u3"),
        ("u1 a1 u2 a2", "s u2 a2' u3", WINDOWED, "u3"),
        ("ok1 a1 u2 a2", "u2 a2' ok1", WINDOWED, "ok1"),
        ("u1 a1 u1 a2 u1 a3", "u1 a3' u1", WINDOWED, "u1"),
        ("u1 a1 u2 a2 u3 a3", "u2 a2' u3", WINDOWED, ""),
        ("u1 c1 t1 a1", "u1 c1 t1 a1' u2", EXTENDS, "u2"),
        # An input that the app reworded
        ("u1 a1 u2 ok u3 ok", "u3' ok u4", WINDOWED, "u3' ok u4"),
        ("u1 a1 u2 a2", "u2' a2 u3", WINDOWED, "u3"),
        # A fixed prefix
        ("p1 q u1 a1", "p1 q u2", None, "u2"),
        ("q u1 a1", "q u2", None, "u2"),
        ("p1 q u1 a1", "p1 q u1 a1 u2", EXTENDS, "u2"),
        ("p1 q u1 a1 u2 a2", "p1 q u2 a2 u3", WINDOWED, "u3"),
        ("p1 q u1 a1 u2 a2", "p1 q u2 a2' u3", WINDOWED, "u3"),
        # An unknown history
        ("u1 a1 u2 a2", "v1 b1 v2", WINDOWED, "v1 b1 v2"),
        ("u1 a1 u2 a2 u3 a3", "u9 a2 u9'", WINDOWED, "u9 a2 u9'"),
        ("u1 a1 u2 a2", "v1 b1 u1 b2 v3", WINDOWED, "v1 b1 u1 b2 v3"),
        ("u1 a1 u2 a2", "u1 a1 v2 b2 u3", None, "v2 b2 u3"),
        # Messages without a reply
        ("u1", "u1 u2", EXTENDS, "u2"),
        ("u1 a1 u2", "u1 a1 u2 u3", EXTENDS, "u3"),
        ("u1 a1 u2 u3", "u2 u3 u4", WINDOWED, "u4"),
        ("u1 u2 u3", "u3 u4", WINDOWED, "u4"),
    ],
)
def test_each_row_of_the_decision_table(absorbed, incoming, outcome, new, named):
    found = align(log_of(absorbed), said(incoming), named=named)
    assert [said(incoming)[place] for place in found.new] == said(new)
    assert found.outcome is (outcome or (DIVERGED if named else WINDOWED))
    assert not found.edited and (found.changed > 0) == (found.outcome is DIVERGED)


@pytest.mark.parametrize(
    ("absorbed", "incoming", "new", "stands", "unnamed"),
    [
        ("u1 a1 u2 a2", "u1 a1 u2'", "u2'", 2, "u2'"),
        ("u1 a1 u2 a2", "u1 a1 u2", "", 3, ""),
        ("u1 a1 u2 a2", "u1 a1", "", 2, ""),
        ("u1 ok u2 ok", "u1 ok u2", "", 3, ""),
        ("u1 ok u2 ok", "u1 ok u2'", "u2'", 2, "u2'"),
        ("u1 ok u1 ok", "u1 ok u1", "", 3, ""),
        ("u1 a1 u2 a2 u3 a3", "u1 a1 u3", "u3", 2, ""),
        ("u1 c1 t1 a1", "u1 c1 t1", "", 3, ""),
        ("u1 a1 u2 a2 u3 a3", "u1 a1 u2 b2 u3'", "b2 u3'", 3, "u3'"),
    ],
)
def test_a_departure_goes_back_only_in_a_named_thread(absorbed, incoming, new, stands, unnamed):
    log = log_of(absorbed)
    found = align(log, said(incoming), named=True)
    assert (found.outcome, found.stands, found.changed) == (DIVERGED, stands, log.count - stands)
    assert [said(incoming)[place] for place in found.new] == said(new)
    assert found.log == ThreadLog(stands, log.tail[:stands]) and not found.edited
    found = align(log, said(incoming), named=False)
    assert found.outcome is WINDOWED
    assert [said(incoming)[place] for place in found.new] == said(unnamed)


@pytest.mark.parametrize(
    ("absorbed", "incoming", "new", "stands"),
    [
        ("u1 a1 u2 a2", "u1' a1 u2 a2 u3", "u1' u3", 0),
        ("u1 a1 u2 a2 u3 a3", "u1 a1 u2' a2 u3 a3 u4", "u2' u4", 2),
        ("u1 a1 u2 a2 u3 a3", "u1' a1 u2' a2 u3 a3 u4", "u1' u2' u4", 0),
        ("u1 a1 u2 a2 u3 a3", "u1 a1 u2' a2 u3' a3 u4", "u2' u4", 2),
    ],
)
def test_an_edit_in_place_goes_back_only_in_a_named_thread(absorbed, incoming, new, stands):
    log = log_of(absorbed)
    found = align(log, said(incoming), named=True)
    assert (found.outcome, found.stands, found.edited) == (DIVERGED, stands, True)
    assert [said(incoming)[place] for place in found.new] == said(new)
    assert found.log.tail == tuple(said(incoming)[: log.count])
    found = align(log, said(incoming), named=False)
    assert (found.outcome, found.new) == (EXTENDS, (log.count,))


@pytest.mark.parametrize("named", [True, False])
def test_a_reworded_message_is_later_compared_in_the_clients_words(named):
    found = align(log_of("u1 a1 u2 a2"), said("u1 a1' u2 a2' u3"), named=named)
    log = extend(found.log, said("u3 a3"))
    assert log == log_of("u1 a1' u2 a2' u3 a3")
    assert align(log, said("u1 a1' u2x"), named=True).stands == 2


def test_a_reworded_first_input_is_recognised_by_its_position_in_a_named_thread():
    log, incoming = log_of("u1 ok"), said("u1' ok u2")
    assert (align(log, incoming, named=True).outcome, align(log, incoming, named=True).new) == (EXTENDS, (2,))
    assert align(log, incoming, named=False).new == (0, 1, 2), "it may be another conversation or a prefix"


def test_a_regenerated_reply_replaces_the_one_before_in_the_log():
    found = align(log_of("u1 a1"), said("u1"), named=True)
    assert extend(found.log, said("a1b")) == log_of("u1 a1b")


# Bounded logs


def test_a_log_stays_bounded_and_counts_everything():
    digests = [digest(Message("user", str(number))) for number in range(1000)]
    log = ThreadLog()
    for start in range(0, 1000, 7):
        log = extend(log, digests[start : start + 7], digests[:start])
    assert log.count == 1000
    assert log.tail == tuple(digests[-ThreadLog.TAIL_MESSAGES :])
    assert len(log.opening) <= ThreadLog.OPENING_MESSAGES


def long_history(turns: int) -> list[str]:
    return said(" ".join(f"u{turn} a{turn}" for turn in range(turns)))


def test_a_whole_history_longer_than_the_log_still_extends():
    history = long_history(300)
    found = align(extend(ThreadLog(), history), [*history, *said("u_new")], named=True)
    assert (found.outcome, found.new) == (EXTENDS, (600,))


@pytest.mark.parametrize(("ending", "stands"), [("u250'", 500), ("u250", 501)])
def test_an_edit_within_reach_of_a_long_log_is_found(ending, stands):
    history = long_history(300)
    found = align(extend(ThreadLog(), history), [*history[:500], *said(ending)], named=True)
    assert (found.outcome, found.stands) == (DIVERGED, stands)


def test_an_edit_older_than_the_log_reaches_undoes_nothing():
    history = long_history(300)
    found = align(extend(ThreadLog(), history), [*history[:10], *said("u5'")], named=True)
    assert found.outcome is WINDOWED


@pytest.mark.parametrize("named", [True, False])
def test_an_unknown_history_does_not_make_a_long_thread_go_back(named):
    log = extend(ThreadLog(), long_history(300))
    for words in ("x1 b1 x2", "x1 a3 x2", "x1 u3 a3 x2"):
        assert align(log, said(words), named=named).outcome is WINDOWED


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("prefix", ["p1 q1", "p1 q1 p2 q2 p3 q3", "q1"])
def test_a_fixed_prefix_stays_known_however_long_the_log_gets(prefix, named):
    log = extend(ThreadLog(), said(f"{prefix} u0 a0"))
    for turn in range(1, 400):
        incoming = said(f"{prefix} u{turn}")
        # If a named thread has no snapshot that ends with the prefix, it is treated as an unnamed one.
        found = align(log, incoming, named=named)
        if found.outcome is DIVERGED:
            assert found.stands <= len(incoming) - 1
            found = align(log, incoming, named=False)
        assert found.new == (len(incoming) - 1,)
        log = extend(found.log, said(f"u{turn} a{turn}"), incoming[: found.new[0]])
    assert log.count == len(said(prefix)) + 800


def test_two_alternating_prefixes_both_stay_known():
    log = extend(ThreadLog(), said("p1 q1 u0 a0 p2 q2 v0 b0"))
    for turn in range(1, 400):
        prefix = "p1 q1" if turn % 2 else "p2 q2"
        found = align(log, said(f"{prefix} u{turn}"), named=False)
        assert found.new == (2,)
        log = extend(found.log, said(f"u{turn} a{turn}"), said(prefix))


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(said("u1 u2 a1 a2")), max_size=14),
    st.lists(st.sampled_from(said("u1 u2 a1 a2")), max_size=10),
    st.integers(0, 300),
)
@settings(max_examples=500, deadline=None)
def test_any_two_histories_can_be_compared(absorbed, incoming, before):
    log = extend(ThreadLog(), [*said("x0") * before, *absorbed])
    for named in (True, False):
        found = align(log, incoming, named=named)
        assert list(found.new) == sorted(set(found.new)) and set(found.new) <= set(range(len(incoming)))
        assert (found.outcome is FRESH) == (log.count == 0)
        assert found.log.count <= log.count and len(found.log.tail) <= ThreadLog.TAIL_MESSAGES
        if found.outcome is DIVERGED:
            assert named and found.stands < log.count and found.changed > 0
        else:
            assert (found.stands, found.changed) == (0, 0) and found.log.count >= log.count - 1


@given(st.lists(st.sampled_from(said("u1 u2 a1 a2")), max_size=14), st.integers(0, 14))
def test_a_history_stands_in_any_longer_one(history, cut):
    assert stands_in(extend(ThreadLog(), history[:cut]), history)


# Copies of threads


@pytest.mark.parametrize(
    ("absorbed", "incoming", "shared"),
    [
        ("u1 a1 u2 a2", "u1 a1 u2 a2 u3", 4),
        ("u1 a1 u2 a2", "u1 a1 u2'", 2),
        ("u1 a1 u2 a2", "u1 a1 u2", 3),
        ("u1 a1 u2 a2", "u1 a1 u2 a2' u3", 4),
        ("u1 a1 u2 a2", "s u2 a2 u3", 3),
        ("u1 a1 u2 a2 u3 a3", "s u2 a2 u4", 3),
        ("p1 q u1 a1", "p1 q v1", 2),
        ("u1 a1", "u1 a1", 2),
        ("u1 a1", "u1 u2", 0),
        ("u1 a1", "u2 a1", 0),
        ("u1 a1", "u1 b1 u2", 0),
        ("u1 a1 u2 a2", "v1 b1 u2 a2 v3", 0),
        ("u1 u2 a1", "u1 u2 x1", 0),
        ("u1 a1", "", 0),
        ("", "u1 a1", 0),
    ],
)
def test_the_part_that_a_copied_thread_shares_with_its_source(absorbed, incoming, shared):
    assert shared_prefix(log_of(absorbed), said(incoming)) == shared


def test_a_copy_of_a_long_thread_is_recognised_by_the_end_of_its_log():
    history = long_history(300)
    log = extend(ThreadLog(), history)
    assert shared_prefix(log, history[-20:]) == 20
    assert shared_prefix(log, history[:20]) == 0


# Messages that leave a window


@pytest.mark.parametrize(
    ("absorbed", "leaving", "known"),
    [
        ("u1 a1 u2 a2", "u1 a1", 2),
        ("u1 a1 u2 a2 u3 a3", "u1 a1 u2", 3),
        ("u1 a1 u2 a2", "u1 a1' u2 a2'", 4),
        ("u1 a1 u2 a2", "u1 a1'", 0),
        ("u1 a1", "u1 a1'", 2),
        ("u1 a1 u2 a2", "a1 u2 a2", 3),
        ("u1 a1 v1 b1 u2 a2", "u1 a1 u2 a2", 4),
        ("u1 a1 u2 a2", "u1", 0),
        ("u1 a1", "u1", 1),
        ("u1 a1", "u2 a2", 0),
        ("u1 a1", "u1 a1 u2 a2", 2),
        ("u1 a1 u2 a2", "v1 b1 u1 a1", 0),
        ("u1", "u1 a1", 1),
    ],
)
def test_messages_that_leave_a_window_are_recognised_by_their_exchanges(absorbed, leaving, known):
    assert known_ahead(log_of(absorbed), said(leaving)) == known


# Digests


def test_a_digest_ignores_what_frameworks_change_and_nothing_else():
    call = ToolCall("f", {"a": 1, "b": [1.0, {"c": None}]}, id="one")
    same = ToolCall("f", {"b": (1, {"c": None}), "a": 1.0}, id="two")
    assert digest(Message("user", " hi\n")) == digest(Message("user", "hi"))
    assert digest(Message("assistant", "", (call,))) == digest(Message("assistant", "", (same,)))
    assert digest(Message("tool", "4", tool_call_id="a", name="f")) == digest(Message("tool", "4"))
    different = [
        Message("user", "hi"),
        Message("assistant", "hi"),
        Message("system", "hi"),
        Message("tool", "hi"),
        Message("user", "h i"),
        Message("assistant", "hi", (call,)),
        Message("assistant", "hi", (call, call)),
        Message("assistant", "hi", (ToolCall("f", {"a": True}),)),
        Message("assistant", "hi", (ToolCall("f", {"a": 1}),)),
        Message("assistant", "hi", (ToolCall("f", {"a": "1"}),)),
        Message("assistant", "hi", (ToolCall("g", {"a": 1}),)),
        Message("assistant", 'hi", [["f", {"a": 1}]]'),
        Message("user", "\ud800"),
    ]
    assert len({digest(message) for message in different}) == len(different)


def test_a_digest_contains_the_role_and_never_changes():
    assert digest(Message("user", "hello")) == "u:6e4f5c64564dd1b523be0049fa5b4a56"
    assert [digest(Message(role, "x"))[:2] for role in ("system", "user", "assistant", "tool")] == [
        "s:",
        "u:",
        "a:",
        "t:",
    ]
    assert len(digest(Message("tool", "x"))) == 34


def test_arguments_that_are_not_json_have_no_digest():
    with pytest.raises(MessageError, match=r"not JSON.*pass only"):
        digest(Message("assistant", "", (ToolCall("f", {"x": {1}}),)))
