"""One rollout <-> one line of JSON, and the schema of that line.

A line is the JSON of a `Rollout`. Only one thing differs from the record: since each step's prompt nearly always begins
with the step before it, `prompt_token_ids` is stored as `{"keep": n, "then": [...]}`: the first n ids of the previous
step's prompt and completion, followed by the new ids. Reading gives the full ids back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from envtune_agents.errors import RecordError
from envtune_agents.types import SCHEMA_VERSION, Rollout, RolloutStep

Ids = tuple[int, ...]


@cache
def _adapter() -> TypeAdapter[Rollout]:
    return TypeAdapter(Rollout)


@cache
def _ids() -> TypeAdapter[Ids]:
    return TypeAdapter(Ids)


def record_schema() -> dict[str, Any]:
    """The JSON Schema of one line of `rollouts.jsonl`."""
    schema = _adapter().json_schema(mode="serialization")
    ids = {"type": "array", "items": {"type": "integer"}}
    difference = {
        "type": "object",
        "properties": {"keep": {"type": "integer", "minimum": 0}, "then": ids},
        "required": ["keep", "then"],
        "additionalProperties": False,
        "description": "The first `keep` ids of the previous step's prompt and completion, then the ids in `then`.",
    }
    schema["$defs"]["RolloutStep"]["properties"]["prompt_token_ids"] = {"anyOf": [ids, difference]}
    return schema


def to_line(rollout: Rollout) -> bytes:
    """One line of the file, newline included."""
    steps = [step for turn in rollout.turns for step in turn.steps]
    record = _adapter().dump_python(_without_prompts(rollout), mode="json")
    before: Ids = ()
    for plain, step in zip(_steps(record), steps, strict=True):
        prompt = tuple(step.prompt_token_ids)
        keep = _common_prefix(before, prompt)
        plain["prompt_token_ids"] = {"keep": keep, "then": prompt[keep:]} if keep else prompt
        before = prompt + tuple(step.completion_token_ids)
    return _dumped(record) + b"\n"


def from_line(line: bytes | str) -> Rollout:
    """The rollout of one line; `RecordError` when the line is not one, or was written by a newer version."""
    try:
        record = _loaded(line)
        if int(record.get("schema_version", 1)) > SCHEMA_VERSION:
            raise RecordError(
                f"The record has schema version {record['schema_version']}; this version of envtune-agents reads up to "
                f"{SCHEMA_VERSION}. Install a newer one."
            )
        stored = [step.pop("prompt_token_ids", ()) for step in _steps(record)]
        return _with_prompts(_adapter().validate_python({"schema_version": 1, **record}), stored)
    except RecordError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise RecordError(f"Not a rollout record: {brief(error)}") from error


def _dumped(record: dict[str, Any]) -> bytes:
    """ASCII JSON, so that no reader takes a sign inside a text for the end of a line.

    pydantic writes in a quarter of the time, but leaves other signs as they are and refuses half a surrogate pair.
    """
    try:
        line = to_json(record, inf_nan_mode="constants")
    except ValueError:
        line = b"\xff"
    return line if line.isascii() else json.dumps(record, separators=(",", ":")).encode()


def _loaded(line: bytes | str) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line)


def brief(error: Exception) -> str:
    """The message of an error on one line, at most 300 characters."""
    text = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def _without_prompts(rollout: Rollout) -> Rollout:
    """The rollout with empty prompts: they are most of a record and stored in another form."""
    turns = tuple(
        replace(turn, steps=tuple(replace(step, prompt_token_ids=()) for step in turn.steps)) for turn in rollout.turns
    )
    return replace(rollout, turns=turns)


def _with_prompts(rollout: Rollout, stored: Sequence[Any]) -> Rollout:
    """The rollout with its prompts, each a list of ids or a difference from the step before."""
    left = iter(stored)
    before: Ids = ()

    def filled(step: RolloutStep) -> RolloutStep:
        nonlocal before
        given = next(left)
        if isinstance(given, dict):
            prompt = before[: int(given["keep"])] + _ids().validate_python(given["then"])
        else:
            prompt = _ids().validate_python(given or ())
        before = prompt + step.completion_token_ids
        return replace(step, prompt_token_ids=prompt)

    turns = tuple(replace(turn, steps=tuple(map(filled, turn.steps))) for turn in rollout.turns)
    return replace(rollout, turns=turns)


def _steps(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for turn in record["turns"]:
        yield from turn["steps"]


def _common_prefix(left: Ids, right: Ids) -> int:
    if right[: len(left)] == left:
        return len(left)
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
