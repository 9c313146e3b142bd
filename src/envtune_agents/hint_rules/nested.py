"""A fault inside an argument: a field of an object, or of the objects in a list, that an error names by its path.

In: a `Scene`. Out: `Advice`, or None. Pydantic and LangGraph write the path ("parcel.to.zip_code: Field required");
what the field must be is in the tool's schema. No pattern of a schema is run on a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from envtune_agents.hint_rules.prose import enumeration, value_range
from envtune_agents.hint_rules.reading import READ_CHARS
from envtune_agents.hint_rules.words import cut, parameters_of, quoted, shown
from envtune_agents.tool_schema import describe_type, nested_schemas
from envtune_agents.types import Advice, FailureKind, Scene

_PATH = re.compile(r"\b\w{1,60}(?:\.\w{1,60}){1,6}\b")
_INDEX = re.compile(r"\.\d+(?=\.|$)")
_NAMED = 3


@dataclass(frozen=True, slots=True)
class NestedField:
    """A field inside an argument was left out or does not fit."""

    name: str = "schema.nested_field"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.TOOL_ERROR})

    def __call__(self, scene: Scene) -> Advice | None:
        inside = any(isinstance(value, Mapping | list | tuple) for value in scene.call.args.values())
        if scene.failure.kind not in self.kinds or scene.call.name not in scene.tools or not inside:
            return None
        root = parameters_of(scene)
        named = list(_named(scene.failure.message[:READ_CHARS], scene.call.args))
        fields = [(path, schema) for path in named if (schema := _field(path, root)) is not None][:_NAMED]
        if not fields:
            return None
        missing = [path for path, _ in fields if not _values_at(path, scene.call.args)]
        wrong = [path for path, _ in fields if path not in missing]
        left_out = [f"{quoted(scene.call.name)} was called without {', '.join(missing)}."] if missing else []
        unfit = [f"{path} = {shown(_values_at(path, scene.call.args)[0])} does not fit." for path in wrong]
        parents = ", ".join(dict.fromkeys(path.rpartition(".")[0] for path, _ in fields))
        return Advice(
            problem=" ".join([*left_out, *unfit]),
            constraint=" ".join(f"{path} must be {_wanted(schema, root)}." for path, schema in fields),
            pointer=f"Change only what is inside {parents}, and make the same call again.",
        )


def _named(message: str, args: Mapping[str, Any]) -> Iterator[str]:
    """The paths in an error that begin at an argument, without places in lists."""
    paths = (_INDEX.sub("", found) for found in _PATH.findall(message))
    return iter(dict.fromkeys(path for path in paths if "." in path and path.partition(".")[0] in args))


def _field(path: str, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of the field at a path; None when the tool declares none."""
    schemas: list[Mapping[str, Any]] = [root]
    for name in path.split("."):
        schemas = [found for schema in schemas for found in nested_schemas(schema, name, root)]
    return schemas[0] if schemas else None


def _values_at(path: str, value: Any) -> list[Any]:
    """What a call gave at a path, for each object of a list; [] when it gave nothing."""
    values = [value]
    for name in path.split("."):
        values = [one for found in values for one in (found if isinstance(found, list | tuple) else [found])]
        values = [found[name] for found in values if isinstance(found, Mapping) and name in found]
    return values


def _wanted(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    about = str(schema.get("description") or "")
    kind = describe_type(schema, root)
    listed, allowed = enumeration(about, schema), value_range(about, schema)
    parts = [
        f"one of: {cut(', '.join(listed), 300)}" if listed else f"of type {kind}",
        allowed.words if allowed and kind in ("integer", "number") else "",
        f"of the form {cut(schema['pattern'])}" if isinstance(schema.get("pattern"), str) else "",
    ]
    said = f" ({cut(about)})" if about and not listed else ""
    return ", ".join(part for part in parts if part) + said
