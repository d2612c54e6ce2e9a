"""Laws of alignment: what of a history is new, retried, edited or copied, by its digests alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.chat.history import Alignment, Landing, align, digest, extend, settle, shared_prefix, stay
from deltamem_agents.errors import MessageError
from deltamem_agents.types import Message, ThreadLog, ToolCall

FRESH, EXTENDS, WINDOWED, DIVERGED = Alignment


def said(words: str) -> list[str]:
    """Digests of messages written as in the module's table: "u1 a1 ok" with "ok" a reply."""
    roles = {"u": "user", "s": "user", "t": "tool"}
    return [digest(Message(roles.get(word[0], "assistant"), word)) for word in words.split()]


def log_of(words: str) -> ThreadLog:
    return extend(ThreadLog(), said(words))


# The decision table


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize(
    ("absorbed", "incoming", "outcome", "new", "keep"),
    [
        ("", "u1 a1 u2", FRESH, "u1 a1 u2", 0),
        ("u1 a1", "u1 a1 u2", EXTENDS, "u2", 2),
        ("u1 a1", "u1 a1", EXTENDS, "", 2),
        ("u1 a1 u2 a2", "u1 a1 u2 a2 u1", EXTENDS, "u1", 4),
        ("u1 a1 u2 a2", "u2 a2 u3", WINDOWED, "u3", 4),
        ("u1 a1 u2 a2", "a2 u3", WINDOWED, "u3", 4),
        ("u1 a1 u2 a2", "u2 a2", WINDOWED, "", 4),
        ("u1 a1 u2 a2", "s u2 a2 u3", WINDOWED, "u3", 4),
        ("u1 a1 u2 a2", "s a2 u3", WINDOWED, "u3", 4),
        ("u1 a1 u2 a2", "u1' a1 u2 a2 u3", WINDOWED, "u3", 4),
        ("u1 a1 u2 a2 u3 a3", "u1 a1 s u3 a3 u4", WINDOWED, "u4", 6),
        ("u1 a1 t1 a2 u3 a3", "u1 a1 t1' a2 u3 a3 u4", WINDOWED, "u4", 6),
        ("u1 a1", "u2", WINDOWED, "u2", 2),
        ("u1 a1", "u1'", WINDOWED, "u1'", 2),
        ("u1 a1", "", WINDOWED, "", 2),
        ("u1 a1 u2 a2", "u1 a1 u2'", DIVERGED, "u2'", 2),
        ("u1 a1 u2 a2", "u1 a1 u2", DIVERGED, "", 3),
        ("u1 a1 u2 a2", "u1 a1", DIVERGED, "", 2),
        ("u1 a1 u2 a2 u3 a3", "u2 a2 u3'", DIVERGED, "u3'", 4),
        ("u1 a1 u2 a2 u3 a3", "s u2 a2 u3'", DIVERGED, "u3'", 4),
        ("u1 a1 u2 a2", "u1 a1 u2 a2' u3", DIVERGED, "a2' u3", 3),
        ("u1 ok u2 ok", "u1 ok u2", DIVERGED, "", 3),
        ("u1 ok u2 ok", "u1 ok u2'", DIVERGED, "u2'", 2),
        ("u1 ok u2 ok", "u2 ok u3", WINDOWED, "u3", 4),
        ("u1 ok u2 ok u3 ok", "u2 ok u3'", DIVERGED, "u3'", 4),
        ("u1 ok u1 ok u1 ok", "u1 ok u1 ok u1", DIVERGED, "", 5),
        ("u0 a0 u1 ok u1 ok u1 ok", "u1 ok u1 ok u1", WINDOWED, "u1", 8),
        ("u0 ok u1 a1 u2 ok", "ok u1 a1 u2'", DIVERGED, "u2'", 4),
        ("u1 ok u2 a2 u1 ok u3 a3", "u1 ok u4", DIVERGED, "u4", 2),
        ("u0 a0 u1 ok", "u1 ok u2 b2 u1 ok u3", WINDOWED, "u2 b2 u1 ok u3", 4),
        ("u0 a0 u1 ok", "s u1 ok u2 u1 ok u3", WINDOWED, "u3", 4),
        ("u1 a1", "u1", DIVERGED, "", 1),
        ("u1 a1 u2 a2 u3 a3", "u2", WINDOWED, "u2", 6),
        ("u1 a1 u2 a2 u3 a3", "u9 a2 u9'", WINDOWED, "u9 a2 u9'", 6),
    ],
)
def test_each_row_of_the_decision_table(absorbed, incoming, outcome, new, keep, continues):
    if (absorbed, incoming) == ("u1 a1", "u1") and not continues:
        new, keep = "u1", 0
    found = align(log_of(absorbed), said(incoming), continues=continues)
    assert found.outcome is outcome
    assert said(incoming)[found.new :] == said(new)
    assert found.keep == keep


