"""The shortest JSON that fits a schema: how much room a reply needs to close, and how much one step may add to that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_HOPS = 40
"""References and nested objects followed; a schema that needs more to hold its shortest value never ends."""
_PLAIN = {"string": '""', "integer": "0", "number": "0", "boolean": "true", "null": "null", "array": "[]"}


def shortest_json(schema: Any, root: Mapping[str, Any], hops: int = _MAX_HOPS) -> str | None:
    """About the shortest text that `schema` admits; None when a value of it would contain itself without end.

    `root` holds what `$ref` points into. Patterns and bounds of numbers are not looked at: a few characters too short.
    """
    if hops <= 0:
        return None
    if not isinstance(schema, Mapping):
        return "0"
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return min((json.dumps(value, ensure_ascii=False) for value in values), key=len, default="0")
    if isinstance(reference := schema.get("$ref"), str):
        return shortest_json(resolve(reference, root), root, hops - 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            found = [text for option in options if (text := shortest_json(option, root, hops - 1)) is not None]
            return min(found, key=len, default=None)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        return _shortest_object(schema, root, hops)
    if kind == "array" and (count := int(schema.get("minItems", 0))):
        item = shortest_json(schema.get("items"), root, hops - 1)
        return None if item is None else f"[{', '.join([item] * count)}]"
    if kind == "string":
        return '"' + "x" * int(schema.get("minLength", 0)) + '"'
    return _PLAIN.get(str(kind), "0")


def resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What a `$ref` inside `root` points to; {} where there is nothing."""
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        node = node.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(node, Mapping) else {}
    return node


def options(schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """What single steps may add to the rest of a reply: optional properties, items, values of maps, alternatives."""
    if not isinstance(schema, Mapping):
        return
    properties = schema.get("properties")
    required = schema.get("required") or ()
    for name, value in properties.items() if isinstance(properties, Mapping) else ():
        if name not in required and (text := shortest_json(value, root)) is not None:
            yield f", {json.dumps(name, ensure_ascii=False)}: {text}"
        yield from options(value, root)
    nested = [
        schema.get("items"),
        schema.get("additionalProperties"),
        *(schema.get("patternProperties") or {}).values(),
    ]
    for alternatives in ("anyOf", "oneOf"):
        nested += schema.get(alternatives) or ()
    for value in nested:
        if isinstance(value, Mapping) and (text := shortest_json(value, root)) is not None:
            yield f', "": {text}'
        yield from options(value, root)
    for definition in (schema.get("$defs") or {}).values():
        yield from options(definition, root)


def _shortest_object(schema: Mapping[str, Any], root: Mapping[str, Any], hops: int) -> str | None:
    properties = schema.get("properties")
    fields = []
    for name in schema.get("required") or ():
        value = properties.get(name) if isinstance(properties, Mapping) else None
        text = shortest_json(value, root, hops - 1)
        if text is None:
            return None
        fields.append(f"{json.dumps(name, ensure_ascii=False)}: {text}")
    return "{" + ", ".join(fields) + "}"
