"""Calls in the JSON format: `{"name": …, "arguments": {…}}`, or a list of them.

In: the text between the tags. Out: calls and invalid calls. It accepts JSON and nothing near it (`repair` does that),
and coerces nothing: what the model wrote is what the tool gets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from envtune_agents.qwen.cursor import SPACE
from envtune_agents.qwen.reply import InvalidCall, ParsedCall, encodable

MAX_DEPTH: Final = 128
"""Brackets inside brackets beyond which a call is refused: far above any tool, far below the recursion limit."""
MAX_DIGITS: Final = 4300
"""Digits of one number beyond which a call is refused: Python's own limit for turning an int into text."""

_READABLE: Final = 65536  # characters searched for the name of a broken call
_MISSING: Final = object()
_STRING: Final = r'"[^"\\]*(?:\\.[^"\\]*)*"'
# An unfinished string is matched to the end: trying again at every quote inside it would take quadratic time.
_BRACKETS: Final = re.compile(rf'{_STRING}|".*|[\[\]{{}}]', re.DOTALL)
_TOKEN: Final = re.compile(
    rf"""(?P<string>{_STRING}|'[^'\\]*(?:\\.[^'\\]*)*'|“[^”]*”)|["'“].*|[\w$]+|[^\s]""", re.DOTALL
)


class BadJson(ValueError):  # noqa: N818 - never leaves the package: it becomes InvalidCall.error
    """Text that is not the JSON a call needs; its message is shown to the model."""


def load_json(text: str) -> Any:
    """The value of strict JSON text; raises `BadJson` for everything else, NaN, extreme sizes and lone surrogates."""
    if nesting(text) > MAX_DEPTH:
        raise BadJson(f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = _DECODER.decode(text)
    except BadJson:
        raise
    except json.JSONDecodeError as error:
        raise BadJson(f"not valid JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise BadJson(f"not valid JSON: {error}") from None
    if "\\u" in text or not text.isascii():
        check_encodable(value)
    return value


def nesting(text: str) -> int:
    """The deepest level of brackets outside double-quoted strings; the count stops above `MAX_DEPTH`."""
    depth = deepest = 0
    for found in _BRACKETS.finditer(text):
        token = found.group()
        if token in "{[":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif token in "}]":
            depth -= 1
    return deepest


def whole(digits: str) -> int:
    """The int that `digits` spell; `BadJson` beyond `MAX_DIGITS`."""
    if len(digits) > MAX_DIGITS:
        raise BadJson(f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


def fraction(digits: str) -> float:
    """The float that `digits` spell; `BadJson` when it is not finite."""
    value = float(digits)
    if not math.isfinite(value):
        raise BadJson("a number is too large")
    return value


def _no_constant(word: str) -> Any:
    raise BadJson(f"{word} is not a JSON value")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, parse_int=whole, parse_float=fraction)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)


def check_encodable(value: Any) -> None:
    """Raise `BadJson` when `value` holds a lone surrogate, which no UTF-8 message can carry."""
    try:
        _ENCODER.encode(value).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise BadJson("a string holds half of a surrogate pair") from error


def arguments_of(call: Mapping[str, Any], load: Any = load_json) -> dict[str, Any]:
    """The argument object of one call; `load` decodes a string that holds JSON (once, never twice)."""
    given = call.get("arguments", _MISSING)
    if given is _MISSING:
        given = call.get("parameters")
    if isinstance(given, str):
        given = load(given) if given.strip(SPACE) else {}
        if given is None:
            raise BadJson("arguments must be a JSON object, not the text null")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadJson(f"arguments must be a JSON object, not {_kind(given)}")
    return given


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    return {str: "a string", list: "a list", int: "a number", float: "a number"}.get(type(value), "null")


def name_of(value: object) -> str | None:
    """The stripped tool name of a decoded call, or None when there is none to read."""
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or not name.strip() or encodable(name) != name:
        return None
    return name.strip()


def calls_of(value: object, text: str, load: Any = load_json) -> list[ParsedCall | InvalidCall]:
    """The calls of one decoded block: one object or a non-empty list of them, each judged on its own."""
    if value == []:
        return [InvalidCall(None, text, "The tool call is an empty list.")]
    items = value if isinstance(value, list) else [value]
    return [_call(item, text, load) for item in items]


def _call(item: object, text: str, load: Any) -> ParsedCall | InvalidCall:
    if not isinstance(item, dict):
        return InvalidCall(None, text, f"The tool call must be a JSON object, not {_kind(item)}.")
    name = name_of(item)
    if name is None:
        return InvalidCall(None, text, 'The tool call has no "name".')
    try:
        return ParsedCall(name, arguments_of(item, load))
    except BadJson as error:
        return InvalidCall(name, text, f"The call of {name} is invalid: {error}.")


def read_name(text: str) -> str | None:
    """The tool name of a call that does not decode: a finished string under the key `name` of the outermost object."""
    depth = 0
    level: int | None = None
    before, key = "", ""
    for found in _TOKEN.finditer(text[:_READABLE]):
        token = found.group()
        if key and found["string"]:
            return _clean(token)
        key = ""
        if token in "{[":
            depth += 1
            level = depth if token == "{" and level is None else level
        elif token in "}]":
            depth -= 1
        elif token == ":" and depth == level and before.strip("\"'“”") == "name":
            key = before
        if level is not None and depth < level:
            return None
        before = token
    return None


def _clean(token: str) -> str | None:
    try:
        name = json.loads(token) if token[0] == '"' else token[1:-1]
    except ValueError:
        name = token[1:-1]
    return name_of({"name": name})
