"""Laws of kept key–value caches: the same words and memory as without them, for less, and nothing of one agent in
another's."""

from __future__ import annotations

import gc
import io
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from client_turns import SHORT, grow, head
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.inference.kept import CacheKey, KeptCaches
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.memory.backbones import KeyValueCache, cuts_anywhere, layers_of
from deltamem_agents.snapshots import InMemoryStore, SQLiteStore
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.types import Message, Recall, Sampling, Tool, Turn
from tiny_engine import tiny_engine
from tiny_models import FAMILIES, tiny_model

CONFIGS = {
    "selective": SELECTIVE,
    "one state": AdapterConfig(rank=4, key_shift=True),
    "one state, replies read": AdapterConfig(rank=4, key_shift=True, read_scope="replies"),
    "whole messages": AdapterConfig(rank=4, memory_write_granularity="message_mean"),
}
SYSTEM = Message("system", "You keep what you are told to yourself, and answer in a few words.")
TOOLS = (Tool("look_up", "Finds a word."),)
WORDS = ("Oslo", "Miu", "amber", "seven", "lute", "rain")


class Client:
    """The client of one conversation. It sometimes retries, edits or trims its history."""

    def __init__(self, chance: random.Random, agent: str, thread: str | None) -> None:
        self.chance, self.agent, self.thread = chance, agent, thread
        self.history: list[Message] = [SYSTEM] if chance.random() < 0.5 else []

    def next_messages(self) -> list[Message]:
        """The next messages to send: mostly the history and a new message."""
        act, said = self.chance.random(), [at for at, each in enumerate(self.history) if each.role == "user"]
        if said and act < 0.15:
            del self.history[self.chance.choice(said) :]
        elif said and act < 0.3:
            place = self.chance.choice(said)
            self.history[place] = Message("user", self.sentence())
        elif len(said) > 1 and act < 0.4:
            del self.history[: said[1]]
        elif said and act < 0.5:
            # A retry: the last message again, without the reply to it.
            del self.history[said[-1] + 1 :]
            return self.history
        self.history.append(Message("user", self.sentence()))
        return self.history

    def sentence(self) -> str:
        return f"{self.agent} says {' '.join(self.chance.choices(WORDS, k=4))}."


def walk(config: AdapterConfig, seed: int, kept_cache_bytes: int, turns: int = 16) -> tuple[list[Turn], DeltaMemEngine]:
    """Turns of several clients of several agents, with other writers and forks among them."""
    chance = random.Random(seed)
    engine = tiny_engine(config=config, window_tokens=1000, kept_cache_bytes=kept_cache_bytes)
    other = engine.with_store(engine.store)
    clients = [Client(chance, agent, thread) for agent in ("ada", "bob") for thread in (None, "t")]
    done: list[Turn] = []
    for number in range(turns):
        client = chance.choice(clients)
        messages, options = client.next_messages(), dict[str, Any](sampling=SHORT, thread=client.thread)
        options["memory"] = chance.choice(("readwrite",) * 4 + ("readonly", "off"))
        options["tools"] = TOOLS if chance.random() < 0.2 else ()
        options["recall"] = Recall(read=chance.choice(("selected", "selected", "all", "none")))
        stream = engine.stream_turn(client.agent, messages, **options)
        chunks = [next(stream)]
        if chance.random() < 0.2:
            other.absorb_into(client.agent, [Message("user", f"Meanwhile {client.sentence()}")], thread="other")
        if chance.random() < 0.1:
            stream.close()
            continue
        chunks += list(stream)
        turn = chunks[-1].turn
        assert turn is not None
        done.append(turn)
        client.history.append(turn.message)
        if number == turns // 2 and engine.store.head("ada") is not None:
            engine.store.fork("ada", "eve")
            twin = Client(chance, "eve", client.thread)
            twin.history = list(client.history)
            clients.append(twin)
    return done, engine


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(2))
def test_kept_caches_change_neither_replies_nor_memory(name: str, seed: int) -> None:
    turns, engine = walk(CONFIGS[name], seed, 2**20)
    plain, without = walk(CONFIGS[name], seed, 0)
    assert [turn.text for turn in turns] == [turn.text for turn in plain]
    assert engine.store.agents() == without.store.agents()
    for agent in engine.store.agents():
        a, b = head(engine, agent).state, head(without, agent).state
        torch.testing.assert_close(a.matrices, b.matrices, atol=1e-4, rtol=1e-4)
    for turn, other in zip(turns, plain, strict=True):
        assert turn.facts.prefilled_tokens + turn.usage.cached_tokens == turn.usage.prompt_tokens
        assert turn.usage.prompt_tokens == other.usage.prompt_tokens == other.facts.prefilled_tokens
        for fact in ("alignment", "tokens_read", "tokens_written", "messages_written", "undone_messages"):
            assert getattr(turn.facts, fact) == getattr(other.facts, fact)
    assert sum(turn.usage.cached_tokens for turn in turns) > 0


