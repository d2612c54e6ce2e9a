"""JSON schemas of tools and replies: checks, and the form that is given to a grammar."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from deltamem_agents.errors import ConfigError, GrammarError
from deltamem_agents.types import Tool

RESPONSE_SCHEMA = "response schema"
"""Name of a reply's schema in error messages."""

_COMBINING = frozenset(("allOf", "anyOf", "oneOf"))
_OPENING = frozenset(("additionalProperties", "patternProperties", "$ref", *_COMBINING))
# Values of these keywords are schemas: _MAPS by name, _PARTS one or a list. Values of all other keywords are data.
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_PARTS = frozenset(("items", "prefixItems", "additionalItems", "additionalProperties", "contains", "propertyNames"))
# By the JSON Schema standard, any other format does not restrict the value.
_FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
_DESCRIBING = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$defs", "definitions")
) | {"$schema", "$id", "$anchor", "$comment"}
_ASSERTING = frozenset(
    (
        *("type", "enum", "const", "not", "if", "minProperties", "maxProperties", "required", "uniqueItems"),
        *("minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern", "format"),
        *("properties", "items", "prefixItems", "contains", "propertyNames"),
        *_OPENING,
    )
)


def as_tools(tools: object) -> tuple[Tool, ...]:
    """The tools of a call as a tuple, () for None.

    Raises ConfigError for a value that is not a Tool, a name that is blank or not Unicode, and two tools of one name.
    """
    if tools is not None and not (isinstance(tools, Iterable) and not isinstance(tools, str | bytes | Mapping)):
        raise ConfigError(f"tools is {tools!r}, expected a list of tools")
    offered = tuple(tools or ())
    known: dict[str, Tool] = {}
    for tool in offered:
        if not isinstance(tool, Tool):
            raise ConfigError(f"tools holds {tool!r}, expected Tool objects")
        name: object = tool.name
        if not isinstance(name, str) or not name.strip() or not _is_unicode(name):
            raise ConfigError(f"a tool is named {name!r}, expected Unicode text that is not blank; give it a name")
        if known.setdefault(name, tool) != tool:
            raise ConfigError(f"two tools are named {name!r}; a call could not distinguish them, so rename one")
    return offered


def as_schema(schema: object) -> Mapping[str, Any]:
    """Checks a reply's schema. Raises ConfigError if it is not a dict, GrammarError if it is not a JSON schema."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"the {RESPONSE_SCHEMA} is {schema!r}, expected a JSON schema as a dict")
    unknown = schema.keys() - _DESCRIBING
    if unknown and not unknown & _ASSERTING:
        names = ", ".join(sorted(map(repr, unknown)))
        raise GrammarError(f"the {RESPONSE_SCHEMA} has {names}, expected keywords of JSON Schema, such as 'type'")
    return schema


def as_parameters(tool: Tool) -> Mapping[str, Any]:
    """A tool's parameters as the schema of an object. Raises ConfigError if they describe another type."""
    given: object = tool.parameters
    kind = given.get("type", "object") if isinstance(given, Mapping) else given
    if not isinstance(given, Mapping) or (kind != "object" and not (isinstance(kind, list) and "object" in kind)):
        raise ConfigError(
            f"tool {tool.name!r} has parameters of type {kind!r}, expected 'object'; put the value into a property"
        )
    return {**given, "type": "object"}


def held(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema in the form for a grammar, with implicit rules made explicit.

    Objects may have only the listed properties, unless the schema mentions others, because a small model invents
    properties that are not forbidden. A part with "properties" is an object, a part with "items" an array.
    """
    shared: frozenset[str] = frozenset()
    while True:
        found = set(shared)
        said = _part(schema, "#", found, alone=True)
        if found == shared:
            assert isinstance(said, dict)
            return said
        shared = frozenset(found)


def without_lookaround(schema: Any) -> Any:
    """The schema without patterns that use lookahead or lookbehind, because no grammar can express them."""
    if isinstance(schema, list):
        return [without_lookaround(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: without_lookaround(value)
        for key, value in schema.items()
        if not (key == "pattern" and isinstance(value, str) and _LOOKAROUND.search(value))
    }


def _part(schema: Any, at: str, shared: set[str], *, alone: bool) -> Any:
    """Converts the part of a schema at the reference `at`; see `held`.

    `alone`: whether no other part of the schema defines properties of the same object. `shared`: references to parts
    for which that is false; newly found ones are added.
    """
    if isinstance(schema, list):
        return [_part(each, f"{at}/{place}", shared, alone=alone) for place, each in enumerate(schema)]
    if not isinstance(schema, Mapping):
        return schema
    alone = alone and at not in shared
    undivided = alone and _count_property_parts(schema) <= 1
    if not undivided and isinstance(schema.get("$ref"), str):
        shared.add(schema["$ref"])
    said = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            said[key] = {name: _part(each, f"{at}/{key}/{name}", shared, alone=True) for name, each in value.items()}
        elif key in _COMBINING:
            said[key] = _part(value, f"{at}/{key}", shared, alone=undivided)
        elif key in _PARTS:
            said[key] = _part(value, f"{at}/{key}", shared, alone=True)
        elif key == "format" and value not in _FORMATS:
            del said[key]
    return _with_meaning(said, alone)


def _with_meaning(schema: dict[str, Any], alone: bool) -> dict[str, Any]:
    listed = isinstance(schema.get("properties"), Mapping)
    if not schema.keys() & {"type", "enum", "const", "$ref", *_COMBINING}:
        kind = "object" if listed else "array" if schema.keys() & {"items", "prefixItems"} else None
        schema |= {} if kind is None else {"type": kind}
    kinds = schema.get("type")
    objects = kinds == "object" or (isinstance(kinds, list) and "object" in kinds)
    if alone and listed and objects and not schema.keys() & _OPENING:
        schema["additionalProperties"] = False
    return schema


def _count_property_parts(schema: Mapping[str, Any]) -> int:
    """How many separate parts of the schema define properties of its object."""
    own = bool(schema.keys() & {"properties", "patternProperties", "additionalProperties", "required"})
    combined = schema.get("allOf")
    return own + len(combined if isinstance(combined, list) else ()) + len(schema.keys() & {"$ref", "anyOf", "oneOf"})


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
