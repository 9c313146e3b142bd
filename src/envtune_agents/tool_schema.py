"""What a tool declares, and where a call departs from it.

In: LangChain tools and one call. Out: JSON Schema by tool name, and the call's faults against it. It judges nothing
that the schema does not say: values, formats in prose and state are for rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

from envtune_agents.types import FailureKind, ToolCall

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

Schema = Mapping[str, Any]

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


def tool_schemas(tools: Iterable[BaseTool]) -> dict[str, dict[str, Any]]:
    """Each tool as `{"name", "description", "parameters"}` by its name, the way the model is shown it.

    A tool whose `metadata` holds "response", a JSON Schema of its answers, or "api", the name of the service it belongs
    to, keeps them under these keys: hint rules read them, the model is not shown them. What is no JSON Schema in a
    tool's declaration is left out, and said in words under "unreadable".
    """
    functions = [_function(tool) for tool in tools]
    return {function["name"]: function for function in functions}


def _function(tool: BaseTool) -> dict[str, Any]:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    try:
        function = convert_to_openai_tool(tool)["function"]
    except Exception as error:  # somebody else's declaration, read by somebody else's code
        reason = f"the tool's declaration cannot be read: {' '.join(str(error).split())[:200]}"
        return {"name": tool.name, "description": "", "parameters": {}, "unreadable": reason, **_extras(tool)}
    faults: list[str] = []
    described = {**function, "description": str(function.get("description") or "")}
    parameters = readable_schema(function.get("parameters") or {}, "parameters", faults)
    described["parameters"] = _with_descriptions(parameters, described["description"])
    extras = {
        key: readable_schema(value, key, faults) if key == "response" else value for key, value in _extras(tool).items()
    }
    return {**described, **extras, **({"unreadable": "; ".join(faults[:3])} if faults else {})}


def _extras(tool: BaseTool) -> dict[str, Any]:
    metadata = getattr(tool, "metadata", None) or {}
    wanted = {"response": Mapping, "api": str}
    return {key: metadata[key] for key, kind in wanted.items() if isinstance(metadata.get(key), kind)}


_SCHEMA_TYPES: dict[str, tuple[type, ...]] = {
    "$ref": (str,),
    "type": (str, list),
    "description": (str,),
    "required": (list,),
    "enum": (list,),
    "minimum": (int, float),
    "maximum": (int, float),
}
"""The keywords that hints read, and what they hold."""

_MAX_DEPTH = 30
_CHECKED_ITEMS = 100


def readable_schema(schema: Any, path: str, faults: list[str], depth: int = 0) -> dict[str, Any]:
    """The schema without what is not JSON Schema; each part left out is named in `faults`."""
    if isinstance(schema, bool):
        return {}  # JSON Schema: true admits everything
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        faults.append(f"{path} is {type(schema).__name__}, expected a JSON Schema object")
        return {}
    clean: dict[str, Any] = {}
    for key, value in schema.items():
        where = f"{path}.{key}"
        if key in ("properties", "$defs", "definitions"):
            clean[key] = _readable_parts(value, where, faults, depth)
        elif key in ("anyOf", "oneOf") and isinstance(value, list):
            clean[key] = [readable_schema(part, where, faults, depth + 1) for part in value]
        elif key == "items" and not isinstance(value, list):
            clean[key] = readable_schema(value, where, faults, depth + 1)
        elif _holds(key, value):
            clean[key] = value
        else:
            faults.append(f"{where} is {str(value)[:60]!r}")
    return clean


def _readable_parts(value: Any, path: str, faults: list[str], depth: int) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        faults.append(f"{path} is {type(value).__name__}, expected an object")
        return {}
    return {str(name): readable_schema(part, f"{path}.{name}", faults, depth + 1) for name, part in value.items()}


def _holds(key: str, value: Any) -> bool:
    if key in ("anyOf", "oneOf"):
        return False
    if key in ("type", "required") and isinstance(value, list):
        return all(isinstance(part, str) for part in value)
    return key not in _SCHEMA_TYPES or value is None or isinstance(value, _SCHEMA_TYPES[key])


_ARGUMENT_LINE = re.compile(r"\s*(?:[-*]\s+|:param\s+(?:\w+\s+)?)?`?(\w{1,60})`?\s*(?:\([^)]{0,80}\))?\s*:\s+(\S.*)")
_SECTION = re.compile(r"\s*(?:returns?|raises?|yields?|examples?|notes?)\s*:|\s*:(?:return|raise)", re.IGNORECASE)
_READ_LINES = 200


def _with_descriptions(parameters: dict[str, Any], docstring: str) -> dict[str, Any]:
    """The schema, where arguments without a description have that of the docstring ("Args:", ":param name:").

    LangChain's `@tool` leaves a docstring as it is unless it is told to parse it.
    """
    properties: dict[str, Any] = parameters.get("properties") or {}
    bare = {name for name, schema in properties.items() if not schema.get("description")}
    texts: dict[str, str] = {}
    current, depth = "", 0
    for line in docstring.splitlines()[:_READ_LINES] if bare else ():
        found, indent = _ARGUMENT_LINE.match(line), len(line) - len(line.lstrip())
        if found and found[1] in properties:
            current, depth, texts[found[1]] = found[1], indent, found[2].strip()
        elif not line.strip() or _SECTION.match(line) or (found and indent <= depth):
            current = ""
        elif current:
            texts[current] += f" {line.strip()}"
    if not bare & set(texts):
        return parameters
    filled = {
        name: {**schema, "description": texts[name]} if name in bare and name in texts else schema
        for name, schema in properties.items()
    }
    return {**parameters, "properties": filled}


def same_objects(left: Sequence[object], right: Sequence[object]) -> bool:
    """Whether two menus hold the very same tools in the same order (comparing tools by value is slow)."""
    return left is right or (len(left) == len(right) and all(map(is_, left, right)))


@dataclass(frozen=True, slots=True)
class WrongType:
    """One argument whose JSON type is not what the schema declares."""

    argument: str
    expected: str
    """Such as "integer" or "string or null"."""
    value: Any


@dataclass(frozen=True, slots=True)
class SchemaFaults:
    """Where a call departs from its tool's schema. Empty everywhere for a call that fits."""

    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wrong_type: tuple[WrongType, ...] = ()

    @property
    def kind(self) -> FailureKind | None:
        """The first fault's kind, in the order in which a Python signature would complain; None without faults."""
        if self.unknown:
            return FailureKind.UNKNOWN_ARGUMENT
        if self.missing:
            return FailureKind.MISSING_ARGUMENT
        return FailureKind.WRONG_TYPE if self.wrong_type else None


