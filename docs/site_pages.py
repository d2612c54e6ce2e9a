"""What the site shows beside docs/: README, model cards and the integrations' pages, with links to fit.

A file keeps its path in the repository, but for README.md, which is the first page, and for what is in docs/, which is
the site's root. A link to a file that the site does not have, such as a module, becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "deltamem_agents/adapters/smollm2-135m-instruct/**/*.md",
    "integrations/*/*.md",
    "integrations/*/docs/*.md",
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            text = path.read_text(encoding="utf-8")
            files.append(File.generated(config, site_path(name), content=text))
    return files


def site_path(name: str) -> str:
    """Where a file of the repository stands in the site."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def repository_path(uri: str) -> str:
    """The file of the repository that a page of the site is."""
    return "README.md" if uri == "index.md" else uri if (ROOT / uri).is_file() else f"docs/{uri}"


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    here = repository_path(page.file.src_uri)

    def placed(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path:
            return link[0]
        found = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(here), path)))
        if files.get_file_from_path(found) is None:
            return text
        found = posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({found}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(placed, markdown)
