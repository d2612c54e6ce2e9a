"""LangChain integration of δ-mem: a local chat model that remembers in its own state.

`ChatDeltaMem` is the chat model. `use_agent` selects the agent for a block of code. `DeltaMemMiddleware` keeps the
memory in LangGraph's checkpoints (it needs the extra "agents"). `DeltaMemRetriever` searches an agent's memory.
"""

from typing import TYPE_CHECKING, Any

from langchain_deltamem.chat_models import ChatDeltaMem
from langchain_deltamem.errors import ContextOverflow, WindowOverflowError
from langchain_deltamem.identity import use_agent
from langchain_deltamem.retriever import DeltaMemRetriever

if TYPE_CHECKING:
    from langchain_deltamem.middleware import DeltaMemMiddleware

__version__ = "0.1.0"
__all__ = [
    "ChatDeltaMem",
    "ContextOverflow",
    "DeltaMemMiddleware",
    "DeltaMemRetriever",
    "WindowOverflowError",
    "use_agent",
]


def __getattr__(name: str) -> Any:
    # Imported lazily, because the chat model alone needs neither langchain nor langgraph.
    if name == "DeltaMemMiddleware":
        from langchain_deltamem.middleware import DeltaMemMiddleware

        return DeltaMemMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