def schema_faults(call: ToolCall, function: Schema) -> SchemaFaults:
    """The faults of `call` against one entry of `tool_schemas`."""
    parameters: Schema = function.get("parameters") or {}
    properties: Schema = parameters.get("properties") or {}
    unknown, wrong_type = [], []
    for name, value in call.args.items():
        if name not in properties:
            unknown.append(name)
        elif not _fits(value, properties[name], parameters):
            wrong_type.append(WrongType(name, describe_type(properties[name], parameters), value))
    return SchemaFaults(
        unknown=tuple(unknown) if unknown and _is_closed(parameters) else (),
        missing=tuple(name for name in parameters.get("required") or () if name not in call.args),
        wrong_type=tuple(wrong_type),
    )


def _is_closed(parameters: Schema) -> bool:
    """Whether arguments that are not declared are faults. A tool that declares nothing at all takes anything."""
    if parameters.get("additionalProperties") or parameters.get("patternProperties"):
        return False
    return "properties" in parameters or parameters.get("additionalProperties") is False


def nested_schemas(schema: Schema, name: str, root: Schema) -> list[Schema]:
    """The schemas of the field `name` in an object, or in the objects of a list, that `schema` describes."""
    found: list[Schema] = []
    for option in _options(schema, root):
        items = option.get("items")
        inside = _options(items, root) if isinstance(items, Mapping) else [option]
        for part in inside:
            field = (part.get("properties") or {}).get(name)
            if isinstance(field, Mapping):
                found.append({**_resolve(field, root), **{key: value for key, value in field.items() if key != "$ref"}})
    return found


def describe_type(schema: Schema, root: Schema) -> str:
    """The type a schema asks for, in words: "integer", "array of strings", "string or null", "any value"."""
    names = [_describe_one(option) for option in ((schema,) if _is_plain(schema) else _options(schema, root))]
    return " or ".join(dict.fromkeys(names)) or "any value"


def _describe_one(option: Schema) -> str:
    name = str(option.get("type") or "any value")
    items = option.get("items")
    if name == "array" and isinstance(items, Mapping) and isinstance(items.get("type"), str):
        return f"array of {items['type']}s"
    return name


def _fits(value: Any, schema: Schema, root: Schema) -> bool:
    if _is_plain(schema):
        return _fits_one(value, schema)
    return any(_fits_one(value, option) for option in _options(schema, root))


def _is_plain(schema: Schema) -> bool:
    """Whether a schema names one type and leads nowhere else."""
    return type(schema.get("type")) is str and "$ref" not in schema and "anyOf" not in schema and "oneOf" not in schema


def _fits_one(value: Any, option: Schema) -> bool:
    name = option.get("type")
    if not isinstance(name, str) or name not in _PYTHON_TYPES:
        return True
    if isinstance(value, bool):
        return bool(name == "boolean")
    if name == "integer" and isinstance(value, float):
        return value.is_integer()  # JSON Schema: 1.0 is an integer
    if name == "array" and isinstance(value, list | tuple):
        items = option.get("items")
        simple = items if isinstance(items, Mapping) and isinstance(items.get("type"), str) else {}
        return all(_fits_one(item, simple) for item in value[:_CHECKED_ITEMS])
    return isinstance(value, _PYTHON_TYPES[name])


def _options(schema: Schema, root: Schema) -> list[Schema]:
    """The alternatives of a schema, each with at most one type name; references are followed inside `root` only."""
    schema = _resolve(schema, root)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives:
        return [option for alternative in alternatives for option in _options(alternative, root)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": name} for name in schema["type"]]
    return [schema]


def _resolve(schema: Schema, root: Schema) -> Schema:
    for _ in range(8):  # a chain of references longer than this is a loop
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        target: Any = root
        for part in reference.removeprefix("#/").split("/"):
            target = target.get(part, {}) if isinstance(target, Mapping) else {}
        schema = target if isinstance(target, Mapping) else {}
    return {}
