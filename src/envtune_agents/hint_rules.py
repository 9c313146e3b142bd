"""Rules that need only what the tools declare: the first layer, for any LangChain tool, without configuration.

In: a `Scene`. Out: `Advice` in three parts, or None. A rule looks only at the failure, the call, the tools visible
now and what the episode has shown; the only values it may repeat are the agent's own. Further layers (docs,
declarative files, generated rules) are other sequences of the same `HintRule`, passed to the engine beside or instead
of `DEFAULT_RULES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from envtune_agents.tool_schema import SchemaFaults, WrongType, describe_type, schema_faults
from envtune_agents.types import Advice, FailureKind, HintRule, Scene

_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class UnknownTool:
    """A call to a tool that is not visible now. Suggests only visible ones, so a held-back tool cannot leak."""

    name: str = "schema.unknown_tool"

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind is not FailureKind.UNKNOWN_TOOL:
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

    def __call__(self, scene: Scene) -> Advice | None:
        faults = _faults(scene, FailureKind.UNKNOWN_ARGUMENT)
        if faults is None:
            return None
        parameters = _parameters(scene)
        return Advice(
            problem=f"{quoted(scene.call.name)} has no argument {_names(faults.unknown)}.",
            constraint=f"Its arguments are: {_signature(parameters)}.",
            pointer=_rename_pointer(faults, scene, parameters),
        )


@dataclass(frozen=True, slots=True)
class MissingArgument:
    """A required argument was left out."""

    name: str = "schema.missing_argument"

    def __call__(self, scene: Scene) -> Advice | None:
        faults = _faults(scene, FailureKind.MISSING_ARGUMENT)
        if faults is None:
            return None
        parameters = _parameters(scene)
        types = "; ".join(f"{name} ({_type_of(name, parameters)})" for name in faults.missing)
        described = [f"{name}: {text}" for name in faults.missing if (text := _description(name, parameters))]
        return Advice(
            problem=f"{quoted(scene.call.name)} was called without its required argument {_names(faults.missing)}.",
            constraint=f"Every call must give: {types}.",
            pointer=f"About the missing argument: {' '.join(described)}" if described else "",
        )


@dataclass(frozen=True, slots=True)
class WrongArgumentType:
    """An argument of another JSON type than declared, such as "20" where 20 is meant."""

    name: str = "schema.wrong_type"

    def __call__(self, scene: Scene) -> Advice | None:
        faults = _faults(scene, FailureKind.WRONG_TYPE)
        if faults is None:
            return None
        wrong = faults.wrong_type
        got = "; ".join(f"{fault.argument} was {_json_type(fault.value)} {_shown(fault.value)}" for fault in wrong)
        return Advice(
            problem=f"{quoted(scene.call.name)} got an argument of the wrong type: {got}.",
            constraint=" ".join(f"{fault.argument} must be of type {fault.expected}." for fault in wrong),
            pointer=" ".join(_type_pointer(fault) for fault in wrong),
        )


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A reply whose tool call cannot be read; nothing was run."""

    name: str = "schema.malformed_call"

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind is not FailureKind.MALFORMED_CALL:
            return None
        return Advice(
            problem=f"The tool call could not be read, so nothing was run: {_cut(scene.failure.message)}",
            constraint="A call is one complete JSON object with the keys name (a string) and arguments (an object).",
            pointer="Write the call again and check quotes, commas and that every bracket is closed.",
        )


@dataclass(frozen=True, slots=True)
class RefusedArgument:
    """A call that fits its schema, yet the tool's error repeats the value or the name of one of its arguments.

    The advice is the argument's own description: what a reader would look up first. The value shown is the agent's own.
    """

    name: str = "schema.refused_argument"

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind is not FailureKind.TOOL_ERROR or scene.call.name not in scene.tools:
            return None
        argument = _argument_in(scene.failure.message, scene.call.args)
        if argument is None or argument not in (_parameters(scene).get("properties") or {}):
            return None
        described = _description(argument, _parameters(scene))
        return Advice(
            problem=f"{quoted(scene.call.name)} refused {argument} = {_shown(scene.call.args[argument])}.",
            constraint=f"What {argument} must be: {described}" if described else "",
            pointer=f"The same call will fail again: change {argument}, or first call a tool that shows what fits.",
        )


