"""The code on the page docs/langchain-migration.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents.bridges import DEFAULT_MODEL, named_engines
from deltamem_agents.testing import SELECTIVE, ScriptedEngine

PAGE = Path(__file__).parents[4] / "docs" / "langchain-migration.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.is_file(), reason="the pages are not part of this distribution"),
    # LangChain deprecates RunnableWithMessageHistory and its history classes. The page is for code that uses them.
    pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning"),
]


def blocks() -> tuple[list[str], list[str]]:
    """The page's code: blocks that start with "# before", and all others."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    before = [block for block in found if block.startswith("# before")]
    return before, [block for block in found if block not in before]


def test_the_code_to_migrate_from_is_python() -> None:
    before, _ = blocks()
    assert len(before) == 3
    for block in before:
        compile(block, PAGE.name, "exec")


def test_the_code_to_migrate_to_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with named_engines({DEFAULT_MODEL: ScriptedEngine("Noted.", config=SELECTIVE, name=DEFAULT_MODEL)}):
        for block in blocks()[1]:
            exec(compile(block, PAGE.name, "exec"), names)
        told = [each.text for each in names["engine"].statements("ada") if each.role == "user"]
    assert told == [
        "My dog's name is Biscuit.",
        "What is my dog's name?",
        "I live in Oslo.",
        "Hi, I am Ada.",
        "My dog is called Biscuit.",
        "I moved to Porto.",
    ]
