"""The first layer: rules that need only the tools' JSON Schemas, and the last resort of every layer.

In: a `Scene`. Out: `Advice` in three parts, or None. Nothing here reads prose, except to repeat a description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from envtune_agents.hint_rules.phrases import BAD_VALUE
from envtune_agents.hint_rules.reading import reading_of
from envtune_agents.hint_rules.words import (
    closest,
    cut,
    described,
    parameters_of,
    quoted,
    quoted_names,
    shown,
    signature,
    type_of,
)
from envtune_agents.tool_schema import SchemaFaults, WrongType, schema_faults
from envtune_agents.types import Advice, FailureKind, Scene


@dataclass(frozen=True, slots=True)
class UnknownTool:
    """A call to a tool that is not visible now. Suggests only visible ones, so a held-back tool cannot leak."""

    name: str = "schema.unknown_tool"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.UNKNOWN_TOOL})

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind not in self.kinds:
            return None
        near = closest(scene.call.name, scene.tools)
        return Advice(
            problem=f"There is no tool named {quoted(scene.call.name)}.",
            constraint="Only the tools listed for you can be called, by exactly the names given there.",
            pointer=f"Similar names: {', '.join(near)}." if near else "Choose the listed tool whose description fits.",
        )


@dataclass(frozen=True, slots=True)
class UnknownArgument:
    """An argument the tool does not have; most often a wrong name for one that it requires."""

    name: str = "schema.unknown_argument"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.UNKNOWN_ARGUMENT})

    def __call__(self, scene: Scene) -> Advice | None:
        faults = _faults(scene, FailureKind.UNKNOWN_ARGUMENT)
        if faults is None:
            return None
        parameters = parameters_of(scene)
        return Advice(
            problem=f"{quoted(scene.call.name)} has no argument {quoted_names(faults.unknown)}.",
            constraint=f"Its arguments are: {signature(parameters)}.",
            pointer=_rename_pointer(faults, scene, parameters),
        )


@dataclass(frozen=True, slots=True)
class MissingArgument:
    """A required argument was left out."""

    name: str = "schema.missing_argument"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.MISSING_ARGUMENT})

    def __call__(self, scene: Scene) -> Advice | None:
        faults = _faults(scene, FailureKind.MISSING_ARGUMENT)
        if faults is None:
            return None
        parameters = parameters_of(scene)
        missing = quoted_names(faults.missing)
        types = "; ".join(f"{name} ({type_of(name, parameters)})" for name in faults.missing)
        about = [f"{name}: {text}" for name in faults.missing if (text := described(name, parameters))]
        return Advice(
            problem=f"{quoted(scene.call.name)} was called without its required argument {missing}.",
            constraint=f"Every call must give: {types}.",
            pointer=f"About the missing argument: {' '.join(about)}" if about else "",
        )


@dataclass(frozen=True, slots=True)
class WrongArgumentType:
    """An argument of another JSON type than declared, such as "20" where 20 is meant."""

    name: str = "schema.wrong_type"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.WRONG_TYPE})

    def __call__(self, scene: Scene) -> Advice | None:
        faults = _faults(scene, FailureKind.WRONG_TYPE)
        if faults is None:
            return None
        wrong = faults.wrong_type
        got = "; ".join(f"{fault.argument} was {_with_type(fault.value)}" for fault in wrong)
        return Advice(
            problem=f"{quoted(scene.call.name)} got an argument of the wrong type: {got}.",
            constraint=" ".join(f"{fault.argument} must be of type {fault.expected}." for fault in wrong),
            pointer=" ".join(_type_pointer(fault) for fault in wrong),
        )


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A reply whose tool call cannot be read; nothing was run."""

    name: str = "schema.malformed_call"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.MALFORMED_CALL})

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind not in self.kinds:
            return None
        return Advice(
            problem=f"The tool call could not be read, so nothing was run: {cut(scene.failure.message)}",
            constraint="A call is one complete JSON object with the keys name (a string) and arguments (an object).",
            pointer="Write the call again and check quotes, commas and that every bracket is closed.",
        )


@dataclass(frozen=True, slots=True)
class RefusedArgument:
    """A call that fits its schema, yet the tool's error repeats the value or the name of one of its arguments.

    Where a call has a single argument, an error that speaks of a bad value ("invalid syntax") is about that one. The
    advice is the argument's own description: what a reader would look up first. The value shown is the agent's own.
    """

    name: str = "schema.refused_argument"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.TOOL_ERROR})

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        argument = reading.argument
        if argument is None and len(scene.call.args) == 1 and BAD_VALUE.occur_in(reading.said):
            argument = next(iter(scene.call.args))
        if scene.failure.kind not in self.kinds or argument is None or argument not in dict(reading.arguments):
            return None
        text = described(argument, parameters_of(scene))
        return Advice(
            problem=f"{quoted(scene.call.name)} refused {argument} = {shown(scene.call.args[argument])}.",
            constraint=f"What {argument} must be: {text}" if text else "",
            pointer=f"The same call will fail again: change {argument}, or first call a tool that shows what fits.",
        )


def _faults(scene: Scene, kind: FailureKind) -> SchemaFaults | None:
    function = scene.tools.get(scene.call.name)
    if scene.failure.kind is not kind or function is None:
        return None
    faults = schema_faults(scene.call, function)
    return faults if faults.kind is kind else None


def _rename_pointer(faults: SchemaFaults, scene: Scene, parameters: Mapping[str, Any]) -> str:
    free = [name for name in parameters.get("properties") or {} if name not in scene.call.args]
    for name in faults.unknown:
        near = closest(name, faults.missing) or closest(name, free)
        if not near and len(faults.unknown) == len(faults.missing) == 1:
            near = list(faults.missing)
        if near:
            text = described(near[0], parameters)
            return f"{quoted(name)} probably means {near[0]}" + (f": {text}" if text else ".")
    if faults.missing:
        return f"Still missing: {', '.join(faults.missing)}."
    return f"Leave out {quoted_names(faults.unknown)}."


def _type_pointer(fault: WrongType) -> str:
    value, expected = fault.value, fault.expected
    if isinstance(value, list | tuple) and expected.startswith("array of"):
        return f"Write each item of {fault.argument} as {expected.removeprefix('array of ').removesuffix('s')}."
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str) == (expected == "string"):
        return f"Give {fault.argument} as {shown(value[0])}, without brackets around it."
    if isinstance(value, str) and expected != "string":
        try:
            plain = json.loads(value)
        except (ValueError, RecursionError):
            plain = None
        if plain is not None and isinstance(plain, list) == expected.startswith("array"):
            return f"Give {fault.argument} as {shown(plain)}, without quotes around it."
    if expected == "string" and isinstance(value, int | float):
        return f'Give {fault.argument} in quotes: "{shown(value)}".'
    if expected.startswith("array"):
        return f"Give {fault.argument} as a list, also when it holds one item."
    return f"Write {fault.argument} as {expected}, and nothing else."


def _with_type(value: Any) -> str:
    return "null" if value is None else f"{_json_type(value)} {shown(value)}"


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", type(None): "null"}
    return names.get(type(value), "array" if isinstance(value, list | tuple) else type(value).__name__)