def talk(engine: DeltaMemEngine, agent: str, turns: int, **options: Any) -> list[Turn]:
    history = [SYSTEM]
    return [grow(engine, agent, history, Message("user", f"Word {n} of {agent}."), **options) for n in range(turns)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"memory": "off"}, {"recall": Recall(read="none")}, {}], ids=["off", "none", "recall"]
)
def test_a_turn_that_continues_prefills_what_is_new(options: dict[str, Any]) -> None:
    engine = tiny_engine(config=SELECTIVE)
    turns = talk(engine, "ada", 20, **options)
    for before, turn in pairwise(turns):
        new = turn.usage.prompt_tokens - before.usage.prompt_tokens
        assert turn.facts.prefilled_tokens <= 1.2 * new
    assert turns[-1].usage.prompt_tokens > 700
    # Caches are used although every turn chooses another state.
    assert any(turn.facts.recalled for turn in turns) != bool(options)


@pytest.mark.slow
@pytest.mark.parametrize("shown", [0, 120], ids=["nothing comes back", "messages come back"])
def test_where_the_window_slides_most_turns_prefill_what_is_new(shown: int) -> None:
    engine = tiny_engine(config=SELECTIVE, window_tokens=900)
    turns = talk(engine, "ada", 60, recall=Recall(window_tokens=shown))[30:]
    assert all(turn.usage.prompt_tokens > 300 for turn in turns)
    assert sum(turn.facts.prefilled_tokens < 300 for turn in turns) > 0.6 * len(turns)


def test_nothing_but_the_lead_is_taken_from_another_conversation() -> None:
    engine = tiny_engine(config=SELECTIVE)
    said = [
        SYSTEM,
        Message("user", "My word is amber."),
        Message("assistant", "Amber it is."),
        Message("user", "Well?"),
    ]
    first = engine.run_turn("ada", said, sampling=SHORT)
    lead = engine._prompts.reading(said).reads.index(True)
    assert first.usage.cached_tokens == 0
    for agent, thread in (("bob", None), ("ada", "another"), (None, None)):
        turn = engine.run_turn(agent, said, thread=thread, sampling=SHORT)
        assert turn.usage.cached_tokens == lead
    # Without an agent nothing is kept.
    assert len(engine._caches._entries) == 3
    # Another place, another agent.
    assert engine.with_store(InMemoryStore()).run_turn("ada", said, sampling=SHORT).usage.cached_tokens == lead
    again = engine.run_turn("ada", said, sampling=SHORT, memory="readonly", recall=Recall(read="none"))
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


@pytest.mark.slow
def test_the_bound_holds_and_what_was_used_longest_ago_goes_first() -> None:
    engine = tiny_engine(config=SELECTIVE)
    talk(engine, "ada", 1)
    each = engine._caches.nbytes
    engine._caches.limit = int(3.5 * each)
    for agent in ("bob", "cid", "ada", "dan", "eve"):
        talk(engine, agent, 1)
        assert 0 < engine._caches.nbytes <= engine._caches.limit
    assert [whose.agent for whose in engine._caches._entries] == ["ada", "dan", "eve"]
    talk(engine, "fay", 12)
    # If a conversation is larger than the limit, its beginning is kept.
    assert 0.8 * engine._caches.limit < engine._caches.nbytes <= engine._caches.limit


def test_0_keeps_nothing_and_less_is_refused() -> None:
    engine = tiny_engine(config=SELECTIVE, kept_cache_bytes=0)
    assert [turn.usage.cached_tokens for turn in talk(engine, "ada", 2)] == [0, 0]
    assert engine._caches.nbytes == 0
    with pytest.raises(ConfigError, match="kept_cache_bytes is -1"):
        tiny_engine(kept_cache_bytes=-1)


