"""One failed call as rules read it: what many of them ask is worked out once, whoever asks first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envtune_agents.hint_rules.words import argument_in
from envtune_agents.types import FailureKind, Scene

READ_CHARS = 2_000
RAN_KINDS = frozenset({FailureKind.TOOL_ERROR, FailureKind.EMPTY_RESULT})
"""The kinds of a call that fits its schema and reached its tool."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a scene tells about its failure."""

    said: str
    """The beginning of the failure's text in lower case: phrases are looked for three times as fast in it."""
    argument: str | None
    """The argument that the failure is about."""
    arguments: tuple[tuple[str, Mapping[str, Any]], ...]
    """The given arguments that the tool declares, the one that the failure is about first, each with its schema."""
    texts: tuple[tuple[str, str], ...]
    """The same arguments where their values are text, each with its value."""
    ran: bool
    """Whether a visible tool ran and failed by itself."""


def reading_of(scene: Scene) -> Reading:
    """The scene's reading, kept in its notes."""
    reading: Reading | None = scene.notes.get("reading")
    if reading is None:
        reading = scene.notes["reading"] = _read(scene)
    return reading


def _read(scene: Scene) -> Reading:
    message, args = scene.failure.message, scene.call.args
    function = scene.tools.get(scene.call.name)
    properties = ((function or {}).get("parameters") or {}).get("properties") or {}
    argument = argument_in(message, args)
    named_first = sorted(args, key=lambda name: name != argument) if len(args) > 1 else args
    arguments = [(name, properties[name]) for name in named_first if isinstance(properties.get(name), Mapping)]
    return Reading(
        said=message[:READ_CHARS].lower(),
        argument=argument,
        arguments=tuple(arguments),
        texts=tuple((name, args[name]) for name, _ in arguments if isinstance(args[name], str)),
        ran=scene.failure.kind in RAN_KINDS and function is not None,
    )
