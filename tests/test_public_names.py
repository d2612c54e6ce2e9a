"""The public names are a promise: this list changes only on purpose, with the changelog."""

import importlib

import deltamem_agents

PROMISED = [
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


def test_public_names_are_those_promised() -> None:
    assert sorted(deltamem_agents.__all__) == sorted(PROMISED)


def test_every_public_name_leads_to_its_object() -> None:
    for name in PROMISED:
        found = getattr(deltamem_agents, name)
        assert found.__name__ == name
        assert getattr(importlib.import_module(found.__module__), name) is found


def test_every_error_is_a_deltamem_error_and_a_builtin_one() -> None:
    errors = [getattr(deltamem_agents, name) for name in PROMISED]
    errors = [error for error in errors if isinstance(error, type) and issubclass(error, Exception)]
    assert len(errors) > 10
    for error in errors:
        assert issubclass(error, deltamem_agents.DeltaMemError)
        assert error is deltamem_agents.DeltaMemError or len(error.__mro__) > 5, f"{error} has no built-in base"
