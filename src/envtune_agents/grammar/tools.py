"""What a tool choice means, and argument schemas with every length bounded, so that a reply always closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envtune_agents.errors import ConstraintError

ToolChoice = str | bool | Mapping[str, Any] | None
"""None or "auto": as the model likes; "none" or False: no call; "any", "required" or True: at least one call; a tool's
name, or `{"type": "function", "function": {"name": …}}`: a call of that tool."""

MAX_STRING = 256
"""Most characters of a string argument whose schema gives no `maxLength`; fewer when the reply's budget is small."""
MAX_ITEMS = 8
"""Most items of an array whose schema gives no `maxItems`, and most keys of an object that names none."""
MAX_NUMBER = 10**12
"""Largest absolute value of a number whose schema gives no bound; numbers have at most six decimals."""
_KEY_PATTERN = "^[A-Za-z_][A-Za-z0-9_]{0,23}$"
_STRING_KEYS = frozenset({"maxLength", "pattern", "format", "enum", "const"})
_NUMBER_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_TYPE_KEYS = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "items", "not"})


def chosen_tools(tools: Sequence[Mapping[str, Any]], choice: ToolChoice) -> list[Mapping[str, Any]]:
    """The tools that must be called under `choice`; [] when no call is demanded.

    `tools`: OpenAI-style, each `{"type": "function", "function": {"name", "parameters", …}}`. Raises `ConstraintError`
    for a choice that names no visible tool, and for a demanded call without tools.
    """
    if choice in (None, "auto", "none", False):
        return []
    if not tools:
        raise ConstraintError(f"tool_choice {choice!r} demands a tool call, but no tools are bound.")
    if choice in ("any", "required", True):
        return list(tools)
    wanted = _choice_name(choice)
    named = [tool for tool in tools if tool_name(tool) == wanted]
    if not named:
        known = ", ".join(tool_name(tool) for tool in tools)
        raise ConstraintError(
            f"tool_choice names {wanted!r}, which is not bound. Known: auto, none, any, required, or one of {known}."
        )
    return named


def _choice_name(choice: ToolChoice) -> str:
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        return str(inner.get("name", "")) if isinstance(inner, Mapping) else ""
    return str(choice)


def tool_name(tool: Mapping[str, Any]) -> str:
    """Name of an OpenAI-style tool."""
    return str(tool["function"]["name"])


def bounded_schema(schema: Any, *, max_string: int = MAX_STRING) -> dict[str, Any]:
    """A copy of a JSON schema in which every string, array, number and free-form object has a bound.

    Bounds that the schema gives itself stay. An object that names its properties admits no others. A value of no
    declared type becomes a scalar, and the values of an object without named properties become scalars too.
    """
    if not isinstance(schema, Mapping) or not (_TYPE_KEYS & set(schema)):
        return {"anyOf": _scalars(max_string)}
    copy = {key: value for key, value in schema.items() if key not in ("default", "examples", "title", "description")}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in copy:
            copy[key] = [bounded_schema(option, max_string=max_string) for option in copy[key]]
    for key in ("$defs", "definitions"):
        if key in copy:
            copy[key] = {name: bounded_schema(value, max_string=max_string) for name, value in copy[key].items()}
    types = copy.get("type")
    for name in types if isinstance(types, list) else [types]:
        copy = _bound_type(str(name), copy, max_string)
    return copy


def _bound_type(name: str, schema: dict[str, Any], max_string: int) -> dict[str, Any]:
    if name == "string" and not _STRING_KEYS & set(schema):
        return {**schema, "maxLength": max(max_string, int(schema.get("minLength", 0)))}
    if name in ("integer", "number") and not {"enum", "const"} & set(schema):
        return _bound_number(name, schema)
    if name == "array":
        items = bounded_schema(schema.get("items"), max_string=max_string)
        most = max(MAX_ITEMS, int(schema.get("minItems", 0)))
        return {"maxItems": most, **schema, "items": items}
    if name == "object" or "properties" in schema:
        return _bound_object(schema, max_string)
    return schema


def _bound_number(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    bounded = dict(schema)
    if not {"minimum", "exclusiveMinimum"} & set(schema):
        bounded["minimum"] = -MAX_NUMBER
    if not {"maximum", "exclusiveMaximum"} & set(schema):
        bounded["maximum"] = MAX_NUMBER
    if name == "number" and "multipleOf" not in schema:
        bounded["multipleOf"] = 0.000001
    return bounded


def _bound_object(schema: dict[str, Any], max_string: int) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    if properties:
        bounded = {name: bounded_schema(value, max_string=max_string) for name, value in properties.items()}
        return {**schema, "properties": bounded, "additionalProperties": False}
    extra = schema.get("additionalProperties", True)
    if extra is False:
        return {**schema, "properties": {}}
    values = bounded_schema(extra, max_string=max_string) if isinstance(extra, Mapping) else None
    return {
        "maxProperties": MAX_ITEMS,
        **{key: value for key, value in schema.items() if key != "properties"},
        "patternProperties": {_KEY_PATTERN: values or {"anyOf": _scalars(max_string)}},
        "additionalProperties": False,
    }


def _scalars(max_string: int) -> list[dict[str, Any]]:
    scalars: list[dict[str, Any]] = [{"type": name} for name in ("string", "number", "boolean", "null")]
    return [_bound_type(str(option["type"]), option, max_string) for option in scalars]
