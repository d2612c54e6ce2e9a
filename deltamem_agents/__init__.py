"""Versioned δ-mem memory for frozen language models: agents remember inside the model.

All public names are in this module. Importing it loads neither torch nor transformers: the module of a name is
imported when the name is first used.
"""

from typing import TYPE_CHECKING

from deltamem_agents.config import AdapterConfig
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
    Overloaded,
    OverloadedError,
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
from deltamem_agents.lazy import names_of
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

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
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
else:
    __getattr__ = names_of(
        __name__,
        {
            "engine": ("DeltaMemEngine",),
            "memory.attach": ("Adapter",),
            "memory.state": ("MemoryState",),
            "snapshots": (
                "FileStore",
                "InMemoryStore",
                "Snapshot",
                "SQLiteStore",
                "Statement",
                "StatementReceipt",
                "Store",
            ),
            "turns.migrating": ("Migration",),
            "turns.planning": ("WritePolicy",),
        },
    )

__version__ = "0.1.0"

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
    "Overloaded",
    "OverloadedError",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
