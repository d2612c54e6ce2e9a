"""The chat model."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env
from pydantic import Field, PrivateAttr, SkipValidation, model_validator

from deltamem_agents import ConfigError, DeltaMemEngine, Message, Sampling, Store, WindowError
from deltamem_agents.snapshots import open_store
from deltamem_agents.types import MemoryMode, TurnOptions
from langchain_deltamem.engines import EngineSpec, shared_engine
from langchain_deltamem.errors import ContextOverflow
from langchain_deltamem.identity import bound, resolve
from langchain_deltamem.messages import to_messages
from langchain_deltamem.replies import PROVIDER, Spoken, last_chunks, text_chunk, to_ai_message
from langchain_deltamem.structured import Method, Schema, structured
from langchain_deltamem.tools import to_choice, to_schema, to_tools

DEFAULT_MODEL = "smollm2-135m-instruct"
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


class ChatDeltaMem(BaseChatModel):
    """A local chat model that remembers each agent in a few kilobytes of its own state.

    `model`: "smollm2-135m-instruct", a local folder or .gguf, or a Hub id; opened at the first call and
    shared by all chat models that name it. `engine`: an engine that is open already, instead.
    `store`: where the memories live, a Store, a path or URL ("sqlite:///…", "folder:///…", "memory:");
    None is the engine's own store, or the SQLite file in the user's data folder.
    `agent_id`: whose memory, where a call does not say; see `langchain_deltamem.identity`.
    `memory`: "readonly" reads and leaves the agents as they were, "off" is the base model.

    Every field of `Sampling` can also be given with a call, as can `agent_id`, `thread`, `memory`, `model`
    and `response_format` (a JSON schema that the reply has to fit).
    """

    model: str = Field(default_factory=from_env("DELTAMEM_MODEL", default=DEFAULT_MODEL))
    engine: SkipValidation[DeltaMemEngine] | None = Field(default=None, exclude=True, repr=False)
    adapter: str | None = None
    store: SkipValidation[Store | str | None] = Field(default_factory=from_env("DELTAMEM_STORE", default=None))
    device: str = "cpu"
    window_tokens: int | None = None
    agent_id: str | None = None
    memory: MemoryMode = "readwrite"
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    streaming: bool = False
    # None would mean the process-wide cache, which answers without calling the model: the write would be lost.
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

    _store: Store | None = PrivateAttr(default=None)
    _opening: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="after")
    def _no_cache_before_a_memory(self) -> Self:
        if self.cache and self.memory == "readwrite":
            raise ConfigError(
                "cache is set while memory is 'readwrite': a cached answer would not be remembered; "
                "leave cache out, or set memory='readonly' or 'off'"
            )
        self._sampling({}, None)
        if self.engine is not None:
            self.model = self.engine.model_name
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return ["langchain_deltamem", "chat_models"]

    @property
    def _llm_type(self) -> str:
        return "deltamem"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("adapter", "device", "window_tokens", "memory", *_SAMPLING)
        return {"model": self.model, **{name: getattr(self, name) for name in names}}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        # An open engine or store cannot be written down; whoever loads the model gives them again.
        return {} if self.store is None or isinstance(self.store, str) else {"store": None}

    def _resolve_model_profile(self) -> ModelProfile:
        window = self.window_tokens or (self.engine.window_tokens if self.engine is not None else 4096)
        return ModelProfile(
            name=self.model,
            open_weights=True,
            max_input_tokens=window - self.max_tokens,
            max_output_tokens=self.max_tokens,
            text_inputs=True,
            image_inputs=False,
            image_url_inputs=False,
            pdf_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            image_tool_message=False,
            pdf_tool_message=False,
            text_outputs=True,
            image_outputs=False,
            audio_outputs=False,
            video_outputs=False,
            reasoning_output=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = kwargs.get("model") or self.model
        return params

    # The config never reaches _generate and _stream, so each way in resolves whose memory it is.

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        return super().invoke(input, config, stop=stop, **self._identified(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        return await super().ainvoke(input, config, stop=stop, **self._identified(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        return super().stream(input, config, stop=stop, **self._identified(config, kwargs))

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        return super().astream(input, config, stop=stop, **self._identified(config, kwargs))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream_events(input, config, **self._identified(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(input, config, **self._identified(config, kwargs))

    def _identified(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, **resolve(ensure_config(config), kwargs, self.agent_id).keywords()}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, agent, spoken, options = self._turn(messages, stop, kwargs)
        try:
            turn = engine.run_turn(agent, spoken, **options)
        except WindowError as error:
            raise ContextOverflow(str(error)) from error
        message = to_ai_message(turn, engine.model_name)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, agent, spoken, options = self._turn(messages, stop, kwargs)
        try:
            turn = await engine.arun_turn(agent, spoken, **options)
        except WindowError as error:
            raise ContextOverflow(str(error)) from error
        message = to_ai_message(turn, engine.model_name)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, agent, spoken, options = self._turn(messages, stop, kwargs)
        shown = Spoken(calls=bool(options.get("tools")))
        try:
            for piece in engine.stream_turn(agent, spoken, **options):
                if piece.turn is not None:
                    chunks = last_chunks(piece.turn, shown.finish(piece.turn), engine.model_name)
                else:
                    chunks = map(text_chunk, filter(None, [shown.push(piece.text)]))
                for chunk in chunks:
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        except WindowError as error:
            raise ContextOverflow(str(error)) from error

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, agent, spoken, options = self._turn(messages, stop, kwargs)
        shown = Spoken(calls=bool(options.get("tools")))
        try:
            async for piece in engine.astream_turn(agent, spoken, **options):
                if piece.turn is not None:
                    chunks = last_chunks(piece.turn, shown.finish(piece.turn), engine.model_name)
                else:
                    chunks = map(text_chunk, filter(None, [shown.push(piece.text)]))
                for chunk in chunks:
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        except WindowError as error:
            raise ContextOverflow(str(error)) from error

    def _turn(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[DeltaMemEngine, str | None, list[Message], TurnOptions]:
        """The engine, the agent, the messages and the options of one turn."""
        if given.get("agent_id") is None:
            # generate() and its kin take no config; what encloses the call still counts.
            given = self._identified(None, given)
        choice, parallel = to_choice(given.get("tool_choice")), given.get("parallel_tool_calls")
        options = TurnOptions(
            thread=given.get("thread"),
            memory=given.get("memory") or self.memory,
            sampling=self._sampling(given, stop),
            tools=to_tools(given.get("tools") or ()),
            tool_choice=choice,
            # A small model that has to call does not know when to stop calling.
            parallel_tool_calls=choice == "auto" if parallel is None else parallel,
            response_schema=to_schema(given.get("response_format")),
        )
        engine = self._engine(given.get("model"), given["agent_id"])
        return engine, given["agent_id"] or None, to_messages(messages), options

    def _engine(self, model: str | None, agent: str) -> DeltaMemEngine:
        engine = self.engine
        if engine is None or (model is not None and model != engine.model_name):
            engine = shared_engine(EngineSpec(model or self.model, self.adapter, self.device, self.window_tokens))
        binding = bound()
        if binding is not None and binding.store is not None and binding.agent_id == agent:
            return engine.with_store(binding.store)
        if self.store is None and self.engine is not None:
            return engine.with_store(self.engine.store)
        with self._opening:
            if self._store is None:
                self._store = open_store(self.store)
        return engine.with_store(self._store)

    def _sampling(self, given: dict[str, Any], stop: list[str] | None) -> Sampling:
        fields = {name: given[name] if given.get(name) is not None else getattr(self, name) for name in _SAMPLING}
        return Sampling(**fields, stop=tuple((self.stop or []) if stop is None else stop))

    def get_num_tokens(self, text: str) -> int:
        """Tokens of this text as the model reads it."""
        return self._engine(None, "").count_tokens([Message("user", text)]) if text else 0

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools on offer.

        `tool_choice`: "auto", "any" (or "required", True), "none", a tool's name, or a provider's dict for
        one of these. `parallel_tool_calls`: whether a reply may hold several calls; None allows that where
        the model is free to call none. Calls are held to the tools'
        schemas by a grammar. Raises ConfigError when `tool_choice` names no tool.
        """
        offered, choice = to_tools(tools), to_choice(tool_choice)
        if choice not in ("auto", "any", "none", *(tool.name for tool in offered)):
            names = ", ".join(repr(tool.name) for tool in offered) or "no tool"
            raise ConfigError(f"tool_choice is {choice!r}, but on offer is {names}")
        bound_tools = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
            }
            for t in offered
        ]
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=bound_tools, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Method = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with replies parsed as `schema`, to which a grammar holds them.

        `schema`: a pydantic class, a TypedDict, a JSON schema or an OpenAI tool. `method`:
        "function_calling" shows the schema to the model as a tool; "json_schema" only holds the reply to
        it; "json_mode" holds it to any JSON object. `strict` changes nothing: replies always fit.
        `include_raw`: also return the message and what went wrong in parsing it.
        """
        return structured(self, schema, method=method, include_raw=include_raw, options=kwargs)


__all__ = ["ChatDeltaMem"]
