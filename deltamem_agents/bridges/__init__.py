"""What every framework integration shares: whose memory a call uses, engines by name, and how each
framework names roles, tools and options.

`use_agent` says whose memory a block of code uses; `named_engines` puts engines behind model names in tests.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltamem_agents.bridges.binding import (
        EPHEMERAL,
        AgentId,
        Binding,
        bound,
        own_agent,
        use_agent,
        which_thread,
        whose,
    )
    from deltamem_agents.bridges.retrieval import remembered
    from deltamem_agents.bridges.shared_engines import (
        DEFAULT_MODEL,
        EngineSpec,
        Serving,
        named_engines,
        read_store,
        require_names,
        shared_engine,
        written_store,
    )

_HOMES = {
    "remembered": "retrieval",
    **dict.fromkeys(
        ("EPHEMERAL", "AgentId", "Binding", "bound", "own_agent", "use_agent", "which_thread", "whose"), "binding"
    ),
    **dict.fromkeys(
        (
            "DEFAULT_MODEL",
            "EngineSpec",
            "Serving",
            "named_engines",
            "read_store",
            "require_names",
            "shared_engine",
            "written_store",
        ),
        "shared_engines",
    ),
}

__all__ = [
    "DEFAULT_MODEL",
    "EPHEMERAL",
    "AgentId",
    "Binding",
    "EngineSpec",
    "Serving",
    "bound",
    "named_engines",
    "own_agent",
    "read_store",
    "remembered",
    "require_names",
    "shared_engine",
    "use_agent",
    "which_thread",
    "whose",
    "written_store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
