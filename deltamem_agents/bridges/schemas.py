"""Converts users' schemas to JSON schemas and to the parameters of a tool. Pure functions.

A schema that is not a dict is read with pydantic. Every framework depends on pydantic; this package does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_origin

from deltamem_agents.errors import ConfigError

_DEFINITIONS = ("$defs", "definitions")
_WRAPPED = "value"


@dataclass(frozen=True)
class Arguments:
    """A schema as the parameters of a tool, which are always an object.

    `key`: if the schema does not describe an object, the name of the single parameter that holds the value.
    """

    parameters: Mapping[str, Any]
    key: str | None = None

    def value(self, arguments: Mapping[str, Any]) -> Any:
        """The value in a call's arguments; None if the call lacks it."""
        return arguments if self.key is None else arguments.get(self.key)


def json_schema(schema: Any) -> Mapping[str, Any]:
    """The JSON schema of a pydantic model, a dataclass, a TypedDict, a union or another type. A dict is returned as is.

    Raises ConfigError for anything else, and for types without a JSON schema.
    """
    if isinstance(schema, Mapping):
        return schema
    if not isinstance(schema, type | UnionType) and get_origin(schema) is None:
        raise ConfigError(f"a schema is {schema!r}, expected a JSON schema, a pydantic model or another type")
    from pydantic import PydanticUserError, TypeAdapter

    try:
        if not hasattr(schema, "model_json_schema") and hasattr(schema, "__fields__"):
            return dict(schema.schema())  # a model of pydantic 1
        return TypeAdapter(schema).json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        raise ConfigError(f"{schema!r} has no JSON schema: {error}") from None


def as_arguments(schema: Mapping[str, Any]) -> Arguments:
    """The schema as a tool's parameters: unchanged if it describes an object, else wrapped in one parameter."""
    if _is_object(schema, schema):
        return Arguments({**_unfolded(schema), "type": "object"})
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    inner = {key: value for key, value in schema.items() if key not in definitions}
    moved = _moved({_WRAPPED: inner}, f"#/properties/{_WRAPPED}")
    return Arguments({"type": "object", "properties": moved, "required": [_WRAPPED], **definitions}, _WRAPPED)


def schema_name(schema: Mapping[str, Any]) -> str | None:
    """The schema's name: its title, or the name of the definition it refers to."""
    unfolded, ref = _unfolded(schema), schema.get("$ref")
    name = unfolded.get("title") or (ref.rpartition("/")[2] if isinstance(ref, str) else None)
    return name if isinstance(name, str) and name.strip("# ") else None


def is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether a part of the schema contains itself, so that its references cannot be expanded."""
    cleared: set[str] = set()

    def returns(part: object, within: frozenset[str]) -> bool:
        for ref in _references(part):
            if ref in within or (ref not in cleared and returns(_target(schema, ref), within | {ref})):
                return True
            cleared.add(ref)
        return False

    return returns({key: value for key, value in schema.items() if key not in _DEFINITIONS}, frozenset("#"))


def _is_object(schema: object, root: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """Whether the schema certainly accepts only objects."""
    if not isinstance(schema, Mapping):
        return False
    if "type" in schema:
        return bool(schema["type"] == "object")
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref not in seen and _is_object(_target(root, ref), root, seen | {ref}):
        return True
    if any(_is_object(part, root, seen) for part in schema.get("allOf") or ()):
        return True
    for ways in (schema.get("anyOf"), schema.get("oneOf")):
        if ways and all(_is_object(part, root, seen) for part in ways):
            return True
    return not schema.keys() & {"$ref", "anyOf", "oneOf"} and "properties" in schema


def _unfolded(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with a top-level reference replaced by its definition. Schemas of recursive models have one."""
    seen: set[str] = set()
    while isinstance(ref := schema.get("$ref"), str) and ref not in seen:
        seen.add(ref)
        target = _target(schema, ref)
        if not isinstance(target, Mapping):
            return schema
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _moved(schema: Any, to: str) -> Any:
    """The schema with its internal references adjusted to its new place `to`. References to definitions stay."""
    if isinstance(schema, list):
        return [_moved(each, to) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: to + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#") and not _defined(value)
        else _moved(value, to)
        for key, value in schema.items()
    }


def _defined(ref: str) -> bool:
    return ref.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS))


def _references(part: object) -> Iterator[str]:
    if isinstance(part, list):
        for each in part:
            yield from _references(each)
    elif isinstance(part, Mapping):
        for key, value in part.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)


def _target(root: Mapping[str, Any], ref: str) -> object:
    """The target of a reference in this schema; None if the schema does not contain it."""
    found: object = root if ref.startswith("#") else None
    for step in ref.split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
