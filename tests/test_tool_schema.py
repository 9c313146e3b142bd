from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from envtune_agents.tool_schema import describe_type, readable_schema, schema_faults, tool_schemas
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


def test_the_items_of_an_array_are_checked_too() -> None:
    schema = {
        "parameters": {"properties": {"a": {"type": "array", "items": {"type": "string"}}, "b": {"type": "array"}}}
    }
    assert schema_faults(ToolCall("f", {"a": ["x"], "b": [1]}), schema).kind is None
    assert schema_faults(ToolCall("f", {"a": ["x", 1]}), schema).kind is FailureKind.WRONG_TYPE


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"properties": ["a"]}, "properties is list"),
        ({"properties": {"a": "string"}}, "parameters.properties.a is str"),
        ({"properties": {"a": {"type": {"x": 1}}}}, "properties.a.type"),
        ({"properties": {"a": {"type": [{"x": 1}]}}}, "properties.a.type"),
        ({"properties": {"a": {"anyOf": "x"}}}, "properties.a.anyOf"),
        ({"properties": {"a": {"enum": 5, "description": 7, "minimum": "x"}}}, "properties.a.enum"),
        ({"properties": {}, "required": [1]}, "parameters.required"),
        ({"properties": {"a": {"items": 3}}}, "properties.a.items is int"),
    ],
)
def test_what_is_no_schema_is_left_out_and_said(parameters: dict[str, Any], said: str) -> None:
    faults: list[str] = []
    clean = readable_schema({"type": "object", **parameters}, "parameters", faults)
    assert said in faults[0]
    assert schema_faults(ToolCall("f", {"a": 1}), {"parameters": clean}).wrong_type == ()


def test_a_schema_that_is_fine_stays_as_it_is() -> None:
    faults: list[str] = []
    assert readable_schema(MIX["parameters"], "parameters", faults) == MIX["parameters"]
    assert faults == []
    assert readable_schema({"properties": {"a": True}}, "p", faults) == {"properties": {"a": {}}}
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"properties": {"a": deep}}
    readable_schema(deep, "p", faults)
    assert faults


def test_a_tool_that_declares_nothing_takes_anything() -> None:
    assert schema_faults(ToolCall("f", {"a": 1}), {"parameters": {}}).kind is None
    assert schema_faults(ToolCall("f", {"a": 1}), {"parameters": {"properties": {}}}).kind is not None


def test_arguments_are_described_by_the_docstring_too() -> None:
    @tool
    def book(seats: int, day: str, note: str = "") -> str:
        """Book a room: the first that is free.

        Args:
            seats: How many people come,
                between 1 and 40.
            day (str): The day in the format YYYY-MM-DD.
            other: no argument of this tool.

        Returns:
            note: not about the argument
        """
        return ""

    properties = tool_schemas([book])["book"]["parameters"]["properties"]
    assert properties["seats"]["description"] == "How many people come, between 1 and 40."
    assert properties["day"]["description"] == "The day in the format YYYY-MM-DD."


def test_a_description_of_the_schema_comes_before_the_docstring() -> None:
    class Args(BaseModel):
        a: int = Field(description="From the schema.")
        b: int

    @tool(args_schema=Args)
    def add(a: int, b: int) -> str:
        """Add.

        :param a: from the docstring
        :param int b: the second
        """
        return ""

    properties = tool_schemas([add])["add"]["parameters"]["properties"]
    assert properties["a"]["description"] == "From the schema."
    assert properties["b"]["description"] == "the second"