@pytest.mark.parametrize("continues", [True, False])
def test_exactly_the_newest_input_is_a_retry(continues):
    found = align(log_of("u0 a0 u1 u2 a1"), said("u1 u2"), continues=continues)
    assert (found.outcome, found.new, found.keep) == (DIVERGED, 0, 2)


def test_a_greeting_said_again_is_the_threads_start_only_where_the_thread_is_named():
    log = log_of("u1 a1 u2 a2")
    assert align(log, said("u1"), continues=True).outcome is DIVERGED
    assert align(log, said("u1"), continues=False).outcome is WINDOWED
    assert align(log, said("u1"), continues=False).new == 0


def test_without_a_log_nothing_is_known():
    assert align(ThreadLog(), [], continues=True).outcome is FRESH


# Logs that are bounded


def test_a_log_stays_bounded_and_counts_everything():
    digests = [digest(Message("user", str(number))) for number in range(1000)]
    log = ThreadLog()
    for start in range(0, 1000, 7):
        log = extend(log, digests[start : start + 7])
    assert log.count == 1000
    assert log.tail == tuple(digests[-ThreadLog.TAIL_MESSAGES :])


def long_history(turns: int) -> list[str]:
    return said(" ".join(f"u{turn} a{turn}" for turn in range(turns)))


def test_a_whole_history_longer_than_the_log_still_extends():
    history = long_history(300)
    found = align(extend(ThreadLog(), history), [*history, *said("u_new")], continues=True)
    assert (found.outcome, found.new) == (EXTENDS, 600)


def landing(logs: Sequence[ThreadLog], incoming: Sequence[str], continues: bool = True) -> tuple[int | None, str, int]:
    """Settle on a chain of snapshots which know one thread, newest first; an empty log is a thread unseen."""
    absorbed = [{"one": log} if log.count else {} for log in logs]
    found = settle(absorbed, "one", incoming, continues=continues)
    assert found.log == (ThreadLog() if found.depth is None or not logs else logs[found.depth])
    return found.depth, found.outcome, found.new


@pytest.mark.parametrize("ending", ["u5'", "u5"])
def test_an_edit_older_than_the_log_reaches_is_found_in_an_older_snapshot(ending):
    history = long_history(300)
    logs = [extend(ThreadLog(), history[: 2 * turn]) for turn in range(300, 0, -1)]
    assert landing(logs, [*history[:10], *said(ending)]) == (295, DIVERGED, 10)


def test_a_strange_history_does_not_send_a_long_thread_back():
    history = long_history(300)
    logs = [extend(ThreadLog(), history[: 2 * turn]) for turn in range(300, 0, -1)]
    assert landing(logs, said("x1 b1 x2")) == (0, WINDOWED, 0)
    assert landing(logs, said("x1 a3 x2")) == (0, WINDOWED, 0)
    assert landing(logs, said("x1 u3 a3 x2")) == (0, WINDOWED, 0)


# The walk to where a turn starts


def test_a_walk_reads_no_more_snapshots_than_it_needs():
    read = []

    def absorbed() -> Iterator[dict[str, ThreadLog]]:
        for words in ("u1 a1 u2 a2 u3 a3", "u1 a1 u2 a2", "u1 a1"):
            read.append(words)
            yield {"one": log_of(words)}

    found = settle(absorbed(), "one", said("u1 a1 u2 a2 u3'"), continues=True)
    assert found == Landing(1, DIVERGED, 4, log_of("u1 a1 u2 a2"))
    assert len(read) == 2


