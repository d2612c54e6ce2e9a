"""Laws of whole conversations with random clients: new messages, retries, edits, windows and rewordings.

The engine here is only the planner and a store. The contents of each snapshot's state are kept as a list of messages,
so that a message that is written twice, lost, or left over from an abandoned branch can be detected.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from deltamem_agents.chat.history import Alignment
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.snapshots import Fingerprint, InMemoryStore, LazyStore, StatementList
from deltamem_agents.turns.memories import AgentMemory, Memories
from deltamem_agents.turns.planning import Kept, OnDivergence, Plan, Planner, WritePolicy
from deltamem_agents.types import Message

MADE_BY = Fingerprint("model", "tokenizer", "adapter")
EMPTY = MemoryState(torch.zeros(1, 1, 1, 1, 1))
TEXTS = st.sampled_from(["ok", "go on", "what?"])
Sends = Literal["whole", "window", "new"]


@dataclass(frozen=True)
class Said:
    """One message. Two with equal texts are different objects; a reworded one is still the same object."""

    number: int
    message: Message

    @property
    def reworded(self) -> Said:
        return replace(self, message=replace(self.message, content=f"{self.message.content}. Not advice."))


@dataclass
class Agent:
    """An agent whose memory can be inspected: `holds` has the messages of each snapshot's state."""

    on_divergence: OnDivergence = "append"
    store: InMemoryStore = field(default_factory=InMemoryStore)
    holds: dict[str | None, tuple[Said, ...]] = field(default_factory=lambda: {None: ()})
    said: list[Said] = field(default_factory=list)
    plan: Plan | None = None

    def say(self, text: str, role: Literal["user", "assistant"] = "user") -> Said:
        self.said.append(Said(len(self.said), Message(role, text)))
        return self.said[-1]

    @property
    def memory(self) -> tuple[Said, ...]:
        return self.holds[self.store.head("ada")]

    def turn(self, thread: str | None, messages: Sequence[Said]) -> Said:
        """Plans as the engine does, writes the new messages and the reply, and commits."""
        policy = WritePolicy(on_divergence=self.on_divergence)
        planner = Planner(
            LazyStore(self.store), AgentMemory(EMPTY), Memories(fades=False), MADE_BY, policy, drops=False
        )
        self.plan = plan = planner.turn("ada", thread, [each.message for each in messages])
        reply = self.say(f"reply {len(self.said)}", "assistant")
        snapshot = plan.commit(Kept(plan.memory.base, StatementList()), MADE_BY, thread or "", reply.message, 1, "turn")
        assert snapshot is not None
        saved = self.store.save("ada", snapshot, expected=plan.head)
        before = self.holds[None if plan.base is None else plan.base.id]
        self.holds[saved] = (*before, *(messages[position] for position in plan.new), reply)
        return reply


@dataclass
class Client:
    """An app with one conversation. `history`: as the app stores it. `abandoned`: messages that an edit removed."""

    agent: Agent
    name: str
    thread: str | None
    sends: Sends
    rewords: bool
    prefix: list[Said]
    window: int = 3
    history: list[Said] = field(default_factory=list)
    abandoned: set[int] = field(default_factory=set)

    def shown(self, history: Sequence[Said], new: Sequence[Said]) -> list[Said]:
        if self.sends == "whole":
            return [*self.prefix, *history, *new]
        if self.sends == "window":
            return [*self.prefix, *[*history, *new][-max(self.window, len(new) + 2) :]]
        return [*self.prefix, *new]

    def tell(self, texts: Sequence[str], history: Sequence[Said] | None = None) -> None:
        """Runs a turn. `history`: the part that the user went back to, if not all."""
        kept = list(self.history if history is None else history)
        new = [self.agent.say(f"{text} ({self.name})") for text in texts]
        self.abandoned |= {each.number for each in self.history} - {each.number for each in kept}
        reply = self.agent.turn(self.thread, self.shown(kept, new))
        self.history = [*kept, *new, reply.reworded if self.rewords else reply]

    def newest_input(self) -> list[str]:
        """The texts of the last input, without the name."""
        replies = [place for place, each in enumerate(self.history) if each.message.role == "assistant"]
        first = replies[-2] + 1 if len(replies) > 1 else 0
        return [each.message.content.rsplit(" (", 1)[0] for each in self.history[first:-1]]


def prefix_of(agent: Agent, name: str, size: int) -> list[Said]:
    pairs = [(agent.say(f"example {n} ({name})"), agent.say(f"answer {n} ({name})", "assistant")) for n in range(size)]
    return [message for pair in pairs for message in pair]


