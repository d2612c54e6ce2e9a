"""Laws of folding: a folded state is read like the state itself; writes computed later equal those computed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltamem_agents import AdapterConfig, DeltaMemEngine, Recall, Sampling
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.memory.folding import FoldedState
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.turns.memories import scan_statements
from tiny_engine import tiny_engine

FOLDS = AdapterConfig(
    rank=4,
    key_shift=True,
    read_gate=True,
    readout=True,
    gate_floor=0.25,
    state_update_mode="no_lambda",
    rankwise_gates=False,
    read_scope="replies",
    delta_heads=("q", "o"),
)
KINDS = {
    "q and o": FOLDS,
    "all heads": replace(FOLDS, delta_heads=("q", "k", "v", "o")),
    "no readout": replace(FOLDS, readout=False),
    "readout alone": replace(FOLDS, delta_heads=("q",)),
    "gates mostly closed": replace(FOLDS, gate_floor=0.6),
}


def words(length: int, *, writes: bool) -> Prompt:
    ids = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return Prompt(tuple(ids), (True,) * length, (writes,) * length, (0,) * length, (True,) * length)


def begun(engine: DeltaMemEngine, *, folds: bool, later: bool = True) -> Pass:
    """A pass that reads a random state, after feeding a prompt."""
    state = MemoryState(torch.ones_like(engine.new_state().matrices)).random_like(torch.Generator().manual_seed(3))
    run = engine._speaker.begin(state, applies=False)
    run.config = run.config if folds else None
    run.feed(words(7, writes=True))
    run.later = later
    return run


@pytest.mark.parametrize("name", KINDS)
def test_a_folded_state_reads_like_the_state_itself(name: str) -> None:
    engine = tiny_engine(config=KINDS[name])
    folded, plain = begun(engine, folds=True), begun(engine, folds=False)
    for token in (5, 80, 200):
        one = Prompt((token,), (True,), (True,), (-1,), (True,))
        torch.testing.assert_close(folded.feed(one), plain.feed(one), atol=1e-4, rtol=1e-4)
    assert folded._folded is not None and plain._folded is None


@pytest.mark.parametrize("folds", [True, False])
def test_writes_computed_later_equal_writes_computed_at_once(folds: bool) -> None:
    engine = tiny_engine(config=FOLDS)
    late, once = begun(engine, folds=folds), begun(engine, folds=False, later=False)
    for token in (5, 80, 200, 7):
        one = Prompt((token,), (True,), (True,), (-1,), (True,))
        late.feed(one)
        once.feed(one)
    assert late.fed == 4
    late.write_waiting(3)
    assert late.pieces is not None and once.pieces is not None
    *_, reply = late.pieces
    again = once.pieces[-4].then(once.pieces[-3]).then(once.pieces[-2])
    assert reply.tokens == again.tokens == (5, 80, 200) and reply.written == again.written
    for part in ("keys", "values", "write", "erase"):
        torch.testing.assert_close(getattr(reply.writes, part), getattr(again.writes, part), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        replace(FOLDS, num_state_heads=2),
        replace(FOLDS, read_gate=False),
        replace(FOLDS, gate_on_reads=True),
        replace(FOLDS, delta_o_rmsnorm=True),
        replace(FOLDS, trainable_delta_scale=True),
    ],
)
def test_an_unsupported_adapter_is_not_folded(config: AdapterConfig) -> None:
    engine = tiny_engine(config=config)
    layers = [engine.adapter.layer(slot) for slot in range(2)]
    assert FoldedState.of(config, layers, engine.new_state()) is None
    turn = engine.run_turn("a", [{"role": "user", "content": "I live in Oslo."}], sampling=Sampling(max_tokens=4))
    assert turn.usage.completion_tokens


@pytest.mark.slow
def test_a_reply_that_reads_a_folded_state_has_the_same_text() -> None:
    engine = tiny_engine(config=FOLDS)
    for text in ("I live in Oslo.", "My name is Ada."):
        engine.run_turn("a", [{"role": "user", "content": text}], sampling=Sampling(max_tokens=4))
    question = [{"role": "user", "content": "Where do I live?"}]
    recalled = engine.run_turn("a", question, memory="readonly", sampling=Sampling(max_tokens=24))
    state = engine.run_turn("a", question, memory="readonly", recall=Recall("none"), sampling=Sampling(max_tokens=24))
    assert recalled.text != state.text
    chosen = {each.id for each in recalled.facts.recalled}
    held = [each for each in engine.statements("a") if each.id in chosen]
    read = scan_statements(held, engine.new_state(), False)
    assert engine.greedy_replies([read], [question], max_tokens=24) == [recalled.text]
