"""For tests of code that builds on this package.

`ScriptedEngine` is an engine whose replies are given; `oblige` makes replies that call whatever has to be called.
`StoreConformance` is the suite that every store passes, `StatementConformance` that of stores which keep statements.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltamem_agents.testing.conformance import AWKWARD_IDS, INVALID_IDS, StoreConformance, example_snapshot
    from deltamem_agents.testing.scripted import SELECTIVE, Asked, Scripted, ScriptedEngine, oblige
    from deltamem_agents.testing.statement_conformance import StatementConformance

_HOMES = {
    **dict.fromkeys(("AWKWARD_IDS", "INVALID_IDS", "StoreConformance", "example_snapshot"), "conformance"),
    **dict.fromkeys(("SELECTIVE", "Asked", "Scripted", "ScriptedEngine", "oblige"), "scripted"),
    "StatementConformance": "statement_conformance",
}

__all__ = [
    "AWKWARD_IDS",
    "INVALID_IDS",
    "SELECTIVE",
    "Asked",
    "Scripted",
    "ScriptedEngine",
    "StatementConformance",
    "StoreConformance",
    "example_snapshot",
    "oblige",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
