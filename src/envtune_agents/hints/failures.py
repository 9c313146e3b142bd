"""Was this call a failure? The spellings of an error that tools use, and the kind of the failure.

In: a call, the tool's raw answer, the tools visible now. Out: a `ToolFailure` or None. What only a tool's owner can
recognise (a polite "00000") comes in through `detect`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

from envtune_agents.tool_schema import schema_faults
from envtune_agents.types import FailureKind, ToolCall, ToolFailure

FailureDetector = Callable[[ToolCall, str], ToolFailure | None]
"""Finds a failure in an answer that looks like success; see `types.DetectsFailures`."""

_ERROR_PREFIXES = (
    "error:",
    "error during execution",
    "error invoking tool",
    "error executing tool",
    "exception:",
    "traceback (most recent call last)",
)
_ERROR_KEYS = ("error", "errors", "Error", "error_message", "errorMessage")
_REASON_KEYS = ("message", "detail", "reason")
_PARSED_CHARS = 20_000


def classify_failure(
    call: ToolCall,
    raw_content: str,
    *,
    tools: Mapping[str, Mapping[str, Any]],
    detect: FailureDetector | None = None,
) -> ToolFailure | None:
    """The failure in a tool's answer, or None when the call did its job.

    Recognised spellings: `{"error": …}` (also "errors", "Error", "error_message", "errorMessage"), a list of one such
    object, `["Error: …"]` (as JSON or as a Python literal), text that begins with "Error:", "Exception:" or
    "Traceback", and an object that says so by `"status": "error"`, "failed" or "failure", `"success": false`, `"ok":
    false` or `"isError": true`. The kind is the call's first departure from the tool's schema, so that rules need not
    parse messages.
    """
    message = error_message(raw_content)
    if message is None:
        return detect(call, raw_content) if detect else None
    return ToolFailure(failure_kind(call, tools), message)


def failure_kind(call: ToolCall, tools: Mapping[str, Mapping[str, Any]]) -> FailureKind:
    """Why a call that is known to have failed did so, as far as the tools' schemas tell."""
    function = tools.get(call.name)
    if function is None:
        return FailureKind.UNKNOWN_TOOL
    return schema_faults(call, function).kind or FailureKind.TOOL_ERROR


def error_message(raw_content: str) -> str | None:
    """The error a tool's answer spells out, or None when it spells none."""
    text = raw_content.strip()
    if text[:40].lower().startswith(_ERROR_PREFIXES):
        return text
    return _error_in(_literal(text)) if text[:1] in ("{", "[") and _may_say_no(text) else None


def _may_say_no(text: str) -> bool:
    """Whether an object or a list holds a word of those that spell an error; others need not be parsed."""
    return (
        "rror" in text  # error, errors, isError, Error
        or "status" in text
        or "success" in text
        or 'ok"' in text
        or "ok'" in text
        or (text[0] == "[" and "error" in text.lower())
    )


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _PARSED_CHARS:
        return None
    try:
        return ast.literal_eval(text)  # tools that answer str([...]): literals only, nothing is run
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _error_in(answer: Any) -> str | None:
    if isinstance(answer, list) and len(answer) == 1:
        only = answer[0]
        if isinstance(only, str):
            return only if only.lower().startswith("error") else None
        return _error_in(only) if isinstance(only, dict) else None
    if not isinstance(answer, dict):
        return None
    error = next((answer[key] for key in _ERROR_KEYS if answer.get(key)), None)
    if error is not None and error is not True:
        return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False, default=str)
    says_no = (
        error is True
        or answer.get("status") in ("error", "failed", "failure")
        or answer.get("success") is False
        or answer.get("ok") is False
        or answer.get("isError") is True
    )
    if not says_no:
        return None
    return str(next((answer[key] for key in _REASON_KEYS if answer.get(key)), answer))