def _argument_in(message: str, args: Mapping[str, Any]) -> str | None:
    """The argument that an error is about: the one with the longest value it repeats, else one that it names."""
    repeated = [name for name, value in args.items() if len(str(value)) > 1 and str(value) in message]
    if repeated:
        return max(repeated, key=lambda name: len(str(args[name])))
    words = set(re.findall(r"\w+", message.lower()))
    return next((name for name in args if name.lower() in words), None)


DEFAULT_RULES: tuple[HintRule, ...] = (
    MalformedCall(),
    UnknownTool(),
    UnknownArgument(),
    MissingArgument(),
    WrongArgumentType(),
    RefusedArgument(),
)
"""The first layer: schema rules, in the order in which they are asked."""


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of the `known` names most like `name`, best first; a prefix such as "Api." is ignored."""
    by_folded = {_fold(candidate): candidate for candidate in known}
    wanted = _fold(name.rsplit(".", 1)[-1])
    near = get_close_matches(wanted, by_folded, n=n, cutoff=0.6)
    parts = [key for key in by_folded if len(wanted) > 2 and (wanted in key or key in wanted) and len(key) > 2]
    return [by_folded[key] for key in dict.fromkeys([*near, *parts])][:n]


def quoted(name: str) -> str:
    """A name the model wrote, shortened and in quotes."""
    return f"'{_cut(name, 60)}'"


def _faults(scene: Scene, kind: FailureKind) -> SchemaFaults | None:
    function = scene.tools.get(scene.call.name)
    if scene.failure.kind is not kind or function is None:
        return None
    faults = schema_faults(scene.call, function)
    return faults if faults.kind is kind else None


def _parameters(scene: Scene) -> Mapping[str, Any]:
    return scene.tools[scene.call.name].get("parameters") or {}


def _rename_pointer(faults: SchemaFaults, scene: Scene, parameters: Mapping[str, Any]) -> str:
    free = [name for name in parameters.get("properties") or {} if name not in scene.call.args]
    for name in faults.unknown:
        near = closest(name, faults.missing) or closest(name, free)
        if not near and len(faults.unknown) == len(faults.missing) == 1:
            near = list(faults.missing)
        if near:
            text = _description(near[0], parameters)
            return f"{quoted(name)} probably means {near[0]}" + (f": {text}" if text else ".")
    if faults.missing:
        return f"Still missing: {', '.join(faults.missing)}."
    return f"Leave out {_names(faults.unknown)}."


def _type_pointer(fault: WrongType) -> str:
    if isinstance(fault.value, str) and fault.expected != "string":
        try:
            plain = json.loads(fault.value)
        except (ValueError, RecursionError):
            return f"Look at {fault.argument}."
        return f"Give {fault.argument} as {_shown(plain)}, without quotes around it."
    if fault.expected == "string" and isinstance(fault.value, int | float):
        return f'Give {fault.argument} in quotes: "{_shown(fault.value)}".'
    if fault.expected.startswith("array"):
        return f"Give {fault.argument} as a list, also when it holds one item."
    return f"Look at {fault.argument}."


def _signature(parameters: Mapping[str, Any]) -> str:
    required = set(parameters.get("required") or ())
    parts = [
        f"{name} ({_type_of(name, parameters)}, {'required' if name in required else 'optional'})"
        for name in parameters.get("properties") or {}
    ]
    return ", ".join(parts) or "none"


def _type_of(name: str, parameters: Mapping[str, Any]) -> str:
    return describe_type((parameters.get("properties") or {}).get(name) or {}, parameters)


def _description(name: str, parameters: Mapping[str, Any]) -> str:
    schema = (parameters.get("properties") or {}).get(name) or {}
    text = " ".join(str(schema.get("description") or "").split())
    return _cut(text, 240)


def _names(names: Iterable[str]) -> str:
    return ", ".join(quoted(name) for name in names)


def _shown(value: Any) -> str:
    try:
        return _cut(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return _cut(str(value))


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", type(None): "null"}
    return names.get(type(value), "array" if isinstance(value, list | tuple) else type(value).__name__)


def _fold(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _cut(text: str, chars: int = _SHOWN_CHARS) -> str:
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[: chars - 1]}…"