class Conversations(RuleBasedStateMachine):
    """Clients of every kind talk to one agent at the same time, with or without thread names.

    User texts repeat; replies do not. A client that sends no replies does not repeat a message, because that is
        is how it tries again.
    """

    on_divergence: OnDivergence = "append"

    def __init__(self) -> None:
        super().__init__()
        self.agent = Agent(self.on_divergence)
        self.clients: list[Client] = []
        self.spoke: Client | None = None

    @initialize(
        kinds=st.lists(
            st.tuples(
                st.booleans(),
                st.sampled_from(["whole", "window", "new"]),
                st.booleans(),
                st.integers(0, 2),
                st.integers(3, 6),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def connect(self, kinds):
        for number, (named, sends, rewords, examples, window) in enumerate(kinds):
            name = f"client {number}"
            prefix = prefix_of(self.agent, name, examples)
            thread = name if named else None
            self.clients.append(Client(self.agent, name, thread, sends, rewords, prefix, window))

    def client(self, number: int) -> Client:
        return self.clients[number % len(self.clients)]

    @rule(number=st.integers(0, 3), texts=st.lists(TEXTS, min_size=1, max_size=3))
    def go_on(self, number, texts):
        client = self.client(number)
        if client.sends == "new" and client.newest_input() == texts:
            return
        client.tell(texts)
        self.spoke = client

    @precondition(lambda self: self.spoke is not None)
    @rule()
    def try_again(self):
        """The client with the newest turn did not get the reply and retries."""
        client = self.spoke
        inputs = len(client.newest_input())
        kept, new = client.history[: -inputs - 1], client.history[-inputs - 1 : -1]
        lost = client.history[-1]
        reply = self.agent.turn(client.thread, client.shown(kept, new))
        client.history = [*kept, *new, reply.reworded if client.rewords else reply]
        client.abandoned.add(lost.number)

    @rule(number=st.integers(0, 3), place=st.integers(0, 100), text=TEXTS, edits=st.booleans())
    def go_back(self, number, place, text, edits):
        """The user edits a message or regenerates a reply, and the later messages are dropped."""
        client = self.client(number)
        if client.thread is None or client.sends != "whole":
            return
        told = [each.message.role for each in client.history]
        # Before the first reply an edit cannot be distinguished from a new message.
        asked = [at for at, role in enumerate(told) if role == "user" and "assistant" in told[:at]]
        if asked:
            at = asked[place % len(asked)]
            history = client.history[:at] if edits else client.history[: at + 1]
            client.tell([f"edit {len(self.agent.said)}"] if edits else [], history)
            self.spoke = None

    @rule(number=st.integers(0, 3), place=st.integers(0, 100), text=TEXTS)
    def edit_in_place(self, number, place, text):
        """An old message is replaced in place, and the conversation continues."""
        client = self.client(number)
        asked = [
            at
            for at, each in enumerate(client.history[: -1 - len(client.newest_input())])
            if each.message.role == "user"
        ]
        if client.thread is None or client.sends != "whole" or not asked:
            return
        at = asked[place % len(asked)]
        edited = self.agent.say(f"edit {len(self.agent.said)} ({client.name})")
        client.abandoned.add(client.history[at].number)
        client.history[at] = edited
        client.tell([text])
        self.spoke = client

    @invariant()
    def every_message_is_written_exactly_once_and_nothing_is_dropped_that_was_not_shown_to_be_changed(self):
        written = Counter(each.number for each in self.agent.memory)
        assert set(written.values()) <= {1}, "a message was written twice"
        told = {each.number for client in self.clients if client.history for each in (*client.prefix, *client.history)}
        assert told <= written.keys(), "a message was dropped"

    @invariant()
    def what_is_reported_as_undone_is_what_is_gone(self):
        plan = self.agent.plan
        if plan is not None:
            head = self.agent.store.load("ada").snapshot
            before = {each.number for each in self.agent.holds[plan.head]}
            assert plan.undone == len(before - {each.number for each in self.agent.memory})
            assert plan.undone == 0 or plan.outcome is Alignment.DIVERGED
            assert head.counters.messages == len(self.agent.memory)


class OneConversation(Conversations):
    """With a single client that sends its whole history, going back is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.later: set[int] = set()

    @invariant()
    def note_later_replies(self):
        replies = [each.number for each in self.clients[0].history if each.message.role == "assistant"]
        self.later |= set(replies[1:])

    @initialize(rewords=st.booleans())
    def connect(self, rewords):
        self.clients = [Client(self.agent, "client", "thread", "whole", rewords, [])]

    @invariant()
    def what_was_edited_away_is_gone(self):
        """Except replies to the first input: repeating it looks the same as regenerating its reply."""
        client = self.clients[0]
        first = {message.number for message in self.agent.said if message.message.role == "assistant"} - self.later
        assert {each.number for each in self.agent.memory} - {each.number for each in client.history} <= first

    @invariant()
    def what_the_memory_holds_is_in_the_order_it_was_said(self):
        shown = [each.number for each in self.clients[0].history]
        order = [shown.index(each.number) for each in self.agent.memory if each.number in shown]
        assert order == sorted(order)


MACHINE = settings(max_examples=60, stateful_step_count=20, deadline=None, report_multiple_bugs=False)
TestConversations = Conversations.TestCase
TestConversations.settings = MACHINE
TestOneConversation = OneConversation.TestCase
TestOneConversation.settings = MACHINE


@pytest.mark.parametrize("thread", [None, "ada"])
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=2), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_client_that_sends_only_new_messages_has_each_written_once(thread, texts):
    agent = Agent()
    client = Client(agent, "client", thread, "new", False, [])
    for input_ in texts:
        client.tell(input_)
    asked = [each.message.content.split(" (")[0] for each in agent.memory if each.message.role == "user"]
    told = [input_ for input_, _ in itertools.groupby(texts)]
    assert asked == [text for input_ in told for text in input_], "the newest input said once more is trying again"


@given(st.lists(st.sampled_from("AB"), min_size=2, max_size=12), st.booleans())
@settings(max_examples=50, deadline=None)
def test_conversations_of_one_agent_that_name_no_thread_keep_all_their_turns(turns, rewords):
    agent = Agent()
    clients = {name: Client(agent, name, None, "whole", rewords, []) for name in "AB"}
    for name in turns:
        clients[name].tell(["hello"])
    assert sorted(each.number for each in agent.memory) == [each.number for each in agent.said]


@pytest.mark.parametrize("policy", ["append", "rewind"])
def test_going_back_behind_another_threads_turns_follows_the_policy(policy):
    agent = Agent(policy)
    one, other = (Client(agent, name, name, "whole", False, []) for name in ("one", "other"))
    one.tell(["first"])
    kept = list(one.history)
    one.tell(["second"])
    other.tell(["hello"])
    one.tell(["another second"], kept)
    gone = {each.number for each in agent.said} - {each.number for each in agent.memory}
    assert agent.plan is not None and agent.plan.outcome is Alignment.DIVERGED
    assert agent.plan.undone == len(gone) == (4 if policy == "rewind" else 0)
    one.tell(["third"])
    assert agent.plan.outcome is Alignment.EXTENDS


def test_a_copied_thread_writes_nothing_of_its_source_again():
    agent = Agent()
    source = Client(agent, "source", "source", "whole", True, [])
    for text in ("one", "two", "three"):
        source.tell([text])
    copy = Client(agent, "copy", "copy", "whole", False, [], history=source.history[:4])
    copy.tell(["and now for something else"])
    kept = list(copy.history[:4])
    copy.tell(["as I said"], kept)
    assert agent.plan is not None and agent.plan.undone == 2
    assert sorted(each.number for each in agent.memory) == [0, 1, 2, 3, 4, 5, 8, 9]


class CountingStore(InMemoryStore):
    def __init__(self):
        super().__init__()
        self.loads = 0

    def load(self, agent, at=None):
        self.loads += 1
        return super().load(agent, at)


@pytest.mark.slow
@pytest.mark.parametrize("sends", ["whole", "window", "new"])
@pytest.mark.parametrize("thread", [None, "thread"])
def test_the_snapshots_a_turn_loads_do_not_grow_with_the_history(thread, sends):
    """Also if none of the client's replies is known."""
    store = CountingStore()
    agent = Agent(store=store)
    client = Client(agent, "client", thread, sends, False, [], window=20)
    looked_at = []
    for turn in range(150):
        if client.history:
            client.history[-1] = Said(-turn, Message("assistant", f"something else {turn}"))
        before = store.loads
        client.tell([f"message {turn}"])
        looked_at.append(store.loads - before)
    assert max(looked_at) == looked_at[1] <= 2


def test_going_back_loads_no_more_snapshots_than_it_undoes():
    store = CountingStore()
    agent = Agent(store=store)
    client = Client(agent, "client", "thread", "whole", False, [])
    for turn in range(100):
        client.tell([f"message {turn}"])
    before = store.loads
    client.tell(["another"], client.history[:180])
    assert agent.plan is not None and agent.plan.undone == 20
    assert store.loads - before <= 13
