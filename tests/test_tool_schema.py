from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel

from envtune_agents.tool_schema import describe_type, schema_faults, tool_schemas
from envtune_agents.types import FailureKind, ToolCall


class Point(BaseModel):
    x: int


MIX = {
    "name": "mix",
    "parameters": {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "i": {"type": "integer"},
            "n": {"type": "number"},
            "b": {"type": "boolean"},
            "a": {"type": "array", "items": {"type": "string"}},
            "opt": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "many": {"type": ["string", "null"]},
            "ref": {"$ref": "#/$defs/Point"},
            "loop": {"$ref": "#/$defs/Loop"},
            "free": {},
        },
        "required": ["s"],
        "$defs": {"Point": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}},
    },
}


@pytest.mark.parametrize(
    ("argument", "value", "fits"),
    [
        ("i", 1, True),
        ("i", 1.0, True),
        ("i", 1.5, False),
        ("i", True, False),
        ("i", "1", False),
        ("n", 1, True),
        ("n", False, False),
        ("b", True, True),
        ("b", 1, False),
        ("a", ["x"], True),
        ("a", "x", False),
        ("opt", None, True),
        ("opt", 3, True),
        ("opt", "3", False),
        ("many", None, True),
        ("many", 3, False),
        ("ref", {}, True),
        ("ref", [], False),
        ("loop", object(), True),
        ("free", object(), True),
    ],
)
def test_a_value_fits_exactly_when_its_json_type_does(argument: str, value: Any, fits: bool) -> None:
    faults = schema_faults(ToolCall("mix", {"s": "", argument: value}), MIX)
    assert (faults.wrong_type == ()) is fits


def test_the_first_fault_names_the_kind() -> None:
    def kind(**args: Any) -> FailureKind | None:
        return schema_faults(ToolCall("mix", args), MIX).kind

    assert kind(s="x") is None
    assert kind() is FailureKind.MISSING_ARGUMENT
    assert kind(x=1) is FailureKind.UNKNOWN_ARGUMENT
    assert kind(s=1) is FailureKind.WRONG_TYPE


def test_an_open_schema_has_no_unknown_arguments() -> None:
    open_schema = {"parameters": {"type": "object", "properties": {}, "additionalProperties": True}}
    assert schema_faults(ToolCall("f", {"anything": 1}), open_schema).kind is None


def test_types_in_words() -> None:
    properties = MIX["parameters"]["properties"]  # type: ignore[index]
    words = {name: describe_type(schema, MIX["parameters"]) for name, schema in properties.items()}  # type: ignore[arg-type]
    assert words["a"] == "array of strings"
    assert words["opt"] == "integer or null"
    assert words["free"] == "any value"


def test_any_langchain_tool_has_a_schema() -> None:
    @tool
    def move(to: Point, fast: bool = False) -> str:
        """Move somewhere."""
        return ""

    function = tool_schemas([move])["move"]
    assert function["description"] == "Move somewhere."
    assert schema_faults(ToolCall("move", {"to": {"x": 1}}), function).kind is None
    assert schema_faults(ToolCall("move", {"to": 3}), function).kind is FailureKind.WRONG_TYPE
