"""Shared code of the framework integrations: which agent a call uses, engines by name, and conversions of each
framework's roles, tools and options.

`use_agent` selects the agent for a block of code. `named_engines` replaces engines by model name in tests.
"""

from typing import TYPE_CHECKING

from deltamem_agents.lazy import names_of

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
else:
    __getattr__ = names_of(
        __name__,
        {
            "binding": (
                "EPHEMERAL",
                "AgentId",
                "Binding",
                "bound",
                "own_agent",
                "use_agent",
                "which_thread",
                "whose",
            ),
            "retrieval": ("remembered",),
            "shared_engines": (
                "DEFAULT_MODEL",
                "EngineSpec",
                "Serving",
                "named_engines",
                "read_store",
                "require_names",
                "shared_engine",
                "written_store",
            ),
        },
    )

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
