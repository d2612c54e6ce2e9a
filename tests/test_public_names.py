"""The public names are stable: this list changes only on purpose, with the changelog."""

import importlib

import deltamem_agents

PROMISED = [
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "AgentForgottenError",
    "AgentNotFoundError",
    "AlreadyExistsError",
    "CallChunk",
    "ConfigError",
    "DamagedSnapshotError",
    "DeltaMemEngine",
    "DeltaMemError",
    "DownloadError",
    "EngineClosedError",
    "ExplainedToken",
    "Explanation",
    "FileStore",
    "ForeignSnapshotError",
    "ForkedProcessError",
    "GrammarError",
    "HistoryDivergedError",
    "InMemoryStore",
    "InvalidAgentIdError",
    "MemoryState",
    "Message",
    "MessageError",
    "Migration",
    "ModelFilesError",
    "NewerFormatError",
    "OverloadedError",
    "Recall",
    "Recalled",
    "ReplyCutOffError",
    "SQLiteStore",
    "Sampling",
    "Score",
    "Snapshot",
    "SnapshotNotFoundError",
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
    "TrainingDivergedError",
    "Turn",
    "TurnChunk",
    "TurnFacts",
    "UnsupportedModelError",
    "Usage",
    "WindowError",
    "WritePolicy",
]

# Names of errors in version 0.1, before all of them ended in "Error", with the current names.
EARLIER = {
    "AgentNotFound": "AgentNotFoundError",
    "AlreadyExists": "AlreadyExistsError",
    "DamagedSnapshot": "DamagedSnapshotError",
    "ForeignSnapshot": "ForeignSnapshotError",
    "HistoryDiverged": "HistoryDivergedError",
    "InvalidAgentId": "InvalidAgentIdError",
    "NewerFormat": "NewerFormatError",
    "Overloaded": "OverloadedError",
    "StaleHead": "StaleHeadError",
    "TrainingDiverged": "TrainingDivergedError",
}


def test_public_names_are_the_documented_ones() -> None:
    assert sorted(deltamem_agents.__all__) == sorted([*PROMISED, *EARLIER])


def test_errors_end_in_error_and_their_earlier_names_are_aliases() -> None:
    errors = [
        name
        for name in PROMISED
        if isinstance(found := getattr(deltamem_agents, name), type) and issubclass(found, Exception)
    ]
    assert all(name.endswith("Error") for name in errors)
    for earlier, name in EARLIER.items():
        assert getattr(deltamem_agents, earlier) is getattr(deltamem_agents, name)


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
