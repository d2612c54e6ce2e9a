"""The code on the page docs/llamaindex-migration.md runs."""

from __future__ import annotations

import inspect
import json
import re
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage

from deltamem_agents.bridges import DEFAULT_MODEL, named_engines
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from llama_index.llms.deltamem.agents import MEMORIES_KEY

PAGE = Path(__file__).parents[4] / "docs" / "llamaindex-migration.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages are not part of this distribution")


def blocks() -> tuple[list[str], list[str]]:
    """The page's code: blocks that start with "# before", and all others."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    before = [block for block in found if block.startswith("# before")]
    return before, [block for block in found if block not in before]


def test_the_code_to_migrate_from_is_python() -> None:
    before, _ = blocks()
    assert len(before) == 3
    for block in before:
        compile(block, PAGE.name, "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def test_the_code_to_migrate_to_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Written by hand: with some versions of pydantic, SimpleChatStore.persist raises an error of its own.
    old = {"store": {"eve": [ChatMessage("My cat is called Clover.").model_dump(mode="json")]}}
    Path("chats.json").write_text(json.dumps(old), encoding="utf-8")
    names: dict[str, Any] = {}
    with named_engines({DEFAULT_MODEL: ScriptedEngine("Noted.", config=SELECTIVE, name=DEFAULT_MODEL)}):
        for block in blocks()[1]:
            result = eval(compile(block, PAGE.name, "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.isawaitable(result):
                await result
        engine = names["llm"].open_engine("ada")
        told = [each.text for each in engine.statements("ada") if each.role == "user"]
        assert [each.text for each in engine.statements("eve")] == ["My cat is called Clover."]
    # What the buffer of a running conversation still shows is not flushed, and so is not in the memory.
    assert told == ["My dog's name is Biscuit.", "What is my dog called?", "My dog's name is Biscuit."]
    assert (await names["ctx"].store.get(MEMORIES_KEY)).keys() == {"Agent"}
