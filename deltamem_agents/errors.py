"""Every error this package raises, each also a built-in error a caller may already catch.

Messages say what was found, what was expected and what to do next.
"""


class DeltaMemError(Exception):
    """Base of every error raised on purpose by deltamem_agents."""


class ConfigError(DeltaMemError, ValueError):
    """A configuration value or key is not supported."""


class UnsupportedModelError(DeltaMemError, ValueError):
    """The model's family, layout or tokenizer cannot carry a memory."""


class AdapterError(DeltaMemError, ValueError):
    """An adapter file is missing, damaged, or made for another model."""


class StateError(DeltaMemError, ValueError):
    """A memory state does not fit the adapter or the batch it was given to."""


class MessageError(DeltaMemError, ValueError):
    """A message cannot be rendered: unknown role, or content that is not text."""


class WindowError(DeltaMemError, ValueError):
    """The newest messages alone do not fit the prompt budget."""


class HistoryDivergedError(DeltaMemError, ValueError):
    """Incoming messages contradict what the agent absorbed, and the policy is to refuse."""


class StoreError(DeltaMemError, OSError):
    """The store could not read or write; nothing was changed."""


class AgentNotFoundError(DeltaMemError, KeyError):
    """No such agent in the store; its subclasses: no such snapshot or tag."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class SnapshotNotFoundError(AgentNotFoundError):
    """The agent has no such snapshot, or several whose ids begin as given."""


class StatementNotFoundError(AgentNotFoundError):
    """The agent's memory holds no such statement, or several whose ids begin as given."""


class TagNotFoundError(AgentNotFoundError):
    """The agent has no such tag."""


class AgentForgottenError(AgentNotFoundError):
    """The agent was forgotten, or replaced by an import, while a turn was running; nothing of the turn was kept."""


class AlreadyExistsError(DeltaMemError, ValueError):
    """An agent or tag of that name is in the store; it was not overwritten."""


class InvalidAgentIdError(DeltaMemError, ValueError):
    """An agent id is empty, too long, or not text."""


class StaleHeadError(DeltaMemError, RuntimeError):
    """A compare-and-swap lost: the agent's newest snapshot is no longer the expected one."""


class DamagedSnapshotError(DeltaMemError, ValueError):
    """Stored bytes do not match their address or do not parse; nothing was overwritten."""


class ForeignSnapshotError(DeltaMemError, ValueError):
    """A snapshot was made by another model, tokenizer, adapter or geometry."""


class NewerFormatError(DeltaMemError, ValueError):
    """A file was written by a later version of this package."""


class DownloadError(DeltaMemError, OSError):
    """A model asked for by name could not be fetched, or its checksum is wrong."""


class ModelFilesError(DeltaMemError, OSError):
    """A model's own files are missing or damaged, or its cache cannot be written."""


class GrammarError(DeltaMemError, ValueError):
    """A tool or response schema cannot be turned into a grammar."""


class ReplyCutOffError(DeltaMemError, ValueError):
    """`max_tokens` was too few for the object that a reply has to be."""


class TrainingDivergedError(DeltaMemError, ArithmeticError):
    """A training step's loss or gradient is not a finite number; the last save point is intact."""


class EngineClosedError(DeltaMemError, RuntimeError):
    """The engine was closed, so the model does not carry its memory any more; nothing was changed."""


class OverloadedError(DeltaMemError, RuntimeError):
    """As many turns are under way and waiting as may be; nothing was changed."""


class ForkedProcessError(DeltaMemError, RuntimeError):
    """The engine was opened before this process was forked, and cannot compute here."""


# Earlier and shorter names, which are here to stay: code that catches them goes on working.
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
