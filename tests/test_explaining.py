"""Laws of explaining a reply: it is the turn's own reply, and the reported effect of the memory is right."""

from __future__ import annotations

from typing import Any

import pytest

from deltamem_agents import AdapterConfig, DeltaMemEngine, Recall, Sampling
from deltamem_agents.testing import SELECTIVE
from tiny_engine import tiny_engine

ASKED = [{"role": "user", "content": "What is the name of my dog?"}]
SHORT = Sampling(max_tokens=6)
ADAPTERS = {"selective": SELECTIVE, "one state": None}


def told(config: AdapterConfig | None) -> DeltaMemEngine:
    engine = tiny_engine(config=config)
    for text in ("My dog is called Biscuit.", "I live in Oslo."):
        engine.absorb_into("a", [{"role": "user", "content": text}])
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("recall", [Recall(), Recall("all"), Recall("none"), Recall(window_tokens=200)])
@pytest.mark.parametrize("memory", ["readonly", "readwrite", "off"])
def test_the_explained_reply_is_the_turns_own(adapter: str, recall: Recall, memory: Any) -> None:
    options: Any = {"sampling": SHORT, "recall": recall, "memory": memory}
    turn = told(ADAPTERS[adapter]).run_turn("a", ASKED, **options)
    explained = told(ADAPTERS[adapter]).explain("a", ASKED, **options)
    assert explained.turn.text == turn.text
    assert [each.text for each in explained.recalled] == [each.text for each in turn.facts.recalled]
    assert "".join(each.text for each in explained.tokens) == turn.text
    assert (explained.turn.snapshot is None) == (memory != "readwrite")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_greedy_reply_without_changed_tokens_is_the_frozen_models(adapter: str) -> None:
    """And the two replies differ from the first changed token on."""
    engine = told(ADAPTERS[adapter])
    explained = engine.explain("a", ASKED, sampling=SHORT)
    frozen = engine.explain("a", ASKED, sampling=SHORT, memory="off")
    first = next((place for place, each in enumerate(explained.tokens) if each.changed), None)
    assert first is not None
    alike = [each.text for each in frozen.tokens[:first]]
    assert [each.text for each in explained.tokens[:first]] == alike
    assert explained.tokens[first].frozen != explained.tokens[first].text


@pytest.mark.parametrize("memory", ["off", "readonly"])
def test_if_no_memory_is_read_no_token_is_changed(memory: Any) -> None:
    engine = told(SELECTIVE)
    explained = engine.explain("a", ASKED, sampling=SHORT, memory=memory, recall=Recall("none"))
    assert explained.recalled == ()
    assert [each.kl for each in explained.tokens] == pytest.approx([0] * len(explained.tokens), abs=1e-6)
    assert not any(each.changed for each in explained.tokens)


def test_explaining_only_reads_unless_it_is_told_to_write() -> None:
    engine = told(SELECTIVE)
    head = engine.store.head("a")
    assert engine.explain("a", ASKED, sampling=SHORT).turn.facts.memory == "readonly"
    assert engine.store.head("a") == head
    written = engine.explain("a", ASKED, sampling=SHORT, memory="readwrite")
    assert engine.store.head("a") == written.turn.snapshot != head
    assert any(each.kl > 0 for each in written.tokens)