def test_a_walk_past_the_first_snapshot_ends_in_the_empty_memory():
    assert landing([log_of("u1 a1")], said("u1")) == (None, DIVERGED, 0)
    assert landing([], said("u1")) == (0, FRESH, 0)


def test_a_snapshot_that_took_in_many_messages_at_once_is_left_whole_and_they_are_new_again():
    logs = [log_of("u1 a1 u2 a2 u3 a3 u4 a4"), log_of("u1 a1 u2 a2 u3 a3"), ThreadLog()]
    assert landing(logs, said("u1 a1 u2'")) == (2, DIVERGED, 0)


def test_going_back_behind_a_message_retold_in_place_writes_nothing_older_again():
    logs = [log_of("u1 a1 u2 u3 u4 a4 u5 a5"), log_of("u1 a1")]
    assert landing(logs, said("u1 a1 s u3 u4 a4 u5'")) == (1, DIVERGED, 2)


def test_a_retried_input_that_stood_there_twice_goes_back_once():
    logs = [log_of("u1 a1 u1 a2"), log_of("u1 a1"), ThreadLog()]
    assert landing(logs, said("u1"), continues=False) == (1, DIVERGED, 0)


def test_a_copied_thread_starts_behind_what_its_source_absorbed():
    source = log_of("u1 a1 u2 a2")
    found = settle([{"one": source}], "two", said("u1 a1 u3"), continues=True)
    assert found == Landing(0, FRESH, 2, log_of("u1 a1"))
    found = settle([{"one": source}], "two", said("s u2 a2 u3"), continues=True)
    assert found == Landing(0, FRESH, 3, log_of("s u2 a2"))


def test_an_edit_of_a_summarised_copy_finds_what_its_source_absorbed():
    absorbed = [{"one": log_of("u1 a1"), "two": log_of("u1 a1 u2 a2 u3 a3")}, {"one": log_of("u1 a1")}]
    found = settle(absorbed, "two", said("s u2 a2 u3'"), continues=True)
    assert found == Landing(1, DIVERGED, 1, log_of("u1 a1"))


def test_an_edit_of_a_long_copy_finds_what_its_source_absorbed():
    history = long_history(300)
    source = extend(ThreadLog(), history[:10])
    absorbed = [{"one": source, "two": extend(ThreadLog(), history)}, {"one": source}]
    found = settle(absorbed, "two", [*history[:598], *said("u_new")], continues=True)
    assert found == Landing(1, DIVERGED, 10, source)


@pytest.mark.parametrize("trimmed", [0, 1, 2])
def test_an_edit_of_a_copys_first_turn_does_not_write_the_source_again(trimmed):
    absorbed = [{"one": log_of("u1 a1"), "two": log_of("u1 a1 u2 a2 u3 a3")}, {"one": log_of("u1 a1")}]
    found = settle(absorbed, "two", said("u1 a1 u2 a2 u3'")[trimmed:], continues=True)
    assert found == Landing(1, DIVERGED, 2 - trimmed, log_of("u1 a1"))


def naive_walk(logs: Sequence[ThreadLog], incoming: Sequence[str]) -> tuple[int, int]:
    """Align with older and older logs until the answer is no longer DIVERGED."""
    for depth, log in enumerate([*logs, ThreadLog()]):
        found = align(log, incoming, continues=True)
        if found.outcome is not DIVERGED:
            return depth, found.new
    raise AssertionError("the empty log diverged")


