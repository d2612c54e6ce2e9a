"""LangChain on a local model that remembers in its own state.

`ChatDeltaMem` is the chat model, `use_agent` says whose memory a block of code uses, and
`DeltaMemMiddleware` keeps the memory inside LangGraph's checkpoints (it needs the extra "agents").
`DeltaMemRetriever` finds what an agent remembers of a query.
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
    # The chat model alone needs neither langchain nor langgraph.
    if name == "DeltaMemMiddleware":
        from langchain_deltamem.middleware import DeltaMemMiddleware

        return DeltaMemMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
