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


class HistoryDiverged(DeltaMemError, ValueError):
    """Incoming messages contradict what the agent absorbed, and the policy is to refuse."""


class StoreError(DeltaMemError, OSError):
    """The store could not read or write; nothing was changed."""


class AgentNotFound(DeltaMemError, KeyError):
    """No such agent, snapshot or tag in the store."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AgentForgotten(AgentNotFound):
    """The agent was forgotten, or replaced by an import, while a turn was running; nothing of the turn was kept."""


class AlreadyExists(DeltaMemError, ValueError):
    """An agent or tag of that name is in the store; it was not overwritten."""


class InvalidAgentId(DeltaMemError, ValueError):
    """An agent id is empty, too long, or not text."""


class StaleHead(DeltaMemError, RuntimeError):
    """A compare-and-swap lost: the agent's newest snapshot is no longer the expected one."""


class DamagedSnapshot(DeltaMemError, ValueError):
    """Stored bytes do not match their address or do not parse; nothing was overwritten."""


class ForeignSnapshot(DeltaMemError, ValueError):
    """A snapshot was made by another model, tokenizer, adapter or geometry."""


class NewerFormat(DeltaMemError, ValueError):
    """A file was written by a later version of this package."""


class DownloadError(DeltaMemError, OSError):
    """A model asked for by name could not be fetched, or its checksum is wrong."""


class ModelFilesError(DeltaMemError, OSError):
    """A model's own files are missing or damaged, or its cache cannot be written."""


class GrammarError(DeltaMemError, ValueError):
    """A tool or response schema cannot be turned into a grammar."""


class ReplyCutOff(DeltaMemError, ValueError):
    """`max_tokens` was too few for the object that a reply has to be."""


class TrainingDiverged(DeltaMemError, ArithmeticError):
    """A training step's loss or gradient is not a finite number; the last save point is intact."""
