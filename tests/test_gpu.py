"""Laws of the engine on a GPU. Those that hold on any device run on the CPU too, which shows that the tests work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from deltamem_agents import DeltaMemEngine, InMemoryStore, Store
from deltamem_agents.config import AdapterConfig
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import empty_cache, last_place, with_cache
from deltamem_agents.types import Message, Sampling
from tiny_engine import byte_tokenizer, random_adapter, tiny_llama

SHORT = Sampling(max_tokens=8, temperature=0)
TOLD, ASKED = [Message("user", "My dog is called Biscuit.")], [Message("user", "What is my dog called?")]
GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
)
on_any_device = pytest.mark.parametrize("device", ["cpu", GPU])
on_a_gpu = pytest.mark.parametrize("device", [GPU])


def opened(device: str, store: Store | None = None, config: AdapterConfig | None = None) -> DeltaMemEngine:
    model = tiny_llama()
    adapter = random_adapter(model, config)
    return DeltaMemEngine.from_model(
        model.to(device), byte_tokenizer(), adapter=adapter, store=store or InMemoryStore(), name="tiny"
    )


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """Fails where the CPU waits for the GPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_any_device
def test_a_memory_written_on_one_device_opens_on_the_other(device: str) -> None:
    for first, then in ((device, "cpu"), ("cpu", device)):
        store = InMemoryStore()
        with opened(first, store) as engine:
            engine.run_turn("ada", TOLD, sampling=SHORT)
            said = engine.run_turn("ada", ASKED, sampling=SHORT, memory="readonly")
        with opened(then, store) as engine:
            again = engine.run_turn("ada", ASKED, sampling=SHORT, memory="readonly")
            assert [each.text for each in again.facts.recalled] == [each.text for each in said.facts.recalled]
            assert again.facts.tokens_read == said.facts.tokens_read


@on_any_device
def test_a_state_is_the_same_on_every_device(device: str) -> None:
    states = []
    for place in ("cpu", device):
        with opened(place) as engine:
            (state,) = engine.absorb_batch([engine.new_state()], [TOLD])
            states.append(state.matrices.cpu())
    assert states[0].any()
    torch.testing.assert_close(states[1], states[0], atol=1e-4, rtol=1e-4)


@on_any_device
def test_turns_at_once_are_the_turns_alone(device: str) -> None:
    agents = [f"agent {number}" for number in range(4)]

    def asked(engine: DeltaMemEngine, agent: str) -> str:
        return engine.run_turn(agent, [Message("user", f"I am {agent}.")], sampling=SHORT).text

    with opened(device) as engine:
        alone = [asked(engine, agent) for agent in agents]
    with opened(device) as engine, ThreadPoolExecutor(len(agents)) as pool:
        assert list(pool.map(lambda agent: asked(engine, agent), agents)) == alone


def one_token(engine: DeltaMemEngine, device: str) -> tuple[dict[str, Tensor], MemoryCall]:
    """A model's inputs for one token, and a call that reads a state."""
    (state,) = engine.absorb_batch([engine.new_state()], [TOLD])
    true = torch.ones(1, 1, dtype=torch.bool, device=device)
    return {"input_ids": torch.tensor([[7]], device=device)}, MemoryCall(
        state, true, replies=true, queries={}, later=True
    )


@on_any_device
def test_a_pass_that_reads_does_not_wait_for_the_device(device: str) -> None:
    with opened(device) as engine, torch.no_grad():
        inputs, call = one_token(engine, device)
        cache, place = empty_cache(), last_place(engine.model.device)
        for number in range(3):
            # The first passes allocate and choose kernels, which may wait.
            with no_synchronisation(device if number == 2 else "cpu"):
                engine.model(**inputs, logits_to_keep=place, **with_cache(engine.model, cache), **{CALL_KEYWORD: call})
        assert len(call.queries or {}) == len(call.matrices)


@on_a_gpu
def test_a_pass_that_reads_can_be_captured_as_a_graph(device: str) -> None:
    with opened(device) as engine, torch.no_grad():
        inputs, call = one_token(engine, device)
        expected = engine.model(**inputs, use_cache=False, **{CALL_KEYWORD: call}).logits.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            engine.model(**inputs, use_cache=False, **{CALL_KEYWORD: call})
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = engine.model(**inputs, use_cache=False, **{CALL_KEYWORD: call}).logits
        graph.replay()
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
