"""Laws of statements: what a turn stores, what a reply reads, and what forgetting and correcting leave."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import (
    AdapterConfig,
    ConfigError,
    DeltaMemEngine,
    FileStore,
    InMemoryStore,
    Recall,
    Sampling,
    SQLiteStore,
    StateError,
    StatementNotFoundError,
    Store,
    WritePolicy,
)
from deltamem_agents.memory.writes import Writes, scan_writes
from deltamem_agents.snapshots import Snapshot
from deltamem_agents.turns.listing import forget_statement
from deltamem_agents.turns.recording import spans_of
from tiny_engine import tiny_engine

SELECTIVE = AdapterConfig(
    rank=4, key_shift=True, gate_floor=0.6, state_update_mode="no_lambda", rankwise_gates=False, read_scope="replies"
)
STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: InMemoryStore(),
    "file": lambda folder: FileStore(folder / "store"),
    "sqlite": lambda folder: SQLiteStore(folder / "store.sqlite"),
}
SHORT = Sampling(max_tokens=4)
COMMIT_BYTES = 16_384


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORES[request.param](tmp_path) as store:
        yield store


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def tell(engine: DeltaMemEngine, *texts: str, agent: str = "a", thread: str | None = None) -> None:
    for text in texts:
        engine.run_turn(agent, [user(text)], thread=thread, sampling=SHORT)


def told(engine: DeltaMemEngine, agent: str = "a", *, superseded: bool = False) -> list[str]:
    return [each.text for each in engine.statements(agent, superseded=superseded) if each.role == "user"]


def scanned(engine: DeltaMemEngine, agent: str = "a") -> torch.Tensor:
    writes = [each.writes for each in engine.statements(agent)]
    return scan_writes(SELECTIVE, Writes.cat([each for each in writes if each is not None])).matrices


def state(engine: DeltaMemEngine, agent: str = "a") -> torch.Tensor:
    return engine.store.load(agent).snapshot.state.matrices


def bytes_of(tmp_path: Path) -> bytes:
    return b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_state_is_the_scan_of_the_live_statements_writes(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "My name is Ada.", "I live in Oslo.")
    assert torch.equal(state(engine), scanned(engine))
    engine.absorb_into("a", [user("My dog is called Rex.")])
    assert torch.equal(state(engine), scanned(engine))
    engine.forget_statement("a", engine.statements("a")[0].id)
    assert torch.equal(state(engine), scanned(engine))
    engine.correct_statement("a", engine.statements("a")[0].id, "I live in Rome.")
    assert torch.equal(state(engine), scanned(engine))
    fresh = tiny_engine(store, config=SELECTIVE)
    assert torch.equal(scanned(fresh), scanned(engine))


def test_a_statement_has_text_thread_and_write_strengths(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "My name is Ada.", thread="first")
    tell(engine, "I live in Oslo.", thread="second")
    one, two = (each for each in engine.statements("a") if each.role == "user")
    assert (one.text, one.thread, two.text, two.thread) == ("My name is Ada.", "first", "I live in Oslo.", "second")
    assert one.created <= two.created and one.id != two.id
    assert len(one.strengths) == len(one.tokens) and max(one.strengths) > 0
    assert engine.tokenizer.decode(list(one.tokens)) == "My name is Ada."


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_forgotten_statement_leaves_no_byte_in_any_file_and_nothing_in_any_state(kind: str, tmp_path: Path) -> None:
    with STORES[kind](tmp_path) as store:
        engine = tiny_engine(store, config=SELECTIVE)
        tell(engine, "My name is Ada.", "My secret is XYZZY.", "I live in Oslo.")
        secret = next(each for each in engine.statements("a") if "XYZZY" in each.text)
        assert secret.stored is not None
        keys = secret.stored.keys.numpy().tobytes()
        assert b"XYZZY" in bytes_of(tmp_path) and keys in bytes_of(tmp_path)
        receipt = engine.forget_statement("a", secret.id)
        assert receipt.removed == (secret.id,) and not receipt.kept and receipt.nbytes > len(keys)
        assert b"XYZZY" not in bytes_of(tmp_path) and keys not in bytes_of(tmp_path)
        assert told(engine) == ["My name is Ada.", "I live in Oslo."]
        # It is not in the states of older snapshots either.
        for entry in store.log("a"):
            assert entry.snapshot.base is not None and not entry.snapshot.base.matrices.any()
            assert secret.id not in [each.id for each in store.statements("a", entry.id)]


def test_a_message_sent_again_does_not_bring_a_forgotten_statement_back(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    history = [user("My secret is XYZZY.")]
    history.append({"role": "assistant", "content": engine.run_turn("a", history, thread="t", sampling=SHORT).text})
    engine.forget_statement("a", engine.statements("a")[0].id)
    engine.run_turn("a", [*history, user("And now?")], thread="t", sampling=SHORT)
    assert not any("XYZZY" in text for text in told(engine))


def test_forgetting_names_forks_that_hold_it_and_others_that_say_the_same(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "My name is Ada.", "I said that my name is Ada.", "I live in Oslo.")
    store.fork("a", "b")
    first = engine.statements("a")[0]
    receipt = engine.forget_statement("a", first.id)
    assert receipt.forks == ("b",) and receipt.kept == (first.id,) and not receipt.removed
    assert "I said that my name is Ada." in [each.text for each in receipt.alike]
    assert first.id in [each.id for each in engine.statements("b")]
    store.forget("b")
    assert first.id not in [each.id for each in engine.statements("a")]


def test_forgetting_a_corrected_statement_names_what_says_the_same_as_its_earlier_versions(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "My dog is Biscuit.", "So my dog is Biscuit.", "I live in Oslo.")
    new = engine.correct_statement("a", engine.statements("a")[0].id, "My cat is Bruno.")
    receipt = engine.forget_statement("a", new.id)
    assert "So my dog is Biscuit." in [each.text for each in receipt.alike]


def test_forgetting_an_unknown_statement_is_an_error(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "My name is Ada.")
    statement, head = engine.statements("a")[0].id, store.head("a")
    for named in ("0" * 32, statement[:5], "", "nothing"):
        with pytest.raises(StatementNotFoundError, match="no such statement"):
            engine.forget_statement("a", named)
    assert store.head("a") == head
    assert engine.forget_statement("a", statement[:6]).removed == (statement,)
    with pytest.raises(StatementNotFoundError):
        engine.forget_statement("a", statement)


def test_a_corrected_statement_takes_the_earlier_ones_place(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "I live in Oslo.", "My name is Ada.")
    old = engine.statements("a")[0]
    new = engine.correct_statement("a", old.id, "I live in Rome.")
    assert new.supersedes == old.id and (new.role, new.thread, new.place) == (old.role, old.thread, old.place)
    assert told(engine) == ["My name is Ada.", "I live in Rome."]
    assert told(engine, superseded=True) == ["My name is Ada.", "I live in Oslo.", "I live in Rome."]
    turn = engine.run_turn("a", [user("Where do I live?")], sampling=SHORT, memory="readonly")
    assert old.id not in [each.id for each in turn.facts.recalled]
    # Both versions are deleted together.
    assert set(engine.forget_statement("a", new.id).removed) == {old.id, new.id}
    assert told(engine, superseded=True) == ["My name is Ada."]
    with pytest.raises(ConfigError, match="empty"):
        engine.correct_statement("a", engine.statements("a")[0].id, " ")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"recall": Recall("none")}, {"recall": Recall(roles=())}])
def test_if_nothing_is_recalled_the_reply_is_the_frozen_models(options: dict[str, Recall]) -> None:
    engine = tiny_engine(config=SELECTIVE)
    tell(engine, "My name is Ada.", "I live in Oslo.")
    question = [user("Who am I?")]
    some = Sampling(max_tokens=40)
    asked = engine.run_turn("a", question, memory="readonly", sampling=some, **options)
    off = engine.run_turn("a", question, memory="off", sampling=some)
    assert asked.text == off.text and not asked.facts.recalled
    selected = engine.run_turn("a", question, memory="readonly", sampling=some)
    assert selected.text != asked.text and selected.facts.recalled


def test_a_reply_reads_only_the_matching_statement() -> None:
    engine = tiny_engine(config=SELECTIVE)
    tell(engine, "My name is Ada.", "I live in Oslo.", "My dog is called Rex.")
    turn = engine.run_turn("a", [user("My dog is called Rex.")], memory="readonly", sampling=SHORT)
    chosen = [each for each in engine.statements("a") if each.id in {one.id for one in turn.facts.recalled}]
    assert turn.facts.recalled[0].text == "My dog is called Rex."
    writes = Writes.cat([each.writes for each in chosen if each.writes is not None])
    assert turn.facts.state_norm == pytest.approx(scan_writes(SELECTIVE, writes).norm())
    everything = engine.run_turn("a", [user("Rex?")], memory="readonly", sampling=SHORT, recall=Recall("all"))
    assert everything.facts.state_norm == pytest.approx(engine.store.load("a").snapshot.state.norm())
    assert not everything.facts.recalled


def test_sync_async_and_streamed_turns_recall_the_same() -> None:
    engine = tiny_engine(config=SELECTIVE)
    tell(engine, "My name is Ada.", "I live in Oslo.")
    question, options = [user("Where do I live?")], {"memory": "readonly", "sampling": SHORT}
    turn = engine.run_turn("a", question, **options)  # type: ignore[arg-type]
    awaited = asyncio.run(engine.arun_turn("a", question, **options))  # type: ignore[arg-type]
    assert turn.facts.recalled == awaited.facts.recalled and turn.text == awaited.text
    fresh = engine.with_store(engine.store)
    assert fresh.run_turn("a", question, **options).facts.recalled == turn.facts.recalled  # type: ignore[arg-type]


def test_selected_exchanges_are_shown_in_the_prompt_once() -> None:
    engine = tiny_engine(config=SELECTIVE)
    tell(engine, "My dog is called Rex.", thread="then")
    question = user("My dog is called what?")
    plain = engine.run_turn("a", [question], memory="readonly", sampling=SHORT)
    shown = engine.run_turn("a", [question], memory="readonly", sampling=SHORT, recall=Recall(window_tokens=200))
    assert shown.usage.prompt_tokens > plain.usage.prompt_tokens
    assert [each.read_from for each in shown.facts.recalled] == ["state+window"]
    reply = next(each for each in engine.store.statements("a") if each.role == "assistant")
    exchange = [user("My dog is called Rex."), {"role": "assistant", "content": reply.text}]
    again = engine.run_turn("a", [*exchange, question], memory="readonly", sampling=SHORT)
    assert again.usage.prompt_tokens == shown.usage.prompt_tokens
    visible = engine.run_turn(
        "a", [*exchange, question], memory="readonly", sampling=SHORT, recall=Recall(window_tokens=200)
    )
    assert visible.usage.prompt_tokens == again.usage.prompt_tokens
    tight = engine.run_turn("a", [question], memory="readonly", sampling=SHORT, recall=Recall(window_tokens=3))
    assert tight.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("recall", [Recall(), Recall("all")])
def test_how_a_memory_is_read_does_not_change_what_is_written(recall: Recall) -> None:
    plain, other = tiny_engine(config=SELECTIVE), tiny_engine(config=SELECTIVE)
    for engine, how in ((plain, Recall("none")), (other, recall)):
        for text in ("My name is Ada.", "I live in Oslo."):
            engine.run_turn("a", [user(text)], sampling=SHORT, recall=how)
    pairs = list(zip(plain.statements("a"), other.statements("a"), strict=False))
    assert told(plain) == told(other)
    for one, two in pairs:
        if one.role == "user" and one.stored is not None and two.stored is not None:
            assert torch.equal(one.stored.keys, two.stored.keys) and torch.equal(one.stored.write, two.stored.write)


def conversation(engine: DeltaMemEngine, *texts: str) -> list[dict[str, str]]:
    """The history of a thread "t" with these messages."""
    history: list[dict[str, str]] = []
    for text in texts:
        history.append(user(text))
        reply = engine.run_turn("a", history, thread="t", sampling=SHORT).text
        history.append({"role": "assistant", "content": reply})
    return history


def test_an_edited_message_is_replaced_whatever_other_threads_wrote_since(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    history = conversation(engine, "I live in Oslo.", "My name is Ada.")
    tell(engine, "I like tea.", thread="other")
    others = {each.id for each in engine.statements("a") if each.text != "I live in Oslo."}
    turn = engine.run_turn("a", [user("I live in Rome."), *history[1:], user("And?")], thread="t", sampling=SHORT)
    assert turn.facts.alignment == "diverged" and turn.facts.undone_messages == 1
    texts = told(engine)
    assert "I live in Rome." in texts and "I live in Oslo." not in texts
    # Everything else is unchanged, to the byte.
    assert others <= {each.id for each in engine.statements("a")}
    assert torch.equal(state(engine), scanned(engine))
    # The edited message can be edited again.
    later = [*history[1:], user("And?"), {"role": "assistant", "content": turn.text}, user("So?")]
    engine.run_turn("a", [user("I live in Bonn."), *later], thread="t", sampling=SHORT)
    assert "I live in Bonn." in told(engine) and "I live in Rome." not in told(engine)


def test_messages_behind_an_edit_are_dropped_whatever_other_threads_wrote_since(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    history = conversation(engine, "I live in Oslo.", "My name is Ada.", "My dog is called Rex.")
    tell(engine, "I like tea.", thread="other")
    turn = engine.run_turn("a", [*history[:2], user("My name is Eve.")], thread="t", sampling=SHORT)
    assert turn.facts.alignment == "diverged" and turn.facts.undone_messages == 4
    assert told(engine) == ["I live in Oslo.", "I like tea.", "My name is Eve."]
    assert torch.equal(state(engine), scanned(engine))


def test_a_regenerated_reply_replaces_the_first() -> None:
    engine = tiny_engine(config=SELECTIVE)
    question = [user("My name is Ada.")]
    for seed in (1, 2):
        sampling = Sampling(max_tokens=8, temperature=1.0, seed=seed)
        turn = engine.run_turn("a", question, thread="t", sampling=sampling)
    kept = [(each.role, each.text) for each in engine.store.statements("a")]
    assert kept == [("user", "My name is Ada."), ("assistant", turn.text)]


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_without_keep_text_statements_are_still_found_and_forgotten(kind: str, tmp_path: Path) -> None:
    with STORES[kind](tmp_path) as store:
        engine = tiny_engine(store, config=SELECTIVE, policy=WritePolicy(keep_text=False))
        tell(engine, "My name is Ada XYZZY.", "I live in Oslo.")
        statements = engine.statements("a")
        assert statements and all(not each.text and not each.tokens for each in statements)
        assert b"XYZZY" not in bytes_of(tmp_path) and b"Oslo" not in bytes_of(tmp_path)
        turn = engine.run_turn("a", [user("I live in Oslo.")], memory="readonly", sampling=SHORT)
        assert turn.facts.recalled
        engine.forget_statement("a", statements[0].id)
        assert torch.equal(state(engine), scanned(engine))


@pytest.mark.slow
def test_a_commit_stays_small_however_many_statements_there_are(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    messages = [user(f"Fact number {number} is {number * 7}.") for number in range(300)]
    engine.absorb_into("a", messages, thread="t")
    tell(engine, "One more.", thread="t")
    head = store.head("a")
    assert head is not None and len(store._bytes("a", head)) < COMMIT_BYTES
    assert len(store.statements("a")) > 300 and torch.equal(state(engine), scanned(engine))
    middle = engine.statements("a")[100].id
    engine.forget_statement("a", middle)
    assert middle not in [each.id for each in engine.statements("a")]
    assert torch.equal(state(tiny_engine(store, config=SELECTIVE)), scanned(engine))


def test_pruning_drops_the_statements_that_no_snapshot_lists(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "I live in Oslo.", "My name is Ada.")
    old = engine.statements("a")[0]
    engine.correct_statement("a", old.id, "I live in Rome.")
    assert store.read_statements("a", [old.id])
    store.prune("a", keep_last=1)
    assert store._objects("a", [old.id]) == {}
    assert told(engine) == ["My name is Ada.", "I live in Rome."]


def test_an_export_includes_statements(store: Store, tmp_path: Path) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "I live in Oslo.", "My name is Ada.", "My secret is XYZZY.")
    engine.forget_statement("a", engine.statements("a")[-1].id)
    store.export("a", tmp_path / "a.zip")
    other = tiny_engine(InMemoryStore(), config=SELECTIVE)
    other.store.import_(tmp_path / "a.zip", "b")
    assert [each.id for each in other.statements("b")] == [each.id for each in engine.statements("a")]
    assert torch.equal(state(other, "b"), state(engine))
    store.import_(tmp_path / "a.zip", "a", replace=True)
    assert told(engine) == told(other, "b")


def test_going_back_to_an_older_snapshot_brings_its_statements(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "I live in Oslo.")
    head = store.head("a")
    assert head is not None
    tell(engine, "My name is Ada.")
    store.rewind("a", head)
    assert told(engine) == ["I live in Oslo."]
    tell(engine, "My dog is called Rex.")
    assert told(engine) == ["I live in Oslo.", "My dog is called Rex."]


def test_statements_of_another_engine_are_seen(store: Store) -> None:
    one, two = tiny_engine(store, config=SELECTIVE), tiny_engine(store, config=SELECTIVE)
    tell(one, "I live in Oslo.")
    assert told(two) == ["I live in Oslo."]
    tell(two, "My name is Ada.")
    one.forget_statement("a", one.statements("a")[0].id)
    assert told(one) == told(two) == ["My name is Ada."]


def test_a_memory_of_one_state_gains_statements_from_then_on(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    before = engine.absorb(engine.new_state(), [user("I live in Oslo.")])
    store.save("a", Snapshot(state=before, fingerprint=engine.fingerprint), expected=None)
    assert told(engine) == []
    tell(engine, "My name is Ada.")
    assert told(engine) == ["My name is Ada."]
    writes = [each.writes for each in engine.statements("a")]
    whole = scan_writes(SELECTIVE, Writes.cat([each for each in writes if each is not None]), before)
    assert torch.equal(state(engine), whole.matrices)
    base = engine.store.load("a").snapshot.base
    assert base is not None and torch.equal(base.matrices, before.matrices)


def test_an_adapter_whose_gates_never_close_has_statements_of_text_alone(store: Store) -> None:
    engine = tiny_engine(store)
    tell(engine, "I live in Oslo.", "My name is Ada.")
    assert told(engine) == ["I live in Oslo.", "My name is Ada."]
    assert all(each.stored is None for each in engine.statements("a"))
    assert engine.store.load("a").snapshot.base is None
    with pytest.raises(StateError, match="gates never close"):
        engine.forget_statement("a", engine.statements("a")[0].id)


def test_a_lost_race_writes_its_statements_once() -> None:
    engine = tiny_engine(config=SELECTIVE)
    tell(engine, "I live in Oslo.")
    late = engine.stream_turn("a", [user("My name is Ada.")], thread="late", sampling=SHORT)
    next(late)
    tell(engine, "My dog is called Rex.")
    for _ in late:
        pass
    assert sorted(told(engine)) == ["I live in Oslo.", "My dog is called Rex.", "My name is Ada."]
    assert torch.equal(state(engine), scanned(engine))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"read": "some"}, "Recall.read is 'some'"),
        ({"window_tokens": -1}, "window_tokens is -1"),
        ({"window_tokens": True}, "window_tokens is True"),
        ({"roles": "user"}, "roles is 'user'"),
        ({"roles": ("users",)}, "roles is"),
        ({"max_age": 3}, "max_age is 3"),
    ],
)
def test_invalid_recall_options_are_refused(fields: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Recall(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["My name is Ada.", "  Søren bor i Ålesund 🙂 \n", "\n\nTwo\n\nlines", " "])
def test_a_statements_marked_pieces_are_its_text(text: str) -> None:
    engine = tiny_engine(config=SELECTIVE)
    engine.absorb_into("a", [user(text)])
    for each in engine.store.statements("a"):
        assert "".join(piece for piece, _ in each.marked) == text


def test_the_head_and_the_tail_of_a_long_message_are_marked() -> None:
    engine = tiny_engine(config=SELECTIVE, policy=WritePolicy(message_tokens=11))
    text = "abcdef and so on and on and on to abcde"
    engine.absorb_into("a", [user(text)])
    (found,) = engine.store.statements("a")
    assert [text[first:last] for first, last in found.spans] == [*"abcdef", *"abcde"]
    assert "".join(piece for piece, _ in found.marked) == text


@given(st.lists(st.text(max_size=3), max_size=8), st.text(max_size=4), st.text(max_size=4))
def test_spans_lie_in_the_text_in_order(pieces: list[str], before: str, behind: str) -> None:
    for text in (before + "".join(pieces) + behind, "".join(pieces)[1:], before):
        places = [place for span in spans_of(pieces, text) for place in span]
        assert places == sorted(places) and all(0 <= place <= len(text) for place in places)
        assert len(places) in (0, 2 * len(pieces))
    whole = spans_of(pieces, "".join(pieces))
    assert ["".join(pieces)[first:last] for first, last in whole] == pieces


def test_forgetting_needs_no_model(store: Store) -> None:
    engine = tiny_engine(store, config=SELECTIVE)
    tell(engine, "My name is Ada.", "I live in Oslo.", "Ada likes tea.")
    other = InMemoryStore()
    copied = io.BytesIO()
    store.export("a", copied)
    copied.seek(0)
    other.import_(copied)
    by_engine = engine.with_store(other).forget_statement("a", engine.statements("a")[0].id)
    by_store = forget_statement(store, "a", engine.statements("a")[0].id)
    assert (by_store.removed, by_store.kept, by_store.forks) == (by_engine.removed, by_engine.kept, by_engine.forks)
    assert [each.id for each in by_store.alike] == [each.id for each in by_engine.alike]
    assert torch.equal(state(engine), scanned(engine))
    assert torch.equal(state(engine), other.load("a").snapshot.state.matrices)
    assert told(engine) == ["I live in Oslo.", "Ada likes tea."]


def test_forgetting_one_statement_of_a_single_state_is_an_error(store: Store) -> None:
    engine = tiny_engine(store)
    tell(engine, "My name is Ada.")
    with pytest.raises(StateError, match="gates never close"):
        forget_statement(store, "a", store.statements("a")[0].id)