@given(turns=st.integers(1, 8), texts=st.lists(st.sampled_from("xyz"), min_size=8, max_size=8), data=st.data())
@settings(max_examples=200, deadline=None)
def test_aligning_anew_on_the_way_back_lands_at_the_same_place(turns, texts, data):
    history = said(" ".join(f"u{texts[turn]} a{turn}" for turn in range(turns)))
    logs = [extend(ThreadLog(), history[: 2 * turn]) for turn in range(turns, 0, -1)]
    cut = data.draw(st.integers(2, len(history)))
    first = data.draw(st.integers(0, cut - 2))
    incoming = history[first:cut] + data.draw(st.sampled_from([[], said("u_new"), said("ux")]))
    depth, _, new = landing(logs, incoming)
    assert (turns if depth is None else depth, new) == naive_walk(logs, incoming)


@given(
    st.lists(st.sampled_from(said("u1 u2 a1 a2")), max_size=14),
    st.lists(st.sampled_from(said("u1 u2 a1 a2")), max_size=10),
)
@settings(max_examples=500, deadline=None)
def test_any_two_histories_have_an_answer_that_makes_progress(absorbed, incoming):
    log = extend(ThreadLog(), absorbed)
    for continues in (True, False):
        found = align(log, incoming, continues=continues)
        assert 0 <= found.new <= len(incoming)
        assert 0 <= found.matched <= found.new
        assert (found.outcome is FRESH) == (log.count == 0)
        if found.outcome is DIVERGED:
            assert found.keep < log.count, "a walk back would not get anywhere"
        else:
            assert found.keep == log.count
            assert list(log.tail)[log.count - found.matched :] == incoming[found.new - found.matched : found.new]
        if found.outcome is EXTENDS:
            assert incoming[: found.new] == list(log.tail)
        for count in range(found.keep + 1):
            assert 0 <= found.new_at(count) <= found.new


@pytest.mark.parametrize(
    ("incoming", "new", "log"),
    [
        ("u1 a1 u2 a2 u3", "u3", "u1 a1 u2 a2"),
        ("u1 a1 u2'", "u2'", "u1 a1"),
        ("u1 a1 u2", "", "u1 a1 u2"),
        ("u2", "", "u1 a1 u2"),
        ("u9", "u9", "u1 a1 u2 a2"),
    ],
)
def test_a_turn_that_may_not_go_back_writes_only_what_the_newest_memory_lacks(incoming, new, log):
    found = stay(log_of("u1 a1 u2 a2"), said(incoming), continues=True)
    assert found.depth == 0
    assert said(incoming)[found.new :] == said(new)
    assert found.log == log_of(log)


def test_a_turn_that_may_not_go_back_keeps_the_count_of_a_long_log():
    history = long_history(300)
    found = stay(extend(ThreadLog(), history), history[:598], continues=True)
    assert (found.new, found.log.count, found.log.tail) == (598, 598, tuple(history[344:598]))


# Copies of threads


@pytest.mark.parametrize(
    ("absorbed", "incoming", "shared"),
    [
        ("u1 a1 u2 a2", "u1 a1 u2 a2 u3", 4),
        ("u1 a1 u2 a2", "u1 a1 u2'", 2),
        ("u1 a1 u2 a2", "u1 a1 u2", 3),
        ("u1 a1 u2 a2", "s u2 a2 u3", 3),
        ("u1 a1 u2 a2 u3 a3", "u1' a1 u2 a2 u4", 4),
        ("u1 a1 u2 a2 u3 a3", "s u2 a2 u4", 0),
        ("u1 a1", "u1 a1", 2),
        ("u1 a1", "u1 u2", 0),
        ("u1 a1", "u2 a1", 0),
        ("u1 u2 a1", "u1 u2 x1", 0),
        ("u1 a1", "", 0),
        ("", "u1 a1", 0),
    ],
)
def test_what_a_copied_thread_shares_with_its_source(absorbed, incoming, shared):
    assert shared_prefix(log_of(absorbed), said(incoming)) == shared


def test_a_copy_of_a_long_thread_is_recognised_by_the_end_of_its_log():
    history = long_history(300)
    log = extend(ThreadLog(), history)
    assert shared_prefix(log, [*history, *said("u_new")]) == 600
    assert shared_prefix(log, history[-20:]) == 20
    assert shared_prefix(log, history[:20]) == 0


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


def test_a_digest_tells_the_role_and_is_fixed_for_good():
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
