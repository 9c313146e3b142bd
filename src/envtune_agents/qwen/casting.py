"""From the text of an XML parameter to a value, as the tool's JSON Schema says.

In: tools and text. Out: a JSON value. Text that does not cast stays text, so that validation can say what is wrong with
it; a parameter the schema does not know is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from envtune_agents.qwen.cursor import SPACE
from envtune_agents.qwen.json_calls import BadJson, fraction, load_json, whole

Loader = Callable[[str], Any]
Tools = Iterable[Mapping[str, Any]]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ALIASES: Final = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
    "tuple": "array",
}
"""Type names that BFCL and other tool documents use for those of JSON Schema."""
_MAX_HOPS: Final = 32
_NO_CAST: Final = object()


def schemas_by_name(tools: Tools | None) -> dict[str, Mapping[str, Any]]:
    """The parameter schema of each tool by its name; OpenAI-style or bare declarations, anything else is skipped."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools or ():
        inner = tool.get("function", tool)
        function = inner if isinstance(inner, Mapping) else tool
        name, parameters = function.get("name"), function.get("parameters")
        if isinstance(name, str):
            found[name] = parameters if isinstance(parameters, Mapping) else {}
    return found


def cast(text: str, parameter: str, schema: Mapping[str, Any], load: Loader = load_json) -> Any:
    """The value of `text` for one parameter of `schema` (a whole parameters object).

    The alternatives of a union are tried in the order of the schema; null counts first, and only where it is allowed.
    """
    properties = schema.get("properties")
    declared = properties.get(parameter) if isinstance(properties, Mapping) else None
    found = _kinds(declared, schema, _MAX_HOPS)
    kinds = list(dict.fromkeys(_ALIASES.get(kind, kind) for kind in found))
    bare = text.strip(SPACE)
    if "null" in kinds and bare == "null":
        return None
    for kind in kinds:
        value = text if kind == "string" else _as(kind, bare, load)
        if value is not _NO_CAST:
            return value
    return text


def _kinds(node: Any, root: Mapping[str, Any], hops: int) -> Iterator[str]:
    """The JSON types that `node` admits, in its order; `hops` bounds references that lead back to themselves."""
    if not isinstance(node, Mapping) or hops <= 0:
        return
    declared = node.get("type")
    if declared is not None:
        yield from (kind for kind in ([declared] if isinstance(declared, str) else declared) if isinstance(kind, str))
    elif "properties" in node or "additionalProperties" in node:
        yield "object"
    elif "items" in node or "prefixItems" in node:
        yield "array"
    elif "const" in node or isinstance(node.get("enum"), list):
        yield from map(_kind_of, node.get("enum") or [node.get("const")])
    if node.get("nullable") is True:
        yield "null"
    if isinstance(node.get("$ref"), str):
        yield from _kinds(_resolve(node["$ref"], root), root, hops - 1)
    for word in ("anyOf", "oneOf", "allOf"):
        branches = node.get(word)
        for branch in branches if isinstance(branches, list) else ():
            yield from _kinds(branch, root, hops // 2)


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return node


def _as(kind: str, text: str, load: Loader) -> Any:
    try:
        if kind == "integer":
            return whole(text) if _INTEGER.fullmatch(text) else _NO_CAST
        if kind == "number":
            return _number(text)
        if kind == "boolean":
            return {"true": True, "false": False}.get(text.lower(), _NO_CAST)
        if kind in ("object", "array"):
            value = load(text)
            return value if isinstance(value, dict if kind == "object" else list) else _NO_CAST
    except BadJson:
        pass
    return _NO_CAST


def _number(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return whole(text)
    return fraction(text) if _NUMBER.fullmatch(text) else _NO_CAST
