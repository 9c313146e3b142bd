"""What a caller wants of a reply: which calls it may or must hold, and what its answer may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from envtune_agents.errors import ConstraintError

ToolChoice = str | bool | Mapping[str, Any] | None
"""None or "auto": as the model likes; "none" or False: no call; "any", "required" or True: at least one call; a tool's
name, or `{"type": "function", "function": {"name": …}}`: a call of that tool."""

Tool = Mapping[str, Any]
"""OpenAI-style: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

MAX_CALLS = 8
"""Most calls in one constrained reply when parallel calls are allowed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The shape of one reply."""

    calls: Literal["none", "may", "must"]
    """Whether the reply may, must or must not call tools."""
    tools: tuple[Tool, ...]
    """The tools that may be called."""
    max_calls: int
    """Most calls in the reply."""
    enforce: bool
    """Whether a call must name one of `tools` and follow its schema; if not, a call is whatever the model says."""
    answer: Mapping[str, Any] | None
    """JSON schema of a reply without calls; None is free text."""


def wanted(
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool | None = None,
    strict: bool = False,
    answer: Mapping[str, Any] | None = None,
) -> Wanted | None:
    """What the settings of one call demand, or None when they demand nothing.

    A demanded call stands alone unless `parallel` is True; calls that the model may make are limited to one only when
    `parallel` is False. Calls follow their schemas when they are demanded, when `strict`, and when the reply must
    otherwise be JSON.
    """
    demanded = chosen_tools(tools, choice)
    if demanded:
        return Wanted("must", tuple(demanded), MAX_CALLS if parallel else 1, enforce=True, answer=None)
    if not tools or choice in ("none", False):
        return Wanted("none", (), 0, enforce=False, answer=answer) if tools or answer is not None else None
    if answer is None and not strict and parallel is not False:
        return None
    most = 1 if parallel is False else MAX_CALLS
    return Wanted("may", tuple(tools), most, enforce=strict or answer is not None, answer=answer)


def chosen_tools(tools: Sequence[Tool], choice: ToolChoice) -> list[Tool]:
    """The tools that must be called under `choice`; [] when no call is demanded.

    Raises `ConstraintError` for a choice that names no visible tool, and for a demanded call without tools.
    """
    if choice in (None, "auto", "none", False):
        return []
    if not tools:
        raise ConstraintError(f"tool_choice {choice!r} demands a tool call, but no tools are bound.")
    if choice in ("any", "required", True):
        return list(tools)
    name = _choice_name(choice)
    named = [tool for tool in tools if tool_name(tool) == name]
    if not named:
        known = ", ".join(tool_name(tool) for tool in tools)
        raise ConstraintError(
            f"tool_choice names {name!r}, which is not bound. Known: auto, none, any, required, or one of {known}."
        )
    return named


def _choice_name(choice: ToolChoice) -> str:
    if isinstance(choice, Mapping):
        if choice.get("type") in ("any", "auto", "none"):
            raise ConstraintError(f"tool_choice {dict(choice)!r} is another API's form. Use {choice['type']!r} itself.")
        inner = choice.get("function", choice)
        return str(inner.get("name", "")) if isinstance(inner, Mapping) else ""
    return str(choice)


def tool_name(tool: Tool) -> str:
    """Name of an OpenAI-style tool."""
    return str(tool["function"]["name"])


def answer_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema that OpenAI's `response_format` asks of the answer; None for plain text.

    Known: `{"type": "text"}`; `{"type": "json_object"}`, any object, or one of its key "schema"; and
    `{"type": "json_schema", "json_schema": {"name", "schema"}}`. Raises `ConstraintError` for anything else.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema", {"type": "object"})
    elif kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
    else:
        raise ConstraintError(
            f"Unknown response_format {response_format!r}. Known: {{'type': 'text'}}, {{'type': 'json_object'}} and "
            "{'type': 'json_schema', 'json_schema': {'name': …, 'schema': …}}."
        )
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"response_format holds no JSON schema (got {schema!r}). Wanted: a dict.")
    return schema
