"""Laws of the compiled decoding step: replies and memories are the same as without it, in any thread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deltamem_agents import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.inference import compiled
from deltamem_agents.types import Message, Sampling
from test_folding import FOLDS, begun
from tiny_engine import byte_tokenizer, random_adapter, tiny_llama
from tiny_folders import Tiny, save_tiny

SHORT = Sampling(max_tokens=12, temperature=0)
TOLD, ASKED = [Message("user", "My dog is called Biscuit.")], [Message("user", "What is my dog called?")]


def compiles(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs a C++ compiler. One worker runs them all."""
    found = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    for mark in (
        pytest.mark.slow,
        pytest.mark.xdist_group("compiled"),
        pytest.mark.skipif(not found, reason="no C++ compiler here"),
    ):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def foldable(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return save_tiny(tmp_path_factory.mktemp("foldable"), FOLDS)


def opened(tiny: Tiny, **options: Any) -> DeltaMemEngine:
    return DeltaMemEngine.from_pretrained(
        tiny.model, adapter=tiny.adapter, store="memory:", dtype="float32", progress=False, **options
    )


@pytest.fixture(scope="module", params=[None, "int8"], ids=["packed", "int8"])
def engines(foldable: Tiny, request: pytest.FixtureRequest) -> Iterator[tuple[DeltaMemEngine, DeltaMemEngine]]:
    """An engine with a compiled step, and one without."""
    options = {"decode_weights": request.param, "kept_cache_bytes": 0}
    with opened(foldable, compile_decode=True, **options) as fast, opened(foldable, **options) as plain:
        yield fast, plain


@pytest.fixture(autouse=True)
def nothing_is_compiled_again(request: pytest.FixtureRequest) -> Iterator[None]:
    if "engines" in request.fixturenames:
        request.getfixturevalue("engines")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    yield
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@compiles
def test_a_pass_computes_the_same_logits_queries_and_inputs(engines: tuple[DeltaMemEngine, DeltaMemEngine]) -> None:
    runs = [begun(engine, folds=True) for engine in engines]
    assert runs[0].compiled is not None and runs[1].compiled is None
    for token in (5, 80, 200):
        found = []
        for run in runs:
            run._fold()
            assert run._folded is not None
            call = compiled.FoldedCall(run._folded, {}, {})
            logits = run.forward([token], call)
            assert call.queries and call.inputs
            found.append((logits, *call.queries.values(), *call.inputs.values()))
        for mine, expected in zip(*found, strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


@compiles
@pytest.mark.parametrize("memory", ["readwrite", "readonly", "off"])
def test_turns_are_the_same(engines: tuple[DeltaMemEngine, DeltaMemEngine], memory: Any) -> None:
    said = []
    for engine in engines:
        agent = f"asked with {memory}"
        engine.run_turn(agent, TOLD, sampling=SHORT)
        turns = [engine.run_turn(agent, asked, memory=memory, sampling=SHORT) for asked in (ASKED, TOLD, ASKED)]
        said.append([(turn.text, turn.facts.tokens_written) for turn in turns])
    assert said[0] == said[1]


@compiles
def test_turns_at_once_are_the_same_as_alone(engines: tuple[DeltaMemEngine, DeltaMemEngine]) -> None:
    fast, plain = engines

    def asked(engine: DeltaMemEngine, number: int) -> str:
        text = f"I am agent {number}. " * (number + 1)
        return engine.run_turn(None, [Message("user", text)], sampling=SHORT).text

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: asked(fast, number), range(4)))
    assert together == [asked(plain, number) for number in range(4)]


def test_a_failed_compilation_is_refused_and_leaves_the_model_free(
    foldable: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> object:
        raise RuntimeError("no C++ compiler found\nin a long message")

    monkeypatch.setattr(compiled.torch, "compile", lambda *_, **__: no_compiler)
    model = tiny_llama()
    parts = {"adapter": random_adapter(model, FOLDS), "store": "memory:"}
    with pytest.raises(
        ConfigError, match=r"no C\+\+ compiler found in a long message; it needs a C\+\+ compiler such as g\+\+"
    ):
        DeltaMemEngine.from_model(model, byte_tokenizer(), compile_decode=True, **parts)
    DeltaMemEngine.from_model(model, byte_tokenizer(), **parts).close()


def test_an_adapter_that_cannot_be_folded_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"leave compile_decode out"):
        opened(tiny, compile_decode=True)
