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
        AgentForgottenError,
        AgentNotFound,
        AgentNotFoundError,
        AlreadyExists,
        AlreadyExistsError,
        ConfigError,
        DamagedSnapshot,
        DamagedSnapshotError,
        DeltaMemError,
        DownloadError,
        EngineClosedError,
        ForeignSnapshot,
        ForeignSnapshotError,
        ForkedProcessError,
        GrammarError,
        HistoryDiverged,
        HistoryDivergedError,
        InvalidAgentId,
        InvalidAgentIdError,
        MessageError,
        ModelFilesError,
        NewerFormat,
        NewerFormatError,
        ReplyCutOffError,
        SnapshotNotFoundError,
        StaleHead,
        StaleHeadError,
        StateError,
        StatementNotFoundError,
        StoreError,
        TagNotFoundError,
        TrainingDiverged,
        TrainingDivergedError,
        UnsupportedModelError,
        WindowError,
    )
    from deltamem_agents.memory.attach import Adapter
    from deltamem_agents.memory.state import MemoryState
    from deltamem_agents.snapshots import (
        FileStore,
        InMemoryStore,
        Snapshot,
        SQLiteStore,
        Statement,
        StatementReceipt,
        Store,
    )
    from deltamem_agents.turns.migrating import Migration
    from deltamem_agents.turns.planning import WritePolicy
    from deltamem_agents.types import (
        CallChunk,
        ExplainedToken,
        Explanation,
        Message,
        Recall,
        Recalled,
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
    "Adapter": "memory.attach",
    "AdapterConfig": "config",
    "DeltaMemEngine": "engine",
    "MemoryState": "memory.state",
    "Migration": "turns.migrating",
    "WritePolicy": "turns.planning",
    **dict.fromkeys(
        ("FileStore", "InMemoryStore", "Snapshot", "SQLiteStore", "Statement", "StatementReceipt", "Store"), "snapshots"
    ),
    **dict.fromkeys(
        (
            "CallChunk",
            "ExplainedToken",
            "Explanation",
            "Message",
            "Recall",
            "Recalled",
            "Sampling",
            "Score",
            "Tool",
            "ToolCall",
            "Turn",
            "TurnChunk",
            "TurnFacts",
            "Usage",
        ),
        "types",
    ),
    **dict.fromkeys(
        (
            "AdapterError",
            "AgentForgottenError",
            "AgentNotFound",
            "AgentNotFoundError",
            "AlreadyExists",
            "AlreadyExistsError",
            "ConfigError",
            "DamagedSnapshot",
            "DamagedSnapshotError",
            "DeltaMemError",
            "DownloadError",
            "EngineClosedError",
            "ForeignSnapshot",
            "ForeignSnapshotError",
            "ForkedProcessError",
            "GrammarError",
            "HistoryDiverged",
            "HistoryDivergedError",
            "InvalidAgentId",
            "InvalidAgentIdError",
            "MessageError",
            "ModelFilesError",
            "NewerFormat",
            "NewerFormatError",
            "SnapshotNotFoundError",
            "ReplyCutOffError",
            "StaleHead",
            "StaleHeadError",
            "StateError",
            "StatementNotFoundError",
            "StoreError",
            "TagNotFoundError",
            "TrainingDiverged",
            "TrainingDivergedError",
            "UnsupportedModelError",
            "WindowError",
        ),
        "errors",
    ),
}

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "AgentForgottenError",
    "AgentNotFound",
    "AgentNotFoundError",
    "AlreadyExists",
    "AlreadyExistsError",
    "CallChunk",
    "ConfigError",
    "DamagedSnapshot",
    "DamagedSnapshotError",
    "DeltaMemEngine",
    "DeltaMemError",
    "DownloadError",
    "EngineClosedError",
    "ExplainedToken",
    "Explanation",
    "FileStore",
    "ForeignSnapshot",
    "ForeignSnapshotError",
    "ForkedProcessError",
    "GrammarError",
    "HistoryDiverged",
    "HistoryDivergedError",
    "InMemoryStore",
    "InvalidAgentId",
    "InvalidAgentIdError",
    "MemoryState",
    "Message",
    "MessageError",
    "Migration",
    "ModelFilesError",
    "NewerFormat",
    "NewerFormatError",
    "Recall",
    "Recalled",
    "ReplyCutOffError",
    "SQLiteStore",
    "Sampling",
    "Score",
    "Snapshot",
    "SnapshotNotFoundError",
    "StaleHead",
    "StaleHeadError",
    "StateError",
    "Statement",
    "StatementNotFoundError",
    "StatementReceipt",
    "Store",
    "StoreError",
    "TagNotFoundError",
    "Tool",
    "ToolCall",
    "TrainingDiverged",
    "TrainingDivergedError",
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
