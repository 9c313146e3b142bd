"""What a tool declares, and where a call departs from it.

In: LangChain tools and one call. Out: JSON Schema by tool name, and the call's faults against it. It judges nothing
that the schema does not say: values, formats in prose and state are for rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    to, keeps them under these keys: hint rules read them, the model is not shown them.
    """
    from langchain_core.utils.function_calling import convert_to_openai_tool

    functions = ({**convert_to_openai_tool(tool)["function"], **_extras(tool)} for tool in tools)
    return {function["name"]: function for function in functions}


def _extras(tool: BaseTool) -> dict[str, Any]:
    metadata = getattr(tool, "metadata", None) or {}
    wanted = {"response": Mapping, "api": str}
    return {key: metadata[key] for key, kind in wanted.items() if isinstance(metadata.get(key), kind)}


def same_objects(left: Sequence[object], right: Sequence[object]) -> bool:
    """Whether two menus hold the very same tools in the same order (comparing tools by value is slow)."""
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


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
    closed = not parameters.get("additionalProperties") and not parameters.get("patternProperties")
    checked = {name: value for name, value in call.args.items() if name in properties}
    return SchemaFaults(
        unknown=tuple(name for name in call.args if name not in properties) if closed else (),
        missing=tuple(name for name in parameters.get("required") or () if name not in call.args),
        wrong_type=tuple(
            WrongType(name, describe_type(properties[name], parameters), value)
            for name, value in checked.items()
            if not _fits(value, properties[name], parameters)
        ),
    )


def describe_type(schema: Schema, root: Schema) -> str:
    """The type a schema asks for, in words: "integer", "array of strings", "string or null", "any value"."""
    names = [_describe_one(option) for option in _options(schema, root)]
    return " or ".join(dict.fromkeys(names)) or "any value"


def _describe_one(option: Schema) -> str:
    name = str(option.get("type") or "any value")
    items = option.get("items")
    if name == "array" and isinstance(items, Mapping) and isinstance(items.get("type"), str):
        return f"array of {items['type']}s"
    return name


def _fits(value: Any, schema: Schema, root: Schema) -> bool:
    return any(_fits_one(value, option) for option in _options(schema, root))


def _fits_one(value: Any, option: Schema) -> bool:
    name = option.get("type")
    if name not in _PYTHON_TYPES:
        return True
    if isinstance(value, bool):
        return bool(name == "boolean")
    if name == "integer" and isinstance(value, float):
        return value.is_integer()  # JSON Schema: 1.0 is an integer
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
