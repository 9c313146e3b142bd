"""The settings of one call: what the chat model was made with, overridden by what the call brings, all checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from envtune_agents.errors import ConstraintError, TaskError, unknown
from envtune_agents.grammar import ToolChoice, answer_schema, chosen_tools

DECODING = ("temperature", "max_tokens", "top_p", "top_k", "seed", "logprobs")
"""Fields of the chat model that a call may override."""
_CALL_OPTIONS = frozenset(DECODING) | {
    "model", "tools", "tool_choice", "parallel_tool_calls", "strict", "response_format", "stream", "conversation",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How one reply is to be made."""

    temperature: float
    max_tokens: int
    top_p: float
    top_k: int
    seed: int | None
    logprobs: bool
    stop: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    """OpenAI-style."""
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    strict: bool = False
    response_format: Mapping[str, Any] | None = None
    """OpenAI-style."""
    model: str | None = None
    """Name of an adapter or of the base model; None is the base model."""
    conversation: str = ""
    """Which of this chat model's conversations asks; "" where the call does not say. They take turns in the engine."""

    @classmethod
    def of(cls, defaults: Any, stop: Sequence[str] | None, options: Mapping[str, Any]) -> CallSettings:
        """The settings of a call with `options` on a chat model with `defaults` as attributes.

        Raises `TypeError` for an option that does not exist, `TaskError` for a value out of range, `ConstraintError`
        for tools, a tool choice or a response format that make no sense.
        """
        _refuse_unknown(options)
        given = {name: options[name] if options.get(name) is not None else getattr(defaults, name) for name in DECODING}
        _check_ranges(given)
        tools = offered_tools(options.get("tools") or ())
        choice = options.get("tool_choice")
        chosen_tools(tools, choice)
        response_format = plain_response_format(options.get("response_format"))
        answer_schema(response_format)
        return cls(
            **given,
            stop=tuple(stop if stop is not None else defaults.stop or ()),
            tools=tuple(tools),
            tool_choice=choice,
            parallel_tool_calls=options.get("parallel_tool_calls"),
            strict=bool(options.get("strict")),
            response_format=response_format,
            model=options.get("model"),
            conversation=str(options.get("conversation") or ""),
        )

    @property
    def answer(self) -> Mapping[str, Any] | None:
        """JSON schema of a reply without calls; None for free text."""
        return answer_schema(self.response_format)


def offered_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools of any kind LangChain knows, OpenAI-style; `ConstraintError` names one that is no tool."""
    found = []
    for position, tool in enumerate(tools, start=1):
        try:
            shown = _whole(convert_to_openai_tool(tool), tool)
        except Exception as error:  # LangChain and pydantic raise six kinds for what they cannot read
            reason = str(error).strip().splitlines()
            raise ConstraintError(
                f"Tool {position} of {len(tools)} cannot be shown to a model ({reason[0] if reason else error!r}). "
                "Wanted: a LangChain tool, a function with type hints, a pydantic class, or a dict with 'name' and a "
                "JSON schema under 'parameters'."
            ) from error
        if not isinstance(shown.get("function"), dict) or not shown["function"].get("name"):
            raise ConstraintError(f"Tool {position} of {len(tools)} has no name: {str(shown)[:200]}.")
        found.append(shown)
    return found


def _whole(shown: dict[str, Any], tool: Any) -> dict[str, Any]:
    """`shown` with its schema as pydantic gives it where it contains itself: LangChain unfolds references, and cuts
    those that lead back."""
    kind = getattr(tool, "tool_call_schema", tool)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return shown
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})
    if not any(f"#/$defs/{name}" in json.dumps(definition) for name, definition in definitions.items()):
        return shown
    if reference := schema.get("$ref"):
        schema = {**definitions[reference.rpartition("/")[2]], "$defs": definitions}
    parameters = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {**shown, "function": {**shown["function"], "parameters": parameters}}


def plain_response_format(response_format: Any) -> dict[str, Any] | None:
    """OpenAI's dict for a response format; a pydantic class, TypedDict or JSON schema becomes "json_schema"."""
    if response_format is None:
        return None
    if isinstance(response_format, Mapping) and response_format.get("type") in ("text", "json_object", "json_schema"):
        return dict(response_format)
    if isinstance(response_format, Mapping) and not {"title", "properties", "$ref", "anyOf"} & set(response_format):
        return dict(response_format)  # its type is unknown: the grammar says which are known
    schema = convert_to_json_schema(response_format)
    return {"type": "json_schema", "json_schema": {"name": schema.get("title", "answer"), "schema": schema}}


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """A misspelt option must not be silently ignored; `ls_…` ones are LangChain's notes to its tracer."""
    strange = sorted(name for name in options if name not in _CALL_OPTIONS and not name.startswith("ls_"))
    if strange:
        raise TypeError(f"{unknown('option', strange[0], sorted(_CALL_OPTIONS | {'stop'}))}")


_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("0 or more; 0 is greedy", lambda value: value >= 0),
    "max_tokens": ("1 or more", lambda value: value >= 1),
    "top_p": ("above 0, at most 1", lambda value: 0 < value <= 1),
    "top_k": ("0 or more; 0 keeps every token", lambda value: value >= 0),
}


def _check_ranges(given: Mapping[str, Any]) -> None:
    for name, (wanted, holds) in _RANGES.items():
        try:
            good = bool(holds(given[name]))
        except TypeError:
            good = False
        if not good:
            raise TaskError(f"{name} is {given[name]!r}. Wanted: {wanted}.")
