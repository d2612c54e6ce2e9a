"""Laws of the suite overview: what is counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from deltamem_agents.inference.collecting import queries_of
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.evaluation import overview
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.recall import unwatched
from deltamem_agents.lab.training.recall_material import CORPUS
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.turns.recalling import Recollection
from deltamem_agents.types import Message
from real_model import real_engine
from tiny_training import word_engine

WORDS = open_words(word_engine().tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 100])
def test_the_measures_count_what_is_read_and_said(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that repeats the statements it reads, which are at most `most`."""
    engine = word_engine(SELECTIVE)

    def recall_batch(memories: Sequence[AgentMemory], asked: Sequence[Any], *, whatever: bool = False) -> Any:
        held = [[(each, 1.0) for each in memory.statements][-most:] for memory in memories]
        return [Recollection(MemoryState(torch.zeros(1, 1, 1, 1, 1)), tuple(each)) for each in held]

    def recalled_replies(rests: Sequence[Recollection], asked: Sequence[Sequence[Message]], *, max_tokens: int) -> Any:
        assert all(messages[0].content in overview.OVERVIEWS and len(messages) == 1 for messages in asked)
        return [" ".join(each.text for each, _ in one.chosen) for one in rests]

    monkeypatch.setattr(engine, "recall_batch", recall_batch)
    monkeypatch.setattr(engine, "recalled_replies", recalled_replies)
    monkeypatch.setattr(engine, "greedy_replies", lambda states, asked, *, max_tokens: [""] * len(asked))
    for figure in overview.overview(engine, WORDS, Size(4, (1,)), unwatched):
        found = {name: each.value for name, each in figure.arms["memory"].items()}
        assert set(figure.arms) == {arm.value for arm in Arm}
        assert figure.arms["off"][overview.SAID].value == figure.arms["zero_state"][overview.SAID].value == 0
        if most == 1:
            assert found[overview.SEVERAL] == 0 and found[overview.SAID] < 0.5
        else:
            assert found == {overview.SAID: 1, overview.SEVERAL: 1, overview.READ: 1}


def short_texts(name: str) -> list[str]:
    found: list[str] = json.loads((CORPUS.parent / f"{name}.json").read_text(encoding="utf-8"))["validation"]
    return found


@pytest.mark.model
@pytest.mark.xdist_group("float32")
def test_greetings_and_thanks_do_not_ask_for_everything() -> None:
    engine = real_engine("float32")
    matcher, _ = engine.adapter.recall

    def asks_for_all(text: str) -> bool:
        return matcher.asks_for_all(
            queries_of(engine._speaker, engine._speaker.prompts.reading([Message("user", text)]))
        )

    everyday, overviews = short_texts("everyday"), short_texts("overview")
    assert len(everyday) == 30
    assert [text for text in everyday if asks_for_all(text)] == []
    assert [text for text in overviews if not asks_for_all(text)] == []
