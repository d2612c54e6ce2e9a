"""The engine's errors combined with LangChain's model errors, so that either library's class catches them.

LangChain's retries use the class to decide whether trying again may help. For an image in a message it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    OutputParserException,
)

from deltamem_agents import (
    AdapterError,
    ConfigError,
    DamagedSnapshotError,
    DeltaMemError,
    DownloadError,
    ForeignSnapshotError,
    GrammarError,
    HistoryDivergedError,
    InvalidAgentIdError,
    MessageError,
    ModelFilesError,
    ReplyCutOffError,
    StaleHeadError,
    StoreError,
    UnsupportedModelError,
    WindowError,
)
from deltamem_agents.errors import AgentForgottenError


class WindowOverflowError(ContextOverflowError, WindowError):
    """The newest messages alone do not fit into the window."""


class InvalidOptionError(ModelInvalidRequestError, ConfigError):
    """An option of the call is not supported."""


class InvalidMessageError(ModelInvalidRequestError, MessageError):
    """A message cannot be converted to text."""


class InvalidSchemaError(ModelInvalidRequestError, GrammarError):
    """A tool's or a reply's schema cannot be turned into a grammar."""


class InvalidAgentError(ModelInvalidRequestError, InvalidAgentIdError):
    """An agent id is too long, or not valid text."""


class ForgottenError(ModelInvalidRequestError, AgentForgottenError):
    """The agent was forgotten while the turn was running, and stays forgotten."""


class DivergedError(ModelInvalidRequestError, HistoryDivergedError):
    """The messages contradict what the agent absorbed, and the policy is to raise an error."""


class ForeignMemoryError(ModelInvalidRequestError, ForeignSnapshotError):
    """The agent's memory was made by another model or adapter."""


class DamagedMemoryError(ModelError, DamagedSnapshotError):
    """The agent's memory in the store is damaged."""


class ModelUnsupportedError(ModelNotFoundError, UnsupportedModelError):
    """The model is not supported."""


class NoAdapterError(ModelNotFoundError, AdapterError):
    """There is no adapter for the model, or the adapter does not fit it."""


class NoModelError(ModelNotFoundError, ModelFilesError):
    """The model's files are missing or damaged."""


class NotFetchedError(ModelNotFoundError, DownloadError):
    """The model could not be downloaded."""


class StoreFailedError(ModelAPIError, StoreError):
    """The store could not be read or written. Nothing was changed, and trying again may help."""


class ContendedError(ModelAPIError, StaleHeadError):
    """Other writers kept changing this agent's memory. Nothing was changed, and trying again may help."""


class CutOffError(OutputParserException, ReplyCutOffError):
    """The reply was truncated by `max_tokens`, so it is not a complete object."""


_KINDS: Mapping[type, type[ModelError]] = {
    kind.__bases__[1]: kind
    for kind in (
        WindowOverflowError,
        InvalidOptionError,
        InvalidMessageError,
        InvalidSchemaError,
        InvalidAgentError,
        ForgottenError,
        DivergedError,
        ForeignMemoryError,
        DamagedMemoryError,
        ModelUnsupportedError,
        NoAdapterError,
        NoModelError,
        NotFetchedError,
        StoreFailedError,
        ContendedError,
    )
}


@contextmanager
def as_model_errors() -> Iterator[None]:
    """Inside this block, the engine's errors are raised as the matching classes of this module, if there is one."""
    try:
        yield
    except DeltaMemError as error:
        kind = next((_KINDS[base] for base in type(error).__mro__ if base in _KINDS), None)
        if kind is None:
            raise
        raise kind(str(error)) from error


# The names of version 0.1. They stay, so that code that catches them keeps working.
ContextOverflow = WindowOverflowError
InvalidOption = InvalidOptionError
InvalidMessage = InvalidMessageError
InvalidSchema = InvalidSchemaError
InvalidAgent = InvalidAgentError
Diverged = DivergedError
ForeignMemory = ForeignMemoryError
DamagedMemory = DamagedMemoryError
UnsupportedModel = ModelUnsupportedError
NoAdapter = NoAdapterError
NoModel = NoModelError
NotFetched = NotFetchedError
StoreFailed = StoreFailedError
Contended = ContendedError
CutOff = CutOffError
