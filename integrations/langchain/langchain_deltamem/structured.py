"""Structured output: the three methods of `with_structured_output`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableMap
from langchain_core.tools import StructuredTool
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, SkipValidation

from deltamem_agents import ConfigError
from langchain_deltamem.errors import CutOffError
from langchain_deltamem.tools import Wanted, wanted

Schema: TypeAlias = Mapping[str, Any] | type
Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]


class ReplyParser(BaseCumulativeTransformOutputParser[Any]):
    """Parses a reply to the value that a schema describes.

    `kind`: the schema's name, for errors. `tool`: the tool whose call contains the value, None if the text contains it.
    `key`: see `Arguments`. `model`: the pydantic class of the result, None for plain JSON. A stream gives partial
    values, and the complete value last. Raises OutputParserException if there is no such value, CutOffError if
    `max_tokens` truncated it.
    """

    kind: str
    tool: str | None = None
    key: str | None = None
    model: SkipValidation[type[BaseModel] | None] = None

    def parse(self, text: str) -> Any:
        return self._made(json.loads(text))

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message = cast(ChatGeneration, result[0]).message
        ended = message.response_metadata.get("finish_reason")
        if partial and ended is None:
            return self._so_far(message)
        if ended == "length":
            raise _cut_off(message, self.kind)
        try:
            return self._whole(message)
        except ValueError as error:
            raise OutputParserException(
                f"the reply is no {self.kind}: {error}", llm_output=str(message.text)
            ) from error

    def _whole(self, message: BaseMessage) -> Any:
        if self.tool is None:
            return self.parse(str(message.text))
        arguments = self._arguments(message)
        if arguments is None:
            raise ValueError(f"it does not call {self.tool!r}")
        if self.key is not None and self.key not in arguments:
            raise ValueError(f"the call of {self.tool!r} has no {self.key!r}")
        return self._made(arguments if self.key is None else arguments[self.key])

    def _so_far(self, message: BaseMessage) -> Any:
        if self.tool is None:
            value = parse_partial_json(str(message.text)) if message.text else None
        else:
            arguments = self._arguments(message)
            value = arguments if arguments is None or self.key is None else arguments.get(self.key)
        try:
            return None if value is None else self._made(value)
        except ValueError:
            return None

    def _arguments(self, message: BaseMessage) -> Mapping[str, Any] | None:
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        return next((call["args"] for call in calls if call["name"] == self.tool), None)

    def _made(self, value: Any) -> Any:
        if self.model is None:
            return value
        validate = getattr(self.model, "model_validate", None) or self.model.parse_obj
        return validate(value)


def structured(
    model: BaseChatModel, schema: Schema | None, *, method: Method, include_raw: bool, options: Mapping[str, Any]
) -> Runnable[LanguageModelInput, Any]:
    """`model` with its replies parsed. Raises ConfigError for an unknown method or an invalid or missing schema."""
    if method not in ("function_calling", "json_schema", "json_mode"):
        raise ConfigError(f"method is {method!r}, expected 'function_calling', 'json_schema' or 'json_mode'")
    if schema is None and method != "json_mode":
        raise ConfigError(f"method {method!r} needs a schema; give one, or use method='json_mode'")
    asked = None if schema is None else wanted(schema)
    traced = {"kwargs": {"method": method}, "schema": None if asked is None else asked.described}
    if asked is not None and method == "function_calling":
        bound = model.bind_tools([asked.tool], tool_choice=asked.name, ls_structured_output_format=traced, **options)
    else:
        held: dict[str, Any] = {"type": "json_object"}
        if asked is not None:
            held = {"type": "json_schema", "json_schema": {"schema": asked.schema}}
        bound = model.bind(response_format=held, ls_structured_output_format=traced, **options)
    parser = _parser(schema, asked, called=method == "function_calling")
    return RunnableMap(raw=bound) | _with_raw(parser) if include_raw else bound | parser


def _parser(schema: Schema | None, asked: Wanted | None, *, called: bool) -> ReplyParser:
    made = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if asked is None:
        return ReplyParser(kind="JSON object")
    if called:
        return ReplyParser(kind=asked.name, tool=asked.name, key=asked.arguments.key, model=made)
    return ReplyParser(kind=asked.name, model=made)


def _with_raw(parser: ReplyParser) -> Runnable[dict[str, Any], dict[str, Any]]:
    def read(said: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        try:
            return {**said, "parsed": parser.invoke(said["raw"], config), "parsing_error": None}
        except ValueError as error:
            return {**said, "parsed": None, "parsing_error": error}

    return RunnableLambda(read)


def answers_only(tool: Any) -> bool:
    """Whether the tool has no function. Agents offer such a tool to get a structured response."""
    return isinstance(tool, StructuredTool) and tool.func is None and tool.coroutine is None


def refusing_cut_off(bound: Runnable[LanguageModelInput, AIMessage]) -> Runnable[LanguageModelInput, AIMessage]:
    """`bound`, but raises CutOffError for a reply that `max_tokens` truncated before a complete call.

    Otherwise an agent that expects a structured response would ask again up to its recursion limit, or end without one.
    """

    def whole(message: AIMessage) -> AIMessage:
        if message.response_metadata.get("finish_reason") == "length" and not message.tool_calls:
            raise _cut_off(message, "structured response")
        return message

    return bound | RunnableLambda(whole)


def _cut_off(message: BaseMessage, kind: str) -> CutOffError:
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    tokens = 0 if usage is None else usage["output_tokens"]
    return CutOffError(
        f"the reply is no {kind}: it was cut off after {tokens} tokens; "
        "max_tokens is too small for it, so raise max_tokens",
        llm_output=str(message.text),
    )