def forget(engine: DeltaMemEngine) -> None:
    engine.store.forget("ada")


def forget_through_another_store(engine: DeltaMemEngine) -> None:
    SQLiteStore(engine.store.path).forget("ada")  # type: ignore[attr-defined]


def import_again(engine: DeltaMemEngine) -> None:
    file = io.BytesIO()
    engine.store.export("ada", file)
    engine.store.import_(file, replace=True)


def forget_a_statement(engine: DeltaMemEngine) -> None:
    engine.forget_statement("ada", engine.statements("ada")[0].id)


FORGETTING = [forget, forget_through_another_store, import_again, forget_a_statement]


@pytest.mark.slow
@pytest.mark.parametrize("act", FORGETTING)
def test_forgetting_drops_what_is_kept(act: Callable[[DeltaMemEngine], None], tmp_path: Any) -> None:
    engine = tiny_engine(SQLiteStore(tmp_path / "memory.sqlite"), config=SELECTIVE)
    talk(engine, "ada", 2)
    talk(engine, "bob", 2)
    kept = {
        whose.agent: [weakref.ref(part) for layer in entry.layers for part in layer]
        for whose, entry in engine._caches._entries.items()
    }
    act(engine)
    gc.collect()
    assert all(part() is None for part in kept["ada"]) and all(part() is not None for part in kept["bob"])


@pytest.mark.parametrize("memory", ["readonly", "off"])
def test_a_turn_in_flight_keeps_nothing_of_an_agent_that_is_forgotten(memory: Any) -> None:
    engine = tiny_engine(config=SELECTIVE)
    talk(engine, "ada", 1)
    stream = engine.stream_turn("ada", [Message("user", "Well?")], memory=memory, sampling=SHORT)
    next(stream)
    engine.store.forget("ada")
    assert list(stream)[-1].turn is not None
    assert engine._caches.nbytes == 0


def test_closing_an_engine_drops_what_is_kept() -> None:
    engine = tiny_engine(config=SELECTIVE)
    talk(engine, "bob", 1)
    assert engine._caches.nbytes > 0
    engine.close()
    assert engine._caches.nbytes == 0


def prompt_of(ids: list[int]) -> Prompt:
    none = (False,) * len(ids)
    return Prompt(tuple(ids), none, none, (-1,) * len(ids), none)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_from_what_was_kept(family: str) -> None:
    model, caches = tiny_model(family, "eager"), KeptCaches(2**20)
    key = CacheKey.of(model, "ada", "")
    ids = torch.randint(1, 60, (24,), generator=torch.Generator().manual_seed(5)).tolist()
    first = Pass(model, None)
    use = caches.begin(first, prompt_of(ids[:16]), key, writes_reply=False)
    assert use is not None
    first.feed(prompt_of(ids[:16]))
    first.feed(prompt_of(ids[16:18]))
    caches.keep(use, first, ids[16:20])
    for changed, kept in ((None, 18), (11, 11), (0, 0)):
        asked = [each if at != changed else 61 for at, each in enumerate(ids)]
        run = Pass(model, None)
        caches.begin(run, prompt_of(asked), key, writes_reply=False)
        assert run.cached == kept
        whole = Pass(model, None).feed(prompt_of(asked))
        torch.testing.assert_close(run.feed(prompt_of(asked)), whole, atol=1e-4, rtol=1e-4)
    # Kept caches are dropped together with the agent's store.
    elsewhere = InMemoryStore()
    caches.keep(replace(use, key=CacheKey.of(elsewhere, "ada", "")), first, [])
    assert len(caches._entries) == 2
    del elsewhere
    caches.keep(use, first, [])
    assert len(caches._entries) == 1


def test_a_cache_that_cannot_be_cut_is_not_kept() -> None:
    model, caches = tiny_model("mistral"), KeptCaches(2**20)
    ids = list(range(1, 12))
    run = Pass(model, None, cache=KeyValueCache(config=model.config))
    use = caches.begin(run, prompt_of(ids), CacheKey.of(model, "ada", ""), writes_reply=False)
    run.feed(prompt_of(ids))
    assert layers_of(run.cache) is None
    caches.keep(use, run, [])
    assert caches.nbytes == 0


