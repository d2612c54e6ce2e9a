"""All errors of this package. Each is also a built-in exception, so that existing `except` clauses catch it.

Every message says what was found, what was expected and what to do next.
"""


class DeltaMemError(Exception):
    """Base class of all errors that deltamem_agents raises on purpose."""


class ConfigError(DeltaMemError, ValueError):
    """A configuration value or key is not supported."""


class UnsupportedModelError(DeltaMemError, ValueError):
    """The model's family, layout or tokenizer is not supported."""


class AdapterError(DeltaMemError, ValueError):
    """An adapter file is missing, damaged, or made for another model."""


class StateError(DeltaMemError, ValueError):
    """A memory state does not fit the adapter or the batch it was given to."""


class MessageError(DeltaMemError, ValueError):
    """A message cannot be rendered: unknown role, or content that is not text."""


class WindowError(DeltaMemError, ValueError):
    """The newest messages alone do not fit into the window (the prompt's token budget)."""


class HistoryDivergedError(DeltaMemError, ValueError):
    """The messages contradict what the agent absorbed, and the policy is to raise an error."""


class StoreError(DeltaMemError, OSError):
    """The store could not be read or written; nothing was changed."""


class AgentNotFoundError(DeltaMemError, KeyError):
    """The store has no such agent. Subclasses: no such snapshot, statement or tag, or a forgotten agent."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class SnapshotNotFoundError(AgentNotFoundError):
    """The agent has no such snapshot, or several whose ids begin with the given digits."""


class StatementNotFoundError(AgentNotFoundError):
    """The agent's memory has no such statement, or several whose ids begin with the given digits."""


class TagNotFoundError(AgentNotFoundError):
    """The agent has no such tag."""


class AgentForgottenError(AgentNotFoundError):
    """The agent was forgotten, or replaced by an import, during a turn; nothing of the turn was stored."""


class AlreadyExistsError(DeltaMemError, ValueError):
    """The store already has an agent or tag of that name; it was not overwritten."""


class InvalidAgentIdError(DeltaMemError, ValueError):
    """An agent id is empty, blank, too long, or not text."""


class StaleHeadError(DeltaMemError, RuntimeError):
    """A compare-and-swap failed: the agent's newest snapshot is no longer the expected one."""


class DamagedSnapshotError(DeltaMemError, ValueError):
    """Stored bytes do not match their address or do not parse; nothing was overwritten."""


class ForeignSnapshotError(DeltaMemError, ValueError):
    """A snapshot was made by another model, tokenizer, adapter or geometry."""


class NewerFormatError(DeltaMemError, ValueError):
    """A file was written by a later version of this package."""


class DownloadError(DeltaMemError, OSError):
    """A model requested by name could not be downloaded, or its checksum is wrong."""


class ModelFilesError(DeltaMemError, OSError):
    """A model's own files are missing or damaged, or its cache cannot be written."""


class GrammarError(DeltaMemError, ValueError):
    """A tool or response schema cannot be turned into a grammar."""


class ReplyCutOffError(DeltaMemError, ValueError):
    """The reply was truncated by `max_tokens`, so it is not a complete JSON object."""


class TrainingDivergedError(DeltaMemError, ArithmeticError):
    """The loss or gradient of a training step is not finite; the last save point is intact."""


class EngineClosedError(DeltaMemError, RuntimeError):
    """The engine was closed and its memory detached from the model; nothing was changed."""


class OverloadedError(DeltaMemError, RuntimeError):
    """The maximum number of turns are running and waiting; nothing was changed."""


class ForkedProcessError(DeltaMemError, RuntimeError):
    """The engine was opened before this process was forked, and cannot compute here."""


# Earlier, shorter names. They stay, so that code that catches them keeps working.
AgentNotFound = AgentNotFoundError
AlreadyExists = AlreadyExistsError
DamagedSnapshot = DamagedSnapshotError
ForeignSnapshot = ForeignSnapshotError
HistoryDiverged = HistoryDivergedError
InvalidAgentId = InvalidAgentIdError
NewerFormat = NewerFormatError
Overloaded = OverloadedError
StaleHead = StaleHeadError
TrainingDiverged = TrainingDivergedError
