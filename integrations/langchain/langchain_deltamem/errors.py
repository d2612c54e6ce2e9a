"""The engine's errors as LangChain's kinds of model errors, caught as either library's.

LangChain's retries ask a model error whether trying again may help: an image in a message will not go away.
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
    """The newest messages alone do not fit the window."""


class InvalidOptionError(ModelInvalidRequestError, ConfigError):
    """An option of the call is not supported."""


class InvalidMessageError(ModelInvalidRequestError, MessageError):
    """A message cannot be said in text."""


class InvalidSchemaError(ModelInvalidRequestError, GrammarError):
    """A tool's or a reply's schema cannot be turned into a grammar."""


class InvalidAgentError(ModelInvalidRequestError, InvalidAgentIdError):
    """An agent id is too long, or not text that a store can keep."""


class ForgottenError(ModelInvalidRequestError, AgentForgottenError):
    """The agent was forgotten while the turn was running, and stays so."""


class DivergedError(ModelInvalidRequestError, HistoryDivergedError):
    """The messages contradict what the agent absorbed, and the policy is to refuse."""


class ForeignMemoryError(ModelInvalidRequestError, ForeignSnapshotError):
    """The agent's memory was made by another model or adapter."""


class DamagedMemoryError(ModelError, DamagedSnapshotError):
    """What the store holds of the agent's memory is damaged."""


class ModelUnsupportedError(ModelNotFoundError, UnsupportedModelError):
    """The model cannot carry a memory."""


class NoAdapterError(ModelNotFoundError, AdapterError):
    """There is no adapter for the model, or it does not fit."""


class NoModelError(ModelNotFoundError, ModelFilesError):
    """The model's files are missing or damaged."""


class NotFetchedError(ModelNotFoundError, DownloadError):
    """The model could not be fetched."""


class StoreFailedError(ModelAPIError, StoreError):
    """The store could not read or write; nothing was changed, and trying again may help."""


class ContendedError(ModelAPIError, StaleHeadError):
    """Others kept writing this agent's memory; nothing was changed, and trying again may help."""


class CutOffError(OutputParserException, ReplyCutOffError):
    """`max_tokens` was too few for the object that a reply has to be."""


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
    """What the engine raises inside, as the model error of its kind where there is one."""
    try:
        yield
    except DeltaMemError as error:
        kind = next((_KINDS[base] for base in type(error).__mro__ if base in _KINDS), None)
        if kind is None:
            raise
        raise kind(str(error)) from error


# The names of version 0.1, which are here to stay: code that catches them goes on working.
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
