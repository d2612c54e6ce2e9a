"""Replies as objects: the three methods of `with_structured_output`."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Literal, TypeAlias, cast

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from deltamem_agents import ConfigError
from langchain_deltamem.tools import schema_of

Schema: TypeAlias = Mapping[str, Any] | type
Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]


def structured(
    model: BaseChatModel, schema: Schema | None, *, method: Method, include_raw: bool, options: Mapping[str, Any]
) -> Runnable[LanguageModelInput, Any]:
    """`model` with its replies parsed. Raises ConfigError for a method it does not know, or a missing schema."""
    if schema is None and method != "json_mode":
        raise ConfigError(f"method {method!r} needs a schema; give one, or use method='json_mode'")
    traced = {"kwargs": {"method": method}, "schema": schema}
    parser: OutputParserLike[Any]
    if method == "function_calling":
        assert schema is not None
        name = convert_to_openai_tool(schema)["function"]["name"]
        bound = model.bind_tools(
            [cast("type", schema)], tool_choice=name, ls_structured_output_format=traced, **options
        )
        if _is_pydantic(schema):
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
        else:
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    elif method in ("json_schema", "json_mode"):
        wanted: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            wanted = {"type": "json_schema", "json_schema": {"schema": schema_of(schema)}}
        bound = model.bind(response_format=wanted, ls_structured_output_format=traced, **options)
        parser = _json_parser(schema)
    else:
        raise ConfigError(f"method is {method!r}, expected 'function_calling', 'json_schema' or 'json_mode'")
    return _with_raw(bound, parser) if include_raw else bound | parser


def _is_pydantic(schema: object) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _json_parser(schema: Schema | None) -> BaseOutputParser[Any]:
    if _is_pydantic(schema):
        return PydanticOutputParser(pydantic_object=cast("type[BaseModel]", schema))
    return JsonOutputParser()


def _with_raw(bound: Runnable[LanguageModelInput, Any], parser: OutputParserLike[Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
