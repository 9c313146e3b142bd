"""A call as a person types it -> a `ToolCall`: `cd(folder="a")`, `cd("a")` or `{"name": "cd", "arguments": {…}}`.

Arguments are Python or JSON literals, read without running anything. Positional arguments take the names of the tool's
parameters in order.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from envtune_agents.errors import TaskError
from envtune_agents.types import ToolCall

MAX_CHARS = 20_000


def parse_call_text(text: str, tools: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    """The call that `text` spells; `TaskError` says why it spells none. `tools` are `tool_schemas` of what is
    visible."""
    text = text.strip()
    if len(text) > MAX_CHARS:
        raise TaskError(f"A call of {len(text):,} characters is longer than {MAX_CHARS:,}.")
    try:
        return _from_json(text) if text.startswith("{") else _from_python(text, tools)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        reason = str(error).split("(<")[0].strip() or type(error).__name__
        forms = 'name(argument="value") or {"name": …, "arguments": …}'
        raise TaskError(f"Not a call: {reason}. Write {forms}.") from error


def _from_json(text: str) -> ToolCall:
    call = json.loads(text)
    name, args = call["name"], call.get("arguments") or {}
    if not isinstance(name, str) or not isinstance(args, dict):
        raise ValueError("name is a string and arguments an object")
    return ToolCall(name, args)


def _from_python(text: str, tools: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError("a call looks like name(argument=value)")
    name = ast.unparse(call.func)
    known = (tools.get(name, {}).get("parameters") or {}).get("properties") or {}
    parameters = list(known) if name in tools else [f"argument_{index}" for index in range(len(call.args))]
    if len(call.args) > len(parameters):
        raise ValueError(f"{name} takes {len(parameters)} positional arguments, got {len(call.args)}")
    args = {key: ast.literal_eval(value) for key, value in zip(parameters, call.args, strict=False)}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in args:
            raise ValueError(f"the argument {keyword.arg or '**'} is given twice or not by name")
        args[keyword.arg] = ast.literal_eval(keyword.value)
    return ToolCall(name, args)
