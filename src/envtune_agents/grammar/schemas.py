"""JSON schemas as llguidance takes them, with lengths bounded, so that even an untuned model closes its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_STRING = 4096
"""Most characters of a string whose schema gives no `maxLength`; fewer when the reply's budget is smaller."""
MAX_ITEMS = 64
"""Most items of an array whose schema gives no `maxItems`, and most keys of an object that names none."""
MAX_NUMBER = 10**12
"""Largest absolute value of a number whose schema gives no bound; numbers have at most six decimals."""
FORMATS = frozenset(
    ["date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]  # llguidance 1.9
)
"""String formats that are enforced; another one is left to whoever validates the arguments."""

_ALIASES = {"str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean"} | {
    "dict": "object",
    "list": "array",
    "tuple": "array",
}
"""Type names of Python in tool documents (BFCL's among them)."""
_KEY_PATTERN = '^[^\\x00-\\x1f"\\\\]{1,64}$'
_NOTES = ("default", "examples", "title", "description")
_UNENFORCED = ("uniqueItems", "contentEncoding", "contentMediaType")
_STRING_KEYS = frozenset({"maxLength", "pattern", "format", "enum", "const"})
_TYPE_KEYS = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "items", "not"})


def bounded_schema(schema: Any, *, max_string: int = MAX_STRING) -> dict[str, Any]:
    """A copy of a JSON schema in which every string, array, number and free-form object has a bound.

    Bounds that the schema gives itself stay. An object that names its properties admits no others. A value of no
    declared type becomes a scalar, and the values of an object without named properties become scalars too.
    `uniqueItems`, formats outside `FORMATS`, and the number of an object's named properties are not enforced.
    """
    if not isinstance(schema, Mapping) or not (_TYPE_KEYS & set(schema)) or schema.get("type") == "any":
        return {"anyOf": _scalars(max_string)}
    copy = {key: value for key, value in schema.items() if key not in (*_NOTES, *_UNENFORCED)}
    parts = copy.get("allOf")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping):
        del copy["allOf"]
        return bounded_schema({**copy, **parts[0]}, max_string=max_string)
    for key in ("anyOf", "oneOf"):
        if isinstance(copy.get(key), list):
            copy[key] = [bounded_schema(option, max_string=max_string) for option in copy[key]]
    for key in ("$defs", "definitions"):
        if isinstance(copy.get(key), Mapping):
            copy[key] = {name: bounded_schema(value, max_string=max_string) for name, value in copy[key].items()}
    types = copy.get("type")
    names = [_ALIASES.get(str(name), str(name)) for name in (types if isinstance(types, list) else [types])]
    if types is not None:
        copy["type"] = names if isinstance(types, list) else names[0]
    for name in names:
        copy = _bound_type(name, copy, max_string)
    return copy


def _bound_type(name: str, schema: dict[str, Any], max_string: int) -> dict[str, Any]:
    if name == "string":
        return _bound_string(schema, max_string)
    if name in ("integer", "number") and not {"enum", "const"} & set(schema):
        return _bound_number(name, schema)
    if name == "array":
        return _bound_array(schema, max_string)
    if name == "object" or "properties" in schema:
        return _bound_object(schema, max_string)
    return schema


def _bound_string(schema: dict[str, Any], max_string: int) -> dict[str, Any]:
    if schema.get("format") not in FORMATS:
        schema = {key: value for key, value in schema.items() if key != "format"}
    if _STRING_KEYS & set(schema):
        return schema
    return {**schema, "maxLength": max(max_string, int(schema.get("minLength", 0)))}


def _bound_number(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    bounded = dict(schema)
    if not {"minimum", "exclusiveMinimum"} & set(schema):
        bounded["minimum"] = -MAX_NUMBER
    if not {"maximum", "exclusiveMaximum"} & set(schema):
        bounded["maximum"] = MAX_NUMBER
    if name == "number" and "multipleOf" not in schema:
        bounded["multipleOf"] = 0.000001
    return bounded


def _bound_array(schema: dict[str, Any], max_string: int) -> dict[str, Any]:
    bounded = {"maxItems": max(MAX_ITEMS, int(schema.get("minItems", 0))), **schema}
    if isinstance(first := schema.get("prefixItems"), list):
        bounded["prefixItems"] = [bounded_schema(item, max_string=max_string) for item in first]
        bounded["maxItems"] = max(bounded["maxItems"], len(first))
    if schema.get("items") is not False:
        bounded["items"] = bounded_schema(schema.get("items"), max_string=max_string)
    return bounded


def _bound_object(schema: dict[str, Any], max_string: int) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    if not isinstance(properties, Mapping):
        return schema  # broken: llguidance says how
    if properties:
        bounded = {name: bounded_schema(value, max_string=max_string) for name, value in properties.items()}
        kept = {key: value for key, value in schema.items() if key not in ("minProperties", "maxProperties")}
        return {**kept, "properties": bounded, "additionalProperties": False}
    extra = schema.get("additionalProperties", True)
    if extra is False:
        return {**schema, "properties": {}}
    values = bounded_schema(extra, max_string=max_string) if isinstance(extra, Mapping) else None
    kept = {key: value for key, value in schema.items() if key not in ("properties", "minProperties")}
    return {
        "maxProperties": MAX_ITEMS,
        **kept,
        "patternProperties": {_KEY_PATTERN: values or {"anyOf": _scalars(max_string)}},
        "additionalProperties": False,
    }


def _scalars(max_string: int) -> list[dict[str, Any]]:
    scalars: list[dict[str, Any]] = [{"type": name} for name in ("string", "number", "boolean", "null")]
    return [_bound_type(str(option["type"]), option, max_string) for option in scalars]
