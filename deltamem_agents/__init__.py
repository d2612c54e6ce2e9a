"""Agents that remember inside the model: versioned δ-mem memory for frozen language models.

Everything public is a name of this module. Importing it loads neither torch nor transformers; a name's own
module is imported when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltamem_agents.config import AdapterConfig
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.errors import (
        AdapterError,
        AgentNotFound,
        AlreadyExists,
        ConfigError,
        DamagedSnapshot,
        DeltaMemError,
        DownloadError,
        ForeignSnapshot,
        GrammarError,
        HistoryDiverged,
        InvalidAgentId,
        MessageError,
        ModelFilesError,
        NewerFormat,
        ReplyCutOff,
        StaleHead,
        StateError,
        StoreError,
        TrainingDiverged,
        UnsupportedModelError,
        WindowError,
    )
    from deltamem_agents.memory.state import MemoryState
    from deltamem_agents.snapshots import FileStore, InMemoryStore, Snapshot, SQLiteStore, Store
    from deltamem_agents.turns.planning import WritePolicy
    from deltamem_agents.types import (
        CallChunk,
        Message,
        Sampling,
        Score,
        Tool,
        ToolCall,
        Turn,
        TurnChunk,
        TurnFacts,
        Usage,
    )

__version__ = "0.1.0"

_HOMES = {
    "AdapterConfig": "config",
    "DeltaMemEngine": "engine",
    "MemoryState": "memory.state",
    "WritePolicy": "turns.planning",
    **dict.fromkeys(("FileStore", "InMemoryStore", "Snapshot", "SQLiteStore", "Store"), "snapshots"),
    **dict.fromkeys(
        ("CallChunk", "Message", "Sampling", "Score", "Tool", "ToolCall", "Turn", "TurnChunk", "TurnFacts", "Usage"),
        "types",
    ),
    **dict.fromkeys(
        (
            "AdapterError",
            "AgentNotFound",
            "AlreadyExists",
            "ConfigError",
            "DamagedSnapshot",
            "DeltaMemError",
            "DownloadError",
            "ForeignSnapshot",
            "GrammarError",
            "HistoryDiverged",
            "InvalidAgentId",
            "MessageError",
            "ModelFilesError",
            "NewerFormat",
            "ReplyCutOff",
            "StaleHead",
            "StateError",
            "StoreError",
            "TrainingDiverged",
            "UnsupportedModelError",
            "WindowError",
        ),
        "errors",
    ),
}

__all__ = [
    "AdapterConfig",
    "AdapterError",
    "AgentNotFound",
    "AlreadyExists",
    "CallChunk",
    "ConfigError",
    "DamagedSnapshot",
    "DeltaMemEngine",
    "DeltaMemError",
    "DownloadError",
    "FileStore",
    "ForeignSnapshot",
    "GrammarError",
    "HistoryDiverged",
    "InMemoryStore",
    "InvalidAgentId",
    "MemoryState",
    "Message",
    "MessageError",
    "ModelFilesError",
    "NewerFormat",
    "ReplyCutOff",
    "SQLiteStore",
    "Sampling",
    "Score",
    "Snapshot",
    "StaleHead",
    "StateError",
    "Store",
    "StoreError",
    "Tool",
    "ToolCall",
    "TrainingDiverged",
    "Turn",
    "TurnChunk",
    "TurnFacts",
    "UnsupportedModelError",
    "Usage",
    "WindowError",
    "WritePolicy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
