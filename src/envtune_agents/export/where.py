"""A filter such as `reward > 0 and hints == 0` -> a function on rollouts. Read as a syntax tree, never evaluated."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from envtune_agents.errors import FilterError
from envtune_agents.summary import outcomes_of
from envtune_agents.types import Rollout

MAX_CHARS = 2_000
"""Longer filters are refused unread."""

FIELDS: dict[str, Callable[[Rollout], Any]] = {
    "rollout_id": lambda rollout: rollout.rollout_id,
    "task_id": lambda rollout: rollout.task_id,
    "category": lambda rollout: rollout.category,
    "model": lambda rollout: rollout.model,
    "stage": lambda rollout: rollout.stage,
    "seed": lambda rollout: rollout.seed,
    "sample": lambda rollout: rollout.sample,
    "hint_level": lambda rollout: rollout.hint_level,
    "reward": lambda rollout: rollout.reward,
    "solved": lambda rollout: rollout.solved,
    "error": lambda rollout: rollout.error,
    "stop_reason": lambda rollout: rollout.stop_reason.value,
    "n_turns": lambda rollout: rollout.n_turns,
    "turns": lambda rollout: len(rollout.turns),
    "steps": lambda rollout: sum(len(turn.steps) for turn in rollout.turns),
    "calls": lambda rollout: sum(1 for _ in outcomes_of(rollout)),
    "failures": lambda rollout: sum(outcome.failure is not None for outcome in outcomes_of(rollout)),
    "hints": lambda rollout: sum(outcome.hint is not None for outcome in outcomes_of(rollout)),
    "tools": lambda rollout: tuple({outcome.name: None for outcome in outcomes_of(rollout)}),
    "input_tokens": lambda rollout: rollout.usage.input_tokens,
    "output_tokens": lambda rollout: rollout.usage.output_tokens,
    "seconds": lambda rollout: rollout.timings.total_s,
    "drifted": lambda rollout: rollout.tape.drifted if rollout.tape else 0,
    "branches": lambda rollout: rollout.tape.branches if rollout.tape else 0,
}
"""What a filter may name. `hints` counts the hints shown, `tools` holds the names called."""

Value = Callable[[Rollout], Any]

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def parse_where(text: str) -> Callable[[Rollout], bool]:
    """The filter that `text` describes: True for the rollouts to keep.

    Known are the names in `FIELDS`, numbers, texts, True, False, None, tuples of these, `and or not`, comparisons,
    `in` and `not in`, and `+ - * /`. A comparison with a missing value (the reward of a rollout with an error) is
    False. Raises `FilterError` with the position for anything else.
    """
    if len(text) > MAX_CHARS:
        raise FilterError(f"A filter has at most {MAX_CHARS} characters; this one has {len(text)}.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        column = error.offset - 1 if error.offset else len(text.strip())  # no offset: it ends too early
        raise FilterError(_at(text.strip(), column, error.msg)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise FilterError(f"Cannot read the filter {text[:80]!r}: {error}.") from None
    try:
        value = _value(tree.body, text.strip())
    except RecursionError:
        raise FilterError(f"The filter {text[:80]!r} is nested too deeply.") from None

    def keeps(rollout: Rollout) -> bool:
        try:
            return bool(value(rollout))
        except (TypeError, ArithmeticError, RecursionError) as error:
            raise FilterError(f"The filter {text!r} cannot judge {rollout.rollout_id}: {error}.") from error

    return keeps


def _at(text: str, column: int, problem: str) -> str:
    known = ", ".join(FIELDS)
    return (
        f"Cannot read the filter at character {column + 1}: {problem}.\n  {text}\n  {' ' * column}^\n"
        f"Expected something like 'reward > 0 and hints == 0'. Known names: {known}."
    )


def _value(node: ast.expr, text: str) -> Value:
    """The function that gives a node's value for a rollout."""
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as constant):
            return lambda _: constant
        case ast.Name(id=name) if name in FIELDS:
            return FIELDS[name]
        case ast.Name(id=name):
            raise FilterError(_at(text, node.col_offset, f"unknown name {name!r}"))
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            values = [_value(part, text) for part in parts]
            return lambda rollout: tuple(value(rollout) for value in values)
        case ast.BoolOp(op=op, values=parts):
            values = [_value(part, text) for part in parts]
            joined = all if isinstance(op, ast.And) else any
            return lambda rollout: joined(value(rollout) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            denied = _value(part, text)
            return lambda rollout: not denied(rollout)
        case ast.UnaryOp(op=ast.USub(), operand=part):
            number = _value(part, text)
            return lambda rollout: -number(rollout)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _joined(_ARITHMETIC[type(op)], _value(left, text), _value(right, text))
        case ast.Compare():
            return _comparison(node, text)
    raise FilterError(_at(text, node.col_offset, f"{type(node).__name__} is not allowed in a filter"))


def _joined(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    return lambda rollout: operation(left(rollout), right(rollout))


def _comparison(node: ast.Compare, text: str) -> Value:
    values = [_value(part, text) for part in (node.left, *node.comparators)]
    tests = list(zip(map(type, node.ops), values, values[1:], strict=False))

    def holds(rollout: Rollout) -> bool:
        return all(_compared(kind, left(rollout), right(rollout)) for kind, left, right in tests)

    return holds


def _compared(kind: type[ast.cmpop], left: Any, right: Any) -> bool:
    ordered = kind in (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    if ordered and (left is None or right is None):
        return False
    return _COMPARE[kind](left, right)