def test_positions_that_change_with_the_length_are_not_kept() -> None:
    model = tiny_model("llama")
    assert cuts_anywhere(model.config)
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not cuts_anywhere(model.config)
    assert KeptCaches(2**20).begin(Pass(model, None), prompt_of([1, 2]), None, writes_reply=False) is None


def test_messages_that_still_have_to_be_written_are_fed_again() -> None:
    """A message may be in the kept prefix although it was not written. Then it still has to be written."""
    engine, plain = (tiny_engine(config=SELECTIVE, kept_cache_bytes=room) for room in (2**20, 0))
    said = [Message("user", "My word is amber."), Message("assistant", "Yes."), Message("user", "It is mine.")]
    for each in (engine, plain):
        each.run_turn("ada", said, sampling=SHORT, memory="off")
        each.run_turn("ada", said, sampling=Sampling(max_tokens=3))
    texts = [[(each.text, each.strengths) for each in one.statements("ada")] for one in (engine, plain)]
    assert [text for text, _ in texts[0]] == [text for text, _ in texts[1]]
    for (_, strengths), (_, others) in zip(*texts, strict=True):
        assert strengths == pytest.approx(others, abs=1e-4)


TOLD = ("My word is amber.", "My cat is Miu and my lute is new.", "I live in Oslo.")


def heard_turns(engine: DeltaMemEngine, **options: Any) -> list[Turn]:
    """Turns whose prompts contain only their question, each in a separate thread."""
    said = [[Message("user", text)] for text in (*TOLD, "What is my word?", "Where do I live?", TOLD[0])]
    turns = [engine.run_turn("ada", each, thread=str(at), sampling=SHORT, **options) for at, each in enumerate(said)]
    begun = [Message("user", "Say it again."), Message("assistant", "My word")]
    return [*turns, engine.run_turn("ada", begun, thread="begun", sampling=SHORT, **options)]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 2**20])
@pytest.mark.parametrize("memory", ["readwrite", "readonly"])
@pytest.mark.parametrize("scope", ["replies", "all"])
def test_a_question_that_was_heard_is_not_fed_again(
    kept: int, memory: Any, scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt continues from the pass that matched its question: the same reply, writes and facts at less cost."""
    config = replace(SELECTIVE, read_scope=scope)
    engine, plain = (tiny_engine(config=config, kept_cache_bytes=kept) for _ in range(2))
    for each in (engine, plain):
        each.run_turn("ada", [Message("user", text) for text in TOLD], thread="told", sampling=SHORT)
    lengths: dict[str, int] = {}

    def counting(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: lengths.update({name: lengths.get(name, 0) + kwargs["input_ids"].numel()})

    for name, each in (("engine", engine), ("plain", plain)):
        each.model.register_forward_pre_hook(counting(name), with_kwargs=True)
    turns = heard_turns(engine, memory=memory)
    begin = KeptCaches.begin
    monkeypatch.setattr(KeptCaches, "begin", lambda *args, **named: begin(*args, **{**named, "heard": None}))
    wanted = heard_turns(plain, memory=memory)
    assert [turn.text for turn in turns] == [turn.text for turn in wanted]
    for turn, other in zip(turns, wanted, strict=True):
        assert turn.usage == other.usage
        for fact in ("tokens_read", "tokens_written", "messages_written", "prefilled_tokens"):
            assert getattr(turn.facts, fact) == getattr(other.facts, fact)
        assert turn.facts.mean_beta == (other.facts.mean_beta and pytest.approx(other.facts.mean_beta, rel=1e-4))
        assert [each.text for each in turn.facts.recalled] == [each.text for each in other.facts.recalled]
    mine, theirs = (one.statements("ada") for one in (engine, plain))
    assert [(each.text, each.tokens, each.written) for each in mine] == [
        (each.text, each.tokens, each.written) for each in theirs
    ]
    for one, other in zip(mine, theirs, strict=True):
        assert one.strengths == pytest.approx(other.strengths, abs=1e-4)
        if one.wrote:
            assert one.writes is not None and other.writes is not None
            torch.testing.assert_close(one.writes.keys, other.writes.keys, atol=2e-2, rtol=0)
            torch.testing.assert_close(one.writes.values, other.writes.values, atol=5e-2, rtol=5e-2)
    assert lengths["engine"] < (0.8 if scope == "replies" else 1.01) * lengths["plain"]
