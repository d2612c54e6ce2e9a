"""constraints.txt pins everything that `make setup` installs, so that the tested versions can be installed again."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# Its builds for other hardware bring libraries of their own, each in the version that the build names.
LEFT_TO_ITSELF = {"torch"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def own_projects() -> dict[str, tuple[dict[str, Any], list[str]]]:
    """The packages of this repository by name, each with all extras that the Makefile installs it with."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for folder, extras in re.findall(r"-e '([^'\[]+)\[([^\]]+)\]'", makefile):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        _, others = found.get(project["name"], (project, []))
        found[project["name"]] = project, [*others, *extras.split(",")]
    return found


def test_every_package_that_the_setup_installs_is_pinned_to_a_version_that_fits() -> None:
    pinned, own = pins(), own_projects()
    assert len(own) == 3
    waiting = [Requirement(f"{name}[{','.join(extras)}]") for name, (_, extras) in own.items()]
    seen, wrong = set(), []
    while waiting:
        need = waiting.pop()
        name, extras = canonicalize_name(need.name), frozenset(need.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name in own:
            project, _ = own[name]
            lines = [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]
            waiting += map(Requirement, lines)
            continue
        if name not in pinned or not need.specifier.contains(pinned[name], prereleases=True):
            wrong.append(f"{need}: {pinned.get(name, 'not pinned')}")
        if name not in LEFT_TO_ITSELF:
            waiting += required_by(name, need.extras)
    assert not wrong


def required_by(name: str, extras: set[str]) -> list[Requirement]:
    """The requirements of an installed package on this machine; empty if it is not installed."""
    try:
        needs = [Requirement(line) for line in requires(name) or ()]
    except PackageNotFoundError:
        return []
    asked = [{"extra": extra} for extra in (*extras, "")]
    return [need for need in needs if need.marker is None or any(need.marker.evaluate(extra) for extra in asked)]
