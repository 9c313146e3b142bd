"""Calls in the XML format: `<function=name>` with one `<parameter=key>` for each argument.

In: the functions a scan has told apart (`blocks`). Out: calls and invalid calls. The text of a value is cast by the
tool's schema (`casting`); a function is run only when its end was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envtune_agents.qwen.cursor import SPACE
from envtune_agents.qwen.json_calls import name_of
from envtune_agents.qwen.reply import InvalidCall, ParsedCall, encodable

Cast = Callable[[str, str, str], Any]
"""(tool name, parameter, text) -> value."""


@dataclass(slots=True)
class XmlFunction:
    """One `<function=…>` as it was found."""

    name: str | None
    """The text behind `=`, or None when its `>` is missing."""
    values: list[tuple[str, str]] = field(default_factory=list)
    """(parameter name, text between its tags), in order."""
    ended: bool = False
    """Whether `</function>` or `</tool_call>` proves that nothing was cut."""
    fault: str = ""
    """What is wrong with it, or an empty string."""


def xml_call(function: XmlFunction, text: str, cast: Cast) -> ParsedCall | InvalidCall:
    """The call that `function` spells; `text` is its block, for the record."""
    name = name_of({"name": function.name})
    fault = function.fault
    if name is None:
        fault = fault or "the function has no name"
    elif not function.ended:
        fault = fault or "it ends before </function>, so something may be missing"
    elif any(encodable(key + value) != key + value for key, value in function.values):
        fault = fault or "a string holds half of a surrogate pair"
    if fault or name is None:
        return InvalidCall(name, text, f"The tool call is invalid: {fault}.")
    return ParsedCall(name, {key: cast(name, key, trim(value)) for key, value in function.values})


def trim(value: str) -> str:
    """`value` without the one newline on each side that the format adds; everything else is the model's."""
    for newline in ("\r\n", "\n"):
        if value.startswith(newline):
            value = value[len(newline) :]
            break
    for newline in ("\r\n", "\n"):
        if value.endswith(newline):
            return value[: -len(newline)]
    return value


def is_blank(text: str) -> bool:
    """Whether `text` is nothing but layout."""
    return not text.strip(SPACE)
