"""Laws of the suite overview: what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.evaluation import overview
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import Size
from deltamem_agents.lab.evaluation.recall import unwatched
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.testing import SELECTIVE
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.turns.recalling import Recollection
from deltamem_agents.types import Message
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
