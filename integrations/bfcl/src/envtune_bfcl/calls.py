"""BFCL call text, such as `cd(folder='docs')` -> a call, read as literals and never evaluated by Python.

Follows BFCL's executor (`execute_multi_turn_func_call`), which rewrites the text by a regular expression and then
passes it to `eval`. Here the same text is parsed into a syntax tree, and only literals, arithmetic on them and calls
of the episode's own methods have a meaning; everything else answers with an error.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envtune_agents.types import ToolCall
from envtune_bfcl.data import parameter_names

MAX_TEXT_CHARS = 262_144
"""Longer call texts are refused unread; the official executor has no such limit."""

Resolve = Callable[[ast.expr], Callable[..., Any]]
"""From the function part of a call to the method to run; raises NameError for anything else."""

_CALLED_NAME = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")
_REFUSED = frozenset({"kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run"})
_CACHED_CHARS = 4096
_NOTHING = ast.Constant(None)
_NUMBER = (int, float, complex)
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}


# --- calls in and out ---


def parse_call(text: str) -> ToolCall:
    """The call that a BFCL call text makes, with positional arguments named after the official docs.

    A nested call stays as its source text. Raises ValueError, with Python's own message, for a text that does not
    parse or is not one call of a plain name.
    """
    try:
        node = _tree(text)
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"not a call of a tool: {text[:80]}")
    names = parameter_names().get(node.func.id, ())
    args: dict[str, Any] = {}
    for index, value in enumerate(node.args):
        args[names[index] if index < len(names) else f"argument_{index + 1}"] = _shown(value)
    args.update({keyword.arg or "**": _shown(keyword.value) for keyword in node.keywords})
    return ToolCall(node.func.id, args)


def called_name(text: str) -> str:
    """The tool name that a text which need not parse begins with, or ""."""
    found = re.match(r"\s*([a-zA-Z_]\w*)\s*(?:\(|$)", text[:200])
    return found[1] if found else ""


def call_text(call: ToolCall) -> str:
    """The call text of a tool call, as BFCL's `convert_to_function_call` writes it."""
    return f"{call.name}({','.join(f'{name}={value!r}' for name, value in call.args.items())})"


def _shown(node: ast.expr) -> Any:
    try:
        return evaluate(node, _no_calls)
    except Exception:
        return ast.unparse(node)


def _no_calls(function: ast.expr) -> Callable[..., Any]:
    raise NameError(ast.unparse(function))


