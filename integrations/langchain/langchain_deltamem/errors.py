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
    DamagedSnapshot,
    DeltaMemError,
    DownloadError,
    ForeignSnapshot,
    GrammarError,
    HistoryDiverged,
    InvalidAgentId,
    MessageError,
    ModelFilesError,
    ReplyCutOff,
    StaleHead,
    StoreError,
    UnsupportedModelError,
    WindowError,
)
from deltamem_agents.errors import AgentForgotten


class ContextOverflow(ContextOverflowError, WindowError):
    """The newest messages alone do not fit the window."""


class InvalidOption(ModelInvalidRequestError, ConfigError):
    """An option of the call is not supported."""


class InvalidMessage(ModelInvalidRequestError, MessageError):
    """A message cannot be said in text."""


class InvalidSchema(ModelInvalidRequestError, GrammarError):
    """A tool's or a reply's schema cannot be turned into a grammar."""


class InvalidAgent(ModelInvalidRequestError, InvalidAgentId):
    """An agent id is too long, or not text that a store can keep."""


class Forgotten(ModelInvalidRequestError, AgentForgotten):
    """The agent was forgotten while the turn was running, and stays so."""


class Diverged(ModelInvalidRequestError, HistoryDiverged):
    """The messages contradict what the agent absorbed, and the policy is to refuse."""


class ForeignMemory(ModelInvalidRequestError, ForeignSnapshot):
    """The agent's memory was made by another model or adapter."""


class DamagedMemory(ModelError, DamagedSnapshot):
    """What the store holds of the agent's memory is damaged."""


class UnsupportedModel(ModelNotFoundError, UnsupportedModelError):
    """The model cannot carry a memory."""


class NoAdapter(ModelNotFoundError, AdapterError):
    """There is no adapter for the model, or it does not fit."""


class NoModel(ModelNotFoundError, ModelFilesError):
    """The model's files are missing or damaged."""


class NotFetched(ModelNotFoundError, DownloadError):
    """The model could not be fetched."""


class StoreFailed(ModelAPIError, StoreError):
    """The store could not read or write; nothing was changed, and trying again may help."""


class Contended(ModelAPIError, StaleHead):
    """Others kept writing this agent's memory; nothing was changed, and trying again may help."""


class CutOff(OutputParserException, ReplyCutOff):
    """`max_tokens` was too few for the object that a reply has to be."""


_KINDS: Mapping[type, type[ModelError]] = {
    kind.__bases__[1]: kind
    for kind in (
        ContextOverflow,
        InvalidOption,
        InvalidMessage,
        InvalidSchema,
        InvalidAgent,
        Forgotten,
        Diverged,
        ForeignMemory,
        DamagedMemory,
        UnsupportedModel,
        NoAdapter,
        NoModel,
        NotFetched,
        StoreFailed,
        Contended,
    )
}


@contextmanager
def as_model_errors() -> Iterator[None]:
    """What the engine raises inside, as the model error of its kind where there is one."""
    try:
        yield
    except DeltaMemError as error:
        kind = _KINDS.get(type(error))
        if kind is None:
            raise
        raise kind(str(error)) from error
