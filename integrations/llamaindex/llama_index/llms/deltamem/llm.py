"""`DeltaMemLLM`, the LlamaIndex LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.tools import BaseTool
from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, SkipValidation, field_serializer, model_validator

from deltamem_agents import DeltaMemEngine, InvalidAgentIdError, Message, Recall, Sampling
from deltamem_agents.bridges import (
    DEFAULT_MODEL,
    EPHEMERAL,
    AgentId,
    EngineSpec,
    Serving,
    own_agent,
    read_store,
    require_names,
    which_thread,
    whose,
    written_store,
)
from deltamem_agents.bridges.dialects import (
    CALL_KEYWORDS,
    SAMPLING_NAMES,
    as_recall,
    listed,
    refuse_unknown,
    turn_options,
    written_recall,
)
from deltamem_agents.engine import WINDOW_TOKENS
from deltamem_agents.snapshots import StoreLike
from deltamem_agents.types import MemoryMode, TurnOptions
from llama_index.llms.deltamem.identity import Identity, resolve
from llama_index.llms.deltamem.messages import to_messages, to_tools, tool_schema, with_properties
from llama_index.llms.deltamem.replies import GrowingReply, to_chat_response, to_completion, tool_selections
from llama_index.llms.deltamem.structured import ObjectLLM


@dataclass(frozen=True)
class _Call:
    """The arguments of one engine turn."""

    engine: DeltaMemEngine
    agent: str | None
    messages: list[Message]
    options: TurnOptions


class DeltaMemLLM(ObjectLLM):
    """A local LLM that remembers each agent in a few kilobytes of its own state.

    `model`: "smollm2-135m-instruct", a local folder or .gguf, or a Hub id. It is opened at the first call and shared
    by all LLMs that name it. `engine`: an open engine, instead of `model`.
    `store`: where the memories are stored: a Store, a path or URL ("sqlite:///…", "folder:///…", "memory:"). None is
    the engine's store, or the SQLite file in the user's data folder.
    `agent_id` and `thread`: the agent and its conversation, if a call does not name them; see `for_agent` and
    `llama_index.llms.deltamem.identity`.
    `memory`: "readonly" reads and does not change the agents, "off" is the base model.
    `recall`: how the memory is read, a `Recall` or its fields as a dict; None is the engine's setting.

    Every field of `Sampling` can also be given with a call, and so can `agent_id`, `thread`, `memory`, `recall`,
    `model`, `tools`, `tool_choice`, `parallel_tool_calls` and `response_format` (a JSON schema that the reply has to
    fit). Chats are remembered. The `complete` methods and `as_structured_llm` only read the memory, because LlamaIndex
    uses them for its own requests.
    """

    model: str = DEFAULT_MODEL
    engine: SkipValidation[DeltaMemEngine] | None = Field(default=None, exclude=True, repr=False)
    adapter: str | None = None
    store: SkipValidation[StoreLike] = None
    device: str = "cpu"
    window_tokens: int | None = None
    agent_id: Annotated[str | None, BeforeValidator(own_agent)] = None
    thread: Annotated[str | None, BeforeValidator(which_thread)] = None
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

    _serving: Serving = PrivateAttr(default_factory=Serving)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            refuse_unknown("DeltaMemLLM", "field", given, (*cls.model_fields, "class_name"))
        return given

    @model_validator(mode="after")
    def _checked(self) -> Self:
        self._sampling()
        self.store = read_store(self.store, self.engine)
        if self.engine is not None:
            self.model = self.engine.model_name
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    def __getstate__(self) -> dict[Any, Any]:
        require_names("DeltaMemLLM", self.store, self.engine)
        return super().__getstate__()

    @field_serializer("store")
    def _written_store(self, store: StoreLike) -> str | None:
        return written_store(store, self.engine)

    @field_serializer("recall")
    def _written_recall(self, recall: Recall | None) -> dict[str, Any] | None:
        return written_recall(recall)

    @classmethod
    def class_name(cls) -> str:
        return "DeltaMemLLM"

    @property
    def metadata(self) -> LLMMetadata:
        window = self.window_tokens or WINDOW_TOKENS if self.engine is None else self.engine.window_tokens
        return LLMMetadata(
            context_window=window,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def for_agent(self, agent_id: AgentId, *, thread: AgentId | None = None, memory: MemoryMode | None = None) -> Self:
        """A copy of this LLM (a view) for one agent. It shares the engine and the store, but not the memory.

        `thread`: which of the agent's conversations, for callers that send the whole history with every call.
        `memory`: None is this LLM's setting. Raises InvalidAgentIdError for a blank id.
        """
        agent = whose(agent_id)
        if not agent:
            raise InvalidAgentIdError(f"agent_id is {agent_id!r}, expected a name; without one nothing is remembered")
        view = {"agent_id": agent, "thread": which_thread(thread), "memory": memory or self.memory}
        return self.model_copy(update=view)

    def open_engine(self, agent_id: str | None, *, model: str | None = None) -> DeltaMemEngine:
        """The engine with this agent's store. Opens the model if necessary, and raises what opening raises.

        `model`: None is this LLM's model.
        """
        spec = EngineSpec(model or self.model, self.adapter, self.device, self.window_tokens)
        return self._serving.engine(spec, self.engine, self.store, agent_id or EPHEMERAL)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._chat(self._call(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await self._achat(await self._acall(messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream(self._call(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return self._astream(await self._acall(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        asked = self._asked(prompt, formatted)
        return to_completion(self._chat(self._call(asked, kwargs, asks_for_itself=True)))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        asked = self._asked(prompt, formatted)
        return to_completion(await self._achat(await self._acall(asked, kwargs, asks_for_itself=True)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        asked = self._asked(prompt, formatted)
        stream = self._stream(self._call(asked, kwargs, asks_for_itself=True))
        return (to_completion(response) for response in stream)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        asked = self._asked(prompt, formatted)
        stream = self._astream(await self._acall(asked, kwargs, asks_for_itself=True))
        return (to_completion(response) async for response in stream)

    def _chat(self, call: _Call) -> ChatResponse:
        turn = call.engine.run_turn(call.agent, call.messages, **call.options)
        return to_chat_response(turn, call.engine.model_name)

    async def _achat(self, call: _Call) -> ChatResponse:
        turn = await call.engine.arun_turn(call.agent, call.messages, **call.options)
        return to_chat_response(turn, call.engine.model_name)

    def _stream(self, call: _Call) -> Generator[ChatResponse, None, None]:
        reply = GrowingReply(call.engine.model_name)
        for piece in call.engine.stream_turn(call.agent, call.messages, **call.options):
            response = reply.push(piece)
            if response is not None:
                yield response

    async def _astream(self, call: _Call) -> AsyncGenerator[ChatResponse, None]:
        reply = GrowingReply(call.engine.model_name)
        async for piece in call.engine.astream_turn(call.agent, call.messages, **call.options):
            response = reply.push(piece)
            if response is not None:
                yield response

    def _asked(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        """The prompt as a conversation. Only the `predict` methods send prompts that are already formatted."""
        text = prompt if formatted or self.completion_to_prompt is None else self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=text)]

    def _call(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any], *, asks_for_itself: bool = False
    ) -> _Call:
        # Keywords with the value None are ignored.
        asked = [name for name, value in given.items() if value is not None]
        refuse_unknown("a call of DeltaMemLLM", "keyword", asked, CALL_KEYWORDS)
        own = Identity(self.agent_id, self.thread, self.memory)
        speaks = resolve(given, own, asks_for_itself=asks_for_itself)
        options = turn_options(
            {**given, "thread": speaks.thread, "memory": speaks.memory},
            to_tools(listed(given.get("tools"))),
            sampling=self._sampling(),
            memory=speaks.memory,
            recall=self.recall,
        )
        engine = self.open_engine(speaks.agent_id, model=given.get("model"))
        return _Call(engine, speaks.agent_id, to_messages(messages), options)

    async def _acall(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any], *, asks_for_itself: bool = False
    ) -> _Call:
        # The first call opens the model, which takes seconds, so it runs in a thread.
        return await asyncio.to_thread(self._call, messages, given, asks_for_itself=asks_for_itself)

    def _sampling(self) -> Sampling:
        return Sampling(**{name: getattr(self, name) for name in SAMPLING_NAMES}, stop=tuple(self.stop or ()))

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The keywords of a chat with tools. A grammar makes every call fit its tool's schema.

        `tool_choice`: "auto", "any" (or "required", True), "none", a tool's name, or a provider's dict for
        one of these; None follows `tool_required`.
        """
        asked = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        return {
            "messages": [*(chat_history or ()), *([] if asked is None else [asked])],
            "tools": [tool_schema(tool) for tool in tools],
            "tool_choice": ("any" if tool_required else "auto") if tool_choice is None else tool_choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a reply, which may still be streaming.

        Raises ValueError if there are none, unless `error_on_no_tool_call` is False.
        """
        selections = tool_selections(response)
        if not selections and error_on_no_tool_call:
            raw = response.raw if isinstance(response.raw, Mapping) else {}
            hint = "raise max_tokens" if raw.get("finish_reason") == "length" else "pass tool_required=True"
            raise ValueError(f"the reply calls no tool, expected at least one: {response.message.content!r}; {hint}")
        return selections

    def predict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> AgentChatResponse:
        return super().predict_and_call(with_properties(tools), *args, **kwargs)

    async def apredict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> AgentChatResponse:
        return await super().apredict_and_call(with_properties(tools), *args, **kwargs)

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """This LLM with replies as objects. It only reads the memory, because agents use it for their own summaries."""
        memory: MemoryMode = "readonly" if self.memory == "readwrite" else self.memory
        return StructuredLLM(llm=self.model_copy(update={"memory": memory}), output_cls=output_cls, **kwargs)
