"""The Markdown pages of the repository: their links, their anchors and the Python in them.

A Python block in README.md or docs/ runs in tests, all blocks of a page in order in one namespace. A comment on the
line before its fence says more of it:

    <!-- real model -->        also runs on the real model; comments after `print` are the expected output
    <!-- not run: reason -->   only its imports run
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents import DeltaMemEngine, InMemoryStore
from deltamem_agents.bridges import named_engines
from deltamem_agents.snapshots import open_store

ROOT = Path(__file__).parents[1]
_PLACES = ("*.md", "docs/**/*.md", "deltamem_agents/**/*.md", "integrations/*/*.md", "integrations/*/docs/**/*.md")
PAGES = {path.relative_to(ROOT).as_posix(): path for place in _PLACES for path in sorted(ROOT.glob(place))}
"""Every page by its path in the repository."""

REAL_MODEL, NOT_RUN = "real model", "not run: "
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```|^(?:    .*\n)+", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A Python block. `mark`: what the comment before it says, "" where there is none."""

    mark: str
    code: str


def blocks(page: str) -> list[Block]:
    found = _BLOCK.finditer(PAGES[page].read_text(encoding="utf-8"))
    return [Block(match["mark"] or "", match["code"]) for match in found]


def links(page: str) -> list[tuple[str, str]]:
    """The relative links outside code: the path, "" within the page itself, and the anchor, "" for none."""
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", PAGES[page].read_text(encoding="utf-8")))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    parts = [target.partition("#") for target in targets if "://" not in target and not target.startswith("mailto:")]
    return [(path, anchor) for path, _, anchor in parts]


@cache
def anchors(text: str) -> set[str]:
    """The anchors that a link to a page can name after #: ids, and headings as GitHub names them."""
    found = set(re.findall(r'id="([^"]+)"', text))
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    ):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        while slug in found:
            slug += "-1"
        found.add(slug)
    return found


def with_python() -> list[str]:
    """The pages whose Python runs here. The integrations' tests run their READMEs and the pages on migrating."""
    own = [page for page in PAGES if page == "README.md" or page.startswith("docs/")]
    return [page for page in own if blocks(page) and not page.endswith("-migration.md")]


@contextmanager
def opening(engine: DeltaMemEngine, folder: Path) -> Iterator[None]:
    """Inside, opening the embedded model gives this engine, over the store that is asked for; relative paths and the
    default store are in `folder`."""
    with pytest.MonkeyPatch.context() as patch, named_engines({"smollm2-135m-instruct": engine}):
        patch.chdir(folder)
        patch.setenv("DELTAMEM_HOME", str(folder))
        patch.setattr(DeltaMemEngine, "from_pretrained", lambda name, store=None, **_: over(engine, store))
        yield


def over(engine: DeltaMemEngine, store: Any) -> DeltaMemEngine:
    return engine.with_store(InMemoryStore() if store == "memory:" else open_store(store))


def run(block: Block, names: dict[str, Any], page: str) -> None:
    """Runs a block in the namespace `names`; only its imports if it is marked as not run."""
    code = ast.parse(block.code, page)
    if block.mark.startswith(NOT_RUN):
        code.body = [line for line in code.body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(compile(code, page, "exec"), names)


def promised(code: str) -> list[str]:
    """The outputs that comments after `print` calls promise."""
    return re.findall(r"^print\(.*\)  # (.+\.)$", code, re.MULTILINE)
