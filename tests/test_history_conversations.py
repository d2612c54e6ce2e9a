"""Laws of alignment over whole conversations: every message is absorbed once, whatever a client resends, trims, edits,
retries or forks.

`Agent` is the smallest possible engine: a chain of snapshots whose state is the list of messages
written, so that a message written twice, lost, or left over from an abandoned branch can be seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deltamem_agents.chat.history import Alignment, align, digest, extend, settle
from deltamem_agents.types import Message, ThreadLog


@dataclass(frozen=True)
class Said:
    """One utterance. Two with equal texts are still two."""

    number: int
    message: Message

    @property
    def digest(self) -> str:
        return digest(self.message)


@dataclass(frozen=True)
class Snapshot:
    parent: Snapshot | None
    logs: dict[str, ThreadLog]
    written: tuple[tuple[str, Said], ...]


EMPTY = Snapshot(None, {}, ())


@dataclass
class Agent:
    head: Snapshot = EMPTY
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def chain(self) -> Iterator[Snapshot]:
        snapshot: Snapshot | None = self.head
        while snapshot:
            yield snapshot
            snapshot = snapshot.parent

    def say(self, text: str) -> Said:
        return Said(next(self.numbers), Message("user", text))

    def turn(self, thread: str, messages: Sequence[Said], *, continues: bool) -> Said:
        """Start where `settle` says, write what is new and the reply, commit on top of that place."""
        digests = [message.digest for message in messages]
        snapshots = list(self.chain())
        landing = settle((each.logs for each in snapshots), thread, digests, continues=continues)
        base = EMPTY if landing.depth is None else snapshots[landing.depth]
        number = next(self.numbers)
        reply = Said(number, Message("assistant", f"reply {number}"))
        log = extend(landing.log, [*digests[landing.new :], reply.digest])
        written = [(thread, message) for message in (*messages[landing.new :], reply)]
        self.head = Snapshot(base, {**base.logs, thread: log}, (*base.written, *written))
        return reply


class Conversations(RuleBasedStateMachine):
    """Clients which keep their whole history, on several named threads of one agent.

    Texts of users repeat within a thread; replies do not, since a history of nothing but equal
    turns cannot be told from a trimmed one. First messages are not edited: nothing could confirm
    such an edit. A message that was retold in place counts as said, in whichever form it was
    written. Fronts are trimmed only while the agent holds the whole thread: what was trimmed cannot
    be brought back behind a commit.
    """

    threads = st.sampled_from(["one", "two", "three"])
    texts = st.sampled_from(["ok", "go on", "what?"])

    def __init__(self) -> None:
        super().__init__()
        self.agent = Agent()
        self.histories: dict[str, list[Said]] = {}
        self.retold: set[int] = set()
        self.copies: set[str] = set()

    def send(self, thread: str, history: list[Said], first: int = 0) -> None:
        reply = self.agent.turn(thread, history[first:], continues=True)
        self.histories[thread] = [*history, reply]
        numbers = {message.number for _, message in self.agent.head.written}
        # In a copy, a message is the source's if it says the same at the same place.
        digests = {message.digest for _, message in self.agent.head.written if thread in self.copies}
        for message in history[first:]:
            assert {message.number} <= numbers | self.retold or message.digest in digests, "a message was not written"

    def say(self, thread: str, text: str) -> Said:
        return self.agent.say(f"{text} ({thread})")

    def known(self, thread: str) -> list[Said]:
        return self.histories.get(thread, [])

    def remembers(self, thread: str) -> bool:
        """Whether the agent holds all of a thread: another thread's going back may have cut it short."""
        return self.agent.head.logs.get(thread, ThreadLog()).count == len(self.known(thread)) > 0

    @rule(thread=threads, text=texts)
    def go_on(self, thread, text):
        self.send(thread, [*self.known(thread), self.say(thread, text)])

    @rule(thread=threads, texts=st.lists(texts, min_size=2, max_size=4))
    def say_several_things_at_once(self, thread, texts):
        self.send(thread, [*self.known(thread), *(self.say(thread, text) for text in texts)])

    @rule(thread=threads, text=texts, size=st.integers(1, 6))
    def go_on_with_the_front_trimmed(self, thread, text, size):
        history = self.known(thread)
        first = max(0, len(history) - size)
        self.send(thread, [*history, self.say(thread, text)], first if self.remembers(thread) else 0)

    @rule(thread=threads, place=st.integers(0, 100), first=st.integers(0, 100))
    def regenerate(self, thread, place, first):
        """Ask again for any reply, with the front trimmed where that leaves a commit to go back to."""
        history = self.known(thread)
        replies = [index for index, each in enumerate(history) if each.message.role == "assistant"]
        if replies:
            end = replies[place % len(replies)]
            start = first % end
            counts = [each.logs.get(thread, ThreadLog()).count for each in self.agent.chain()]
            whole = self.remembers(thread) and self.retold.isdisjoint(message.number for message in history)
            trims = whole and any(start < count <= end for count in counts)
            self.send(thread, history[:end], start if trims else 0)

    @rule(thread=threads, place=st.integers(0, 100), text=texts)
    def edit(self, thread, place, text):
        history = self.known(thread)
        asked = [index for index, each in enumerate(history) if each.message.role == "user" and index]
        if asked:
            self.send(thread, [*history[: asked[place % len(asked)]], self.say(thread, text)])

    @rule(thread=threads)
    def call_again_after_a_lost_reply(self, thread):
        if history := self.known(thread):
            self.send(thread, history[:-1])

    @rule(thread=threads)
    def send_only_what_is_known(self, thread):
        history = self.known(thread)
        if self.remembers(thread):
            found = align(self.agent.head.logs[thread], [each.digest for each in history], continues=True)
            assert found.outcome is not Alignment.DIVERGED
            assert found.new == len(history)

    @rule(source=threads, copy=threads, place=st.integers(0, 100), text=texts)
    def fork(self, source, copy, place, text):
        history = self.known(source)
        replies = [index for index, each in enumerate(history) if each.message.role == "assistant"]
        if copy not in self.histories and source in self.agent.head.logs:
            cut = 1 + replies[place % len(replies)]
            before = self.agent.head.written
            self.copies |= {source, copy}
            self.send(copy, [*history[:cut], self.say(copy, text)])
            if self.remembers(source) and self.retold.isdisjoint(message.number for message in history[:cut]):
                assert len(self.agent.head.written) == len(before) + 2, "a fork wrote what its source had written"

    @rule(thread=threads, place=st.integers(0, 100), text=texts)
    def go_on_with_an_old_message_retold(self, thread, place, text):
        """A client clears or shortens an old message in place, as context editing does."""
        history = self.known(thread)
        old = [index for index, each in enumerate(history[:-2]) if each.message.role == "user" and index]
        if old and self.remembers(thread):
            index = old[place % len(old)]
            number = next(self.agent.numbers)
            retold = Said(number, Message("user", f"[cleared {number}]"))
            self.retold |= {number, history[index].number}
            self.send(thread, [*history[:index], retold, *history[index + 1 :], self.say(thread, text)])

    @invariant()
    def nothing_is_written_twice(self):
        written = [(thread, message.number) for thread, message in self.agent.head.written]
        assert len(written) == len(set(written))

    @invariant()
    def nothing_of_an_abandoned_branch_is_left(self):
        for thread, message in self.agent.head.written:
            assert message in self.known(thread) or message.number in self.retold

    @invariant()
    def what_a_thread_wrote_stands_in_the_order_of_its_history(self):
        for thread, history in self.histories.items():
            places = {each.number: place for place, each in enumerate(history)}
            mine = [message.number for writer, message in self.agent.head.written if writer == thread]
            order = [places[number] for number in mine if number in places]
            assert order == sorted(order)


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@given(st.lists(st.sampled_from(["hello", "ok", "next"]), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_a_client_that_sends_only_new_messages_has_each_written_once(texts):
    agent = Agent()
    for text in texts:
        agent.turn("", [agent.say(text)], continues=False)
    asked = [message.message.content for _, message in agent.head.written if message.message.role == "user"]
    assert asked == [text for text, _ in itertools.groupby(texts)], "the same input twice in a row is a retry"


@given(
    st.lists(st.sampled_from(["hello", "ok", "next"]), min_size=1, max_size=12), st.lists(st.booleans(), min_size=12)
)
@settings(max_examples=100, deadline=None)
def test_without_a_thread_name_a_whole_history_is_told_by_its_replies(texts, retried):
    agent, history = Agent(), []
    for text, again in zip(texts, retried, strict=False):
        history.append(agent.say(text))
        reply = agent.turn("", history, continues=False)
        history.append(agent.turn("", history, continues=False) if again else reply)
        assert [message for _, message in agent.head.written] == history