# --- preparing a text to run ---


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call text that parsed."""

    method: str
    """Name of the called method for the plain form `name(…)`, else ""."""
    node: ast.expr
    """The tree to evaluate; without meaning when `kwargs` is there."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    """The arguments where all are immutable literals; None when they must be made afresh for each run."""


def prepare(text: str, instance_of: Callable[[str], str | None]) -> Prepared:
    """Parse `text` as BFCL's executor would see it. `instance_of`: a method's instance name, None for other names.

    The plain form is parsed as it stands. Otherwise the official rewriting is applied first: every `name(`, also one
    inside a string argument, becomes `instance.name(` and loses the space before its bracket.
    Raises what Python's `eval` would: SyntaxError, ValueError, MemoryError …, and Exception for a refused name.
    """
    if len(text) <= _CACHED_CHARS and (plain := _plain(text)):
        return plain
    if len(text) > _CACHED_CHARS and (plain := _read_plain(text)):
        return plain
    rewritten = _CALLED_NAME.sub(lambda found: _with_instance(found[1], instance_of), text)
    _refuse(rewritten)
    return Prepared("", _tree(rewritten))


def plain_call(text: str) -> Prepared | None:
    """The call of a plain text `name(…)`, whose meaning is the same in every world; None for any other text."""
    try:
        return _plain(text) if len(text) <= _CACHED_CHARS else _read_plain(text)
    except Exception:
        return None


def parsed_arguments(text: str) -> tuple[str, Sequence[Any], Mapping[str, Any]] | None:
    """Name, positional and named arguments of a plain text; None where it is none, or they are not all literals."""
    call = plain_call(text)
    if call is None:
        return None
    if call.kwargs is not None:
        return call.method, call.args, call.kwargs
    try:
        return (call.method, *arguments(call.node, _no_calls)) if isinstance(call.node, ast.Call) else None
    except Exception:
        return None


def _with_instance(name: str, instance_of: Callable[[str], str | None]) -> str:
    instance = instance_of(name)
    return f"{instance}.{name}" if instance else name


def _read_plain(text: str) -> Prepared | None:
    found = _CALLED_NAME.search(text)
    if found is None or text[: found.start()].strip(" \t") or _CALLED_NAME.search(text, found.end()):
        return None
    _refuse(text[: found.end(1)])
    node = _tree(text)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    args, kwargs = _constant_arguments(node)
    return Prepared(found[1], node if kwargs is None else _NOTHING, args, kwargs)


_plain = lru_cache(maxsize=4096)(_read_plain)


def _refuse(text: str) -> None:
    """The official guard: some names are refused by comparing text, whatever they would call."""
    name = text.split("(")[0]
    name = name.split(".")[1] if "." in name else name
    if name in _REFUSED:
        raise Exception(f"Function call {name} is not allowed.")


def _constant_arguments(call: ast.Call) -> tuple[tuple[Any, ...], Mapping[str, Any] | None]:
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    if not all(isinstance(value, ast.Constant) for value in values) or any(k.arg is None for k in call.keywords):
        return (), None
    args, kwargs = arguments(call, _no_calls)
    return tuple(args), kwargs


def _tree(text: str) -> ast.expr:
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(f"call text of {len(text)} characters is longer than {MAX_TEXT_CHARS}")
    source = text.lstrip(" \t")  # as `eval` does
    if "\\" in source:
        with warnings.catch_warnings():  # an unknown escape such as "\d" warns, and is kept as it stands
            warnings.simplefilter("ignore")
            body = ast.parse(source, "<string>", "eval").body
    else:
        body = ast.parse(source, "<string>", "eval").body
    nested = source.count("(") > 1
    for node in ast.walk(body) if nested else (body,):
        _refuse_repeated_keyword(node)
    return body


def _refuse_repeated_keyword(node: ast.AST) -> None:
    """Python says so when compiling, which comes after parsing and before running."""
    seen: set[str] = set()
    for keyword in node.keywords if isinstance(node, ast.Call) else ():
        if keyword.arg in seen:
            raise SyntaxError(f"keyword argument repeated: {keyword.arg} (<string>, line {keyword.lineno})")
        if keyword.arg:
            seen.add(keyword.arg)


# --- giving a syntax tree its value ---


def evaluate(node: ast.expr, resolve: Resolve) -> Any:
    """The value of a tree of literals, arithmetic and calls that `resolve` knows. Raises what Python would."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return _items(items, resolve)
        case ast.Tuple(elts=items):
            return tuple(_items(items, resolve))
        case ast.Set(elts=items):
            return set(_items(items, resolve))
        case ast.Dict():
            return _dict(node, resolve)
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](evaluate(operand, resolve))
        case ast.BinOp():
            return _arithmetic(node, resolve)
        case ast.Call():
            method = resolve(node.func)
            args, kwargs = arguments(node, resolve)
            return method(*args, **kwargs)
        case ast.Name(id=name):
            raise NameError(f"name '{name}' is not defined")
        case ast.Attribute(value=value, attr=attr):
            raise AttributeError(f"'{type(evaluate(value, resolve)).__name__}' object has no attribute '{attr}'")
    raise ValueError(f"only literals and tool calls can be run, not {type(node).__name__}")


def arguments(call: ast.Call, resolve: Resolve) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a call, made afresh: no list or dict in them outlives this run's."""
    args = _items(call.args, resolve)
    kwargs: dict[str, Any] = {}
    for keyword in call.keywords:
        value = evaluate(keyword.value, resolve)
        kwargs.update(value if keyword.arg is None else {keyword.arg: value})
    return args, kwargs


def _items(items: Iterable[ast.expr], resolve: Resolve) -> list[Any]:
    values: list[Any] = []
    for item in items:
        if isinstance(item, ast.Starred):
            values.extend(evaluate(item.value, resolve))
        else:
            values.append(evaluate(item, resolve))
    return values


def _dict(node: ast.Dict, resolve: Resolve) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            values.update(evaluate(value, resolve))
        else:
            values[evaluate(key, resolve)] = evaluate(value, resolve)
    return values


def _arithmetic(node: ast.BinOp, resolve: Resolve) -> Any:
    left, right = evaluate(node.left, resolve), evaluate(node.right, resolve)
    numbers = isinstance(left, _NUMBER) and isinstance(right, _NUMBER)
    joined = type(node.op) is ast.Add and type(left) is type(right) and isinstance(left, str | list | tuple)
    if type(node.op) not in _BINARY or not (numbers or joined):  # no power, no repeated text: neither has a bound
        raise ValueError(f"only sums, differences, products and quotients of numbers, not {ast.unparse(node)[:80]}")
    return _BINARY[type(node.op)](left, right)
