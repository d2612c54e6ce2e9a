"""The chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config, run_in_executor
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env
from pydantic import BeforeValidator, Field, SkipValidation, field_serializer, model_validator

from deltamem_agents import ConfigError, DeltaMemEngine, Message, Recall, Sampling
from deltamem_agents.bridges import (
    DEFAULT_MODEL,
    EPHEMERAL,
    EngineSpec,
    Serving,
    own_agent,
    read_store,
    require_names,
    whose,
    written_store,
)
from deltamem_agents.bridges.dialects import (
    SAMPLING_NAMES,
    as_recall,
    as_tool_choice,
    listed,
    turn_options,
    written_recall,
)
from deltamem_agents.chat.wire import tool_schema
from deltamem_agents.engine import WINDOW_TOKENS
from deltamem_agents.snapshots import StoreLike
from deltamem_agents.types import MemoryMode, TurnOptions
from langchain_deltamem.errors import InvalidOptionError, as_model_errors
from langchain_deltamem.identity import of_checkpoint, of_run, resolve
from langchain_deltamem.keywords import check_fields, check_keywords
from langchain_deltamem.messages import to_messages
from langchain_deltamem.replies import PROVIDER, to_chunk, to_result
from langchain_deltamem.structured import Method, Schema, answers_only, refusing_cut_off, structured
from langchain_deltamem.tools import to_tools

CACHED = (
    "a cache is on together with the memory, but a cached answer neither reads the memory nor is remembered; "
    "leave cache out, or set memory='off'"
)


class ChatDeltaMem(BaseChatModel):
    """A local chat model that remembers each agent in a few kilobytes of its own state.

    `model`: "smollm2-135m-instruct", a local folder or .gguf, or a Hub id. It is opened at the first call and shared
    by all chat models that name it. `engine`: an open engine, instead of `model`.
    `store`: where the memories are stored: a Store, a path or URL ("sqlite:///…", "folder:///…", "memory:"). None is
    the engine's store, or the SQLite file in the user's data folder.
    `agent_id`: the agent, if a call does not name one; see `langchain_deltamem.identity`.
    `memory`: "readonly" reads and does not change the agents, "off" is the base model.
    `recall`: how the memory is read, a `Recall` or its fields as a dict; None is the engine's setting.

    Every field of `Sampling` can also be given with a call, and so can `agent_id`, `thread`, `memory`, `recall`,
    `model` and `response_format` (a JSON schema that the reply has to fit). An unknown name is an error. LangChain's
    `timeout`, `max_retries` and `api_key` are accepted and ignored, because they are for servers. Errors: see
    `langchain_deltamem.errors`.
    """

    model: str = Field(default_factory=from_env("DELTAMEM_MODEL", default=DEFAULT_MODEL))
    engine: SkipValidation[DeltaMemEngine] | None = Field(default=None, exclude=True, repr=False)
    adapter: str | None = None
    store: SkipValidation[StoreLike] = Field(default_factory=from_env("DELTAMEM_STORE", default=None))
    device: str = "cpu"
    window_tokens: int | None = None
    agent_id: Annotated[str | None, BeforeValidator(own_agent)] = None
    memory: MemoryMode = "readwrite"
    recall: Annotated[SkipValidation[Recall] | None, BeforeValidator(as_recall)] = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    streaming: bool = False
    # None would use the process-wide cache, which answers without calling the model, so the write would be lost.
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

    # A field instead of a private attribute, because `configurable_fields` copies a model by its fields.
    serving: SkipValidation[Serving] = Field(default_factory=Serving, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, given: Any) -> Any:
        check_fields(given, cls.model_fields)
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._sampling()
        self.store = read_store(self.store, self.engine)
        if self.cache and self.memory != "off":
            raise ConfigError(CACHED)
        if self.engine is not None:
            self._fits_the_engine(self.engine)
        return self

    def _fits_the_engine(self, engine: DeltaMemEngine) -> None:
        if "model" in self.model_fields_set and self.model != engine.model_name:
            raise ConfigError(f"model is {self.model!r}, but the engine runs {engine.model_name!r}; give one of them")
        if self.adapter is not None or self.window_tokens is not None or self.device != "cpu":
            raise ConfigError("adapter, window_tokens and device belong to the engine; pass them when you open it")
        self.model = engine.model_name

    def __getstate__(self) -> dict[Any, Any]:
        require_names("ChatDeltaMem", self.store, self.engine)
        return super().__getstate__()

    @field_serializer("store")
    def _written_store(self, store: StoreLike) -> str | None:
        return written_store(store, self.engine)

    @field_serializer("recall")
    def _written_recall(self, recall: Recall | None) -> dict[str, Any] | None:
        return written_recall(recall)

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
        names = ("adapter", "device", "window_tokens", "memory", *SAMPLING_NAMES)
        own = {name: getattr(self, name) for name in names}
        return {"model": self.model, **own, "recall": written_recall(self.recall)}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        recall = {} if self.recall is None else {"recall": written_recall(self.recall)}
        return {"store": written_store(self.store, self.engine), **recall}

    def _resolve_model_profile(self) -> ModelProfile:
        engine = self.engine
        window = self.window_tokens or (WINDOW_TOKENS if engine is None else engine.window_tokens)
        return ModelProfile(
            name=self.model if engine is None else engine.model_name,
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

    # The config never reaches _generate and _stream, so every public method resolves the agent.

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return super().invoke(input, config, **self._identified(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        return await super().ainvoke(input, config, **self._identified(config, kwargs))

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        return super().stream(input, config, **self._identified(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        return super().astream(input, config, **self._identified(config, kwargs))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream_events(input, config, **self._identified(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(input, config, **self._identified(config, kwargs))

    def _identified(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        with as_model_errors():
            return {**kwargs, **resolve(ensure_config(config), kwargs, self.agent_id, self.memory).keywords()}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # LangChain calls this before it looks into a cache, including its process-wide cache.
        if self._identified(None, kwargs)["memory"] != "off":
            raise InvalidOptionError(CACHED)
        return super()._get_llm_string(stop, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with as_model_errors():
            engine, agent, spoken, options, by_run = self._turn(messages, stop, kwargs)
            return to_result(engine.run_turn(agent, spoken, **options), engine.model_name, named_by_run=by_run)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with as_model_errors():
            engine, agent, spoken, options, by_run = await run_in_executor(None, self._turn, messages, stop, kwargs)
            return to_result(await engine.arun_turn(agent, spoken, **options), engine.model_name, named_by_run=by_run)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with as_model_errors():
            engine, agent, spoken, options, by_run = self._turn(messages, stop, kwargs)
            for piece in engine.stream_turn(agent, spoken, **options):
                chunk = to_chunk(piece, engine.model_name, named_by_run=by_run)
                if chunk is None:
                    continue
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with as_model_errors():
            engine, agent, spoken, options, by_run = await run_in_executor(None, self._turn, messages, stop, kwargs)
            async for piece in engine.astream_turn(agent, spoken, **options):
                chunk = to_chunk(piece, engine.model_name, named_by_run=by_run)
                if chunk is None:
                    continue
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _turn(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[DeltaMemEngine, str | None, list[Message], TurnOptions, bool]:
        """The engine, agent, messages and options of one turn, and whether the graph run's config names the agent."""
        check_keywords(given)
        if given.get("agent_id") is None:
            # generate() and related methods take no config; the enclosing config and use_agent still apply.
            given = self._identified(None, given)
        config, agent = ensure_config(), whose(given["agent_id"])
        off = (given.get("memory") or self.memory) == "off"
        kept = None if off else of_checkpoint(agent, config, messages)
        by_run = agent == of_run(config) and agent != EPHEMERAL
        if kept is not None:
            agent, by_run = kept, kept != EPHEMERAL
        tools = to_tools(listed(given.get("tools")))
        options = turn_options(
            {**given, "stop": stop}, tools, sampling=self._sampling(), memory=self.memory, recall=self.recall
        )
        engine = self._engine(given.get("model"), agent)
        return engine, agent or None, to_messages(messages), options, by_run

    def open_engine(self, agent_id: str) -> DeltaMemEngine:
        """The engine that calls for this agent use, with the agent's store. Opens the model if necessary."""
        return self._engine(None, agent_id)

    def _engine(self, model: str | None, agent: str) -> DeltaMemEngine:
        spec = EngineSpec(model or self.model, self.adapter, self.device, self.window_tokens)
        return self.serving.engine(spec, self.engine, self.store, agent)

    def _sampling(self) -> Sampling:
        return Sampling(**{name: getattr(self, name) for name in SAMPLING_NAMES}, stop=tuple(self.stop or ()))

    def get_token_ids(self, text: str) -> list[int]:
        """The text's token ids in this model's tokenizer. LangChain's default downloads another model's tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        ids: list[int] = self._engine(None, EPHEMERAL).tokenizer.encode(text, add_special_tokens=False)
        return ids

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call.

        `tool_choice`: "auto", "any" (or "required", True), "none", a tool's name, or a provider's dict for one of
        these. `parallel_tool_calls`: whether a reply may contain several calls; None allows it only for "auto". A
        grammar makes every call fit its tool's schema. Raises ConfigError if `tool_choice` names no tool. If an agent
        expects a structured response (a `response_format`, or a tool without a function), the model raises
        ReplyCutOffError for a reply that `max_tokens` truncated.
        """
        offered, choice = to_tools(tools), as_tool_choice(tool_choice)
        if choice not in ("auto", "any", "none", *(tool.name for tool in offered)):
            names = ", ".join(repr(tool.name) for tool in offered) or "no tool"
            raise ConfigError(f"tool_choice is {choice!r}, but the call offers {names}; name one of them")
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        bound = self.bind(tools=[tool_schema(tool) for tool in offered], tool_choice=choice, **kwargs)
        awaited = kwargs.get("response_format") is not None or any(map(answers_only, tools))
        return refusing_cut_off(bound) if awaited else bound

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Method = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with replies parsed as `schema`. A grammar makes the replies fit it.

        `schema`: a pydantic class gives objects of that class. A TypedDict, a dataclass, a union or another type, a
        JSON schema or an OpenAI tool gives plain JSON. `method`: "function_calling" shows the schema to the model as a
        tool; "json_schema" and "json_mode" do not show it and only enforce it; "json_mode" without a schema allows any
        JSON object. `strict` has no effect, because replies always fit. `include_raw`: also return the message and the
        parsing error. Raises ConfigError if `schema` is not a schema. The chain raises GrammarError for a schema that
        no grammar can express, and ReplyCutOffError for a reply that `max_tokens` truncated.
        """
        return structured(self, schema, method=method, include_raw=include_raw, options=kwargs)


__all__ = ["ChatDeltaMem"]
