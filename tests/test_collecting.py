"""Laws of collecting writes: they do not depend on chunks, and scanning them gives the absorbed state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference import collecting
from deltamem_agents.inference.collecting import queries_of, written_by
from deltamem_agents.inference.passes import Prompt
from deltamem_agents.memory.writes import scan_writes
from deltamem_agents.types import as_messages
from tiny_engine import tiny_engine

CONFIG = AdapterConfig(
    rank=4, key_shift=True, gate_floor=0.6, state_update_mode="no_lambda", rankwise_gates=False, read_scope="replies"
)
TOLD = as_messages(
    [
        {"role": "user", "content": "My boat is called Tuppen and lies in Florø."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "The impeller is 09-824P."},
    ]
)


def told(engine: DeltaMemEngine) -> Prompt:
    (prompt,) = engine._prompts.segments(TOLD, None)
    return prompt


def test_the_scan_of_a_messages_writes_equals_the_absorbed_state() -> None:
    engine = tiny_engine(config=CONFIG)
    found = written_by(engine._speaker, told(engine))
    assert set(found) <= {0, 1, 2} and 0 in found
    users = replace(engine._prompts, roles=("user",))
    (prompt,) = users.segments(TOLD[:1], None)
    state = engine.absorb(engine.new_state(), TOLD[:1])
    again = scan_writes(CONFIG, written_by(engine._speaker, prompt)[0].writes)
    torch.testing.assert_close(again.matrices, state.matrices, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_writes_and_queries_do_not_depend_on_the_chunk_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(config=CONFIG)
    prompt = told(engine)
    whole, asked = written_by(engine._speaker, prompt), queries_of(engine._speaker, prompt)
    monkeypatch.setattr(collecting, "PREFILL_CHUNK", chunk)
    parts = written_by(engine._speaker, prompt)
    assert parts.keys() == whole.keys()
    for owner, piece in whole.items():
        assert (parts[owner].tokens, parts[owner].written) == (piece.tokens, piece.written)
        for name in ("keys", "values", "write", "erase"):
            torch.testing.assert_close(
                getattr(parts[owner].writes, name), getattr(piece.writes, name), atol=1e-5, rtol=1e-4
            )
    torch.testing.assert_close(queries_of(engine._speaker, prompt), asked, atol=1e-5, rtol=1e-4)


def test_each_written_token_has_writes_and_each_reading_token_has_queries() -> None:
    engine = tiny_engine(config=CONFIG)
    found = written_by(engine._speaker, told(engine))
    assert all(len(piece.writes) == len(piece.written) > 0 for piece in found.values())
    layers, heads, _ = found[0].writes.geometry
    prompt = told(engine)
    assert queries_of(engine._speaker, prompt).shape == (sum(prompt.reads), layers, heads, CONFIG.rank)
