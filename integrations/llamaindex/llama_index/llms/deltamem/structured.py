"""Structured output: LlamaIndex's structured calls with a pydantic class.

It replaces LlamaIndex's own programs, which support no recursive model, no list and no union, and end a truncated
stream without an error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.program.utils import get_program_for_llm, process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from deltamem_agents import ConfigError, ReplyCutOffError
from deltamem_agents.bridges.schemas import Arguments, as_arguments, json_schema, schema_name
from llama_index.llms.deltamem.replies import tool_selections

dispatcher = get_dispatcher(__name__)

_IN_A_CALL = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)
_SETTLED = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


class ObjectLLM(FunctionCallingLLM):
    """An LLM whose structured calls return the object or raise an error."""

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """The object. Raises ReplyCutOffError if `max_tokens` truncated it, ValueError if it does not fit otherwise."""
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        result = self._program(output_cls, prompt)(llm_kwargs=llm_kwargs, **prompt_args)
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        result = await self._program(output_cls, prompt).acall(llm_kwargs=llm_kwargs, **prompt_args)
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        return self._program(output_cls, prompt).stream_call(llm_kwargs=llm_kwargs, **prompt_args)

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        return await self._program(output_cls, prompt).astream_call(llm_kwargs=llm_kwargs, **prompt_args)

    def _program(self, output_cls: type[Any], prompt: BasePromptTemplate) -> BasePydanticProgram[Any]:
        if not (isinstance(output_cls, type) and issubclass(output_cls, BaseModel)):
            raise ConfigError(
                f"output_cls is {output_cls!r}, expected a pydantic model class; use RootModel for any other type"
            )
        mode = self.pydantic_program_mode
        if mode in _IN_A_CALL or mode == PydanticProgramMode.LLM:
            return ObjectProgram(output_cls, self, prompt, called=mode in _IN_A_CALL)
        return get_program_for_llm(output_cls, prompt, self, mode)


class ObjectProgram(BasePydanticProgram[Any]):
    """Requests and parses one object. `called`: whether it is in a tool call's arguments; otherwise it is the text."""

    def __init__(
        self, output_cls: type[BaseModel], llm: FunctionCallingLLM, prompt: BasePromptTemplate, *, called: bool
    ) -> None:
        self._output_cls, self._llm = output_cls, llm
        self._arguments: Arguments | None = None
        self._parser = PydanticOutputParser(output_cls)
        if called:
            schema = json_schema(output_cls)
            described = {key: value for key, value in schema.items() if key not in ("title", "description")}
            self._prompt, self._arguments = prompt, as_arguments(described)
            self._name = schema_name(schema) or output_cls.__name__
            self._description = schema.get("description") or ""
        else:
            self._prompt = prompt.model_copy(update={"output_parser": self._parser})

    @property
    def output_cls(self) -> type[BaseModel]:
        return self._output_cls

    def __call__(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any) -> Any:
        return self._read(self._llm.chat(self._messages(prompt_args), **self._keywords(llm_kwargs)))

    async def acall(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any) -> Any:
        return self._read(await self._llm.achat(self._messages(prompt_args), **self._keywords(llm_kwargs)))

    def stream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        """Yields partial objects, and the complete object last."""
        for response in self._llm.stream_chat(self._messages(prompt_args), **self._keywords(llm_kwargs)):
            yield from self._pieces(response)

    async def astream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        responses = await self._llm.astream_chat(self._messages(prompt_args), **self._keywords(llm_kwargs))

        async def pieces() -> AsyncGenerator[Any, None]:
            async for response in responses:
                for piece in self._pieces(response):
                    yield piece

        return pieces()

    def _messages(self, prompt_args: dict[str, Any]) -> list[ChatMessage]:
        return self._llm._extend_messages(self._prompt.format_messages(llm=self._llm, **prompt_args))

    def _keywords(self, llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        given = {name: value for name, value in (llm_kwargs or {}).items() if name not in _SETTLED}
        if self._arguments is None:
            return given
        tool = {"name": self._name, "description": self._description, "parameters": self._arguments.parameters}
        return {
            **given,
            "tools": [tool],
            "tool_choice": {"type": "tool", "name": self._name},
            "parallel_tool_calls": False,
        }

    def _read(self, response: ChatResponse) -> BaseModel:
        raw = response.raw if isinstance(response.raw, Mapping) else {}
        try:
            return self._object(response)
        except ValueError as error:
            if raw.get("finish_reason") != "length":
                raise ValueError(f"the reply is no {self._output_cls.__name__}: {error}") from error
            raise ReplyCutOffError(
                f"the reply is no {self._output_cls.__name__}: it was cut off after "
                f"{raw['usage']['completion_tokens']} tokens; max_tokens is too small for it, so raise max_tokens"
            ) from error

    def _object(self, response: ChatResponse) -> BaseModel:
        if self._arguments is None:
            read: BaseModel = self._parser.parse(response.message.content or "")
            return read
        selections = tool_selections(response)
        if not selections:
            raise ValueError(f"it does not call {self._name!r}: {response.message.content!r}")
        return self._output_cls.model_validate(self._arguments.value(selections[0].tool_kwargs))

    def _pieces(self, response: ChatResponse) -> Generator[Any, None, None]:
        # Only the last response of a stream is complete and has a finish reason.
        if response.raw is not None:
            yield self._read(response)
        elif self._arguments is None or self._arguments.key is None:
            yield process_streaming_objects(response, self._output_cls, flexible_mode=True, llm=self._llm)
        else:
            try:
                yield self._object(response)
            except ValueError:
                return
