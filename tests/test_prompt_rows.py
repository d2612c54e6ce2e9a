"""Laws of prompt chunks in one forward pass: each row's logits, cache and memory call are as if it had run alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.inference.passes import Pass
from deltamem_agents.inference.prompt_rows import ALIKE, PromptChunk
from deltamem_agents.memory.attach import attach
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import KeysAndValues, layers_of
from test_scheduling import CONFIGS, ENGINES, begun, ids_of, words
from tiny_models import FAMILIES, random_adapter, random_ids, random_state, tiny_model

KINDS = ("off", "quiet", "reads", "applies")


class Unchanged:
    """A pointing that adds nothing, so that the calls collect queries."""

    def added(self, logits: Tensor, queries: Tensor, token: int) -> Tensor:
        return logits


@dataclass
class Asked:
    """A sequence with `before` cached tokens, whose next `tokens` tokens are a prompt. `kind`: how it uses memory."""

    engine: Any
    seed: int
    kind: str
    before: int
    tokens: int

    def run(self) -> Pass:
        run = begun(self.engine, self.kind, self.seed)
        run.pointing = Unchanged() if self.seed % 3 and self.kind != "off" else None
        if self.before:
            run.feed(words(ids_of(self.seed, self.before), writes=self.kind != "off" and self.seed % 2 == 0))
        return run

    def chunk(self) -> PromptChunk:
        prompt = words(ids_of(self.seed + 1, self.tokens), writes=self.kind != "off" and self.seed % 2 == 1)
        run = self.run()
        call = run._call(prompt, slice(0, self.tokens))
        assert call is None or isinstance(call, MemoryCall)
        return PromptChunk(run.model, prompt.ids, layers_of(run.cache) or (), call, speaks=self.seed % 5 > 0)


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def assert_same(found: PromptChunk, expected: PromptChunk) -> None:
    assert (found.logits is None) == (expected.logits is None) == (not found.speaks)
    if found.logits is not None:
        assert_close(found.logits, expected.logits)
    assert_close(list(found.layers), list(expected.layers))
    assert (found.call is None) == (expected.call is None)
    if found.call is not None and expected.call is not None:
        for name in ("matrices", "carries", "sums", "inputs", "queries"):
            assert_close(getattr(found.call, name), getattr(expected.call, name))
        assert_close(found.call.betas, expected.call.betas)
        assert_close(found.call.ratios, expected.call.ratios)
        written, wanted = (call.written or {} for call in (found.call, expected.call))
        assert written.keys() == wanted.keys()
        for slot, writes in written.items():
            assert_close(vars(writes), vars(wanted[slot]))


@given(
    name=st.sampled_from(sorted(CONFIGS)),
    rows=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 30), st.integers(1, 30), st.integers(0, 30)),
        min_size=2,
        max_size=5,
    ),
)
def test_prompts_run_together_equal_prompts_run_alone(name: str, rows: list[tuple[str, int, int, int]]) -> None:
    asked = [Asked(ENGINES[name], seed, kind, before, tokens) for kind, before, tokens, seed in rows]
    together, alone = [each.chunk() for each in asked], [each.chunk() for each in asked]
    assert len({each.kind for each in together}) == 1
    together[0].run(together)
    storages = []
    for found, expected in zip(together, alone, strict=True):
        expected.run([expected])
        assert_same(found, expected)
        storages.append({part.untyped_storage().data_ptr() for layer in found.layers for part in layer})
    # No cache keeps another agent's tokens alive.
    assert sum(map(len, storages)) == len(set().union(*storages))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_prompts_together(family: str) -> None:
    """Those with a sliding window too: its masks count from where the new tokens begin."""
    model = tiny_model(family, "eager")
    adapter = random_adapter(model)
    attach(model, adapter)
    pasts: list[KeysAndValues] = []
    for number, length in enumerate((0, 3, 9)):
        before = PromptChunk(model, random_ids(max(length, 1), seed=number).tolist(), (), None, speaks=False)
        before.run([before])
        pasts.append(before.layers if length else ())

    def chunks() -> list[PromptChunk]:
        return [
            PromptChunk(
                model,
                random_ids(tokens, seed=9 + number).tolist(),
                past,
                MemoryCall(random_state(adapter, seed=number), torch.ones(1, tokens, dtype=torch.bool)),
                speaks=True,
            )
            for number, (past, tokens) in enumerate(zip(pasts, (4, 11, 2), strict=True))
        ]

    together, alone = chunks(), chunks()
    together[0].run(together)
    for found, expected in zip(together, alone, strict=True):
        expected.run([expected])
        assert_same(found, expected)


def test_a_failing_pass_leaves_no_measures_behind() -> None:
    engine = ENGINES["folded"]
    broken, sound = (Asked(engine, seed, "applies", 0, 4).chunk() for seed in (1, 3))
    broken.ids = (10**6, *broken.ids[1:])
    with pytest.raises(IndexError):
        sound.run([sound, broken])
    assert sound.call is not None and not sound.call.betas and not sound.call.ratios
    sound.run([sound])
    expected = Asked(engine, 3, "applies", 0, 4).chunk()
    expected.run([expected])
    assert_same(sound, expected)


def test_long_caches_do_not_share_a_pass_with_short_ones() -> None:
    """The short rows would be padded to the length of the longest."""
    model, part = ENGINES["folded"].model, torch.zeros(1, 1, 1, 1)
    kinds = [
        PromptChunk(model, (1,), [(part.expand(1, 1, count, 1),) * 2], None, speaks=True).kind
        for count in (1, ALIKE - 1, ALIKE, 2 * ALIKE - 1, 2 * ALIKE, 4 * ALIKE - 1, 4 * ALIKE)
    ]
    assert [kinds.index(kind) for kind in kinds] == [0, 0, 2, 2, 4, 4, 6]
