"""Helpers for testing code that builds on this package.

`ScriptedEngine` is an engine with scripted replies; `oblige` is a script that calls the required tools.
`StoreConformance` is the test suite that every store must pass, `StatementConformance` the one for stores that keep
statements.
"""

from typing import TYPE_CHECKING

from deltamem_agents.lazy import names_of

if TYPE_CHECKING:
    from deltamem_agents.testing.conformance import AWKWARD_IDS, INVALID_IDS, StoreConformance, example_snapshot
    from deltamem_agents.testing.scripted import SELECTIVE, Asked, Scripted, ScriptedEngine, oblige
    from deltamem_agents.testing.statement_conformance import StatementConformance
else:
    __getattr__ = names_of(
        __name__,
        {
            "conformance": (
                "AWKWARD_IDS",
                "INVALID_IDS",
                "StoreConformance",
                "example_snapshot",
            ),
            "scripted": (
                "SELECTIVE",
                "Asked",
                "Scripted",
                "ScriptedEngine",
                "oblige",
            ),
            "statement_conformance": ("StatementConformance",),
        },
    )

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
