"""Answers in JSON: every method, every kind of schema, whatever the weights would like to say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.errors import ConstraintError
from envtune_agents.testing import tiny_qwen

pytest.importorskip("torch")
pytest.importorskip("llguidance")

METHODS = ("function_calling", "json_schema", "json_mode")


class Trip(BaseModel):
    """A trip."""

    city: str = Field(description="where to")
    days: int = Field(ge=1, le=30)
    stops: list[str] = []
    guide: str | None = None


class TripV1(BaseModelV1):
    """A trip."""

    city: str
    days: int


class TripDict(TypedDict):
    """A trip."""

    city: Annotated[str, ..., "where to"]
    days: Annotated[int | None, None, "how long"]


class Folder(BaseModel):
    """A folder."""

    name: str
    inside: list[Folder] = []


JSON_SCHEMA = {
    "title": "Trip",
    "description": "A trip.",
    "type": "object",
    "properties": {"city": {"type": "string"}, "by": {"enum": ["train", "bus"]}},
    "required": ["city", "by"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_qwen(tmp_path_factory.mktemp("tiny"))
    release_engines()


def chat(folder: Path, **options: Any) -> ChatTransformers:
    return ChatTransformers(
        **{"model": folder, "precision": "fp32", "temperature": 1.0, "max_tokens": 96, "seed": 1, **options}
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Trip, TripV1, Folder])
def test_a_class_gives_instances_invoked_and_streamed(folder: Path, method: Any, schema: Any) -> None:
    for seed in range(3):
        chain = chat(folder, seed=seed).with_structured_output(schema, method=method)
        answer = chain.invoke("Plan it.")
        assert isinstance(answer, schema)
        assert list(chain.stream("Plan it."))[-1] == answer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [TripDict, JSON_SCHEMA, Trip.model_json_schema()])
async def test_any_other_schema_gives_dicts(folder: Path, method: Any, schema: Any) -> None:
    answer = await chat(folder).with_structured_output(schema, method=method).ainvoke("Plan it.")
    assert isinstance(answer, dict)
    assert "city" in answer
    if isinstance(schema, dict):
        jsonschema.validate(answer, schema)


@pytest.mark.parametrize("method", METHODS)
def test_the_raw_message_comes_along(folder: Path, method: Any) -> None:
    found = chat(folder).with_structured_output(Trip, method=method, include_raw=True).invoke("Plan it.")
    assert isinstance(found["raw"], AIMessage)
    assert isinstance(found["parsed"], Trip)
    assert found["parsing_error"] is None


def test_what_cannot_be_read_is_reported(folder: Path) -> None:
    """Three tokens hold no answer: the message is kept, with the reason."""
    model = chat(folder, max_tokens=3)
    found = model.with_structured_output(Trip, method="json_schema", include_raw=True).invoke("Plan it.")
    assert found["parsed"] is None
    assert found["parsing_error"] is not None
    assert found["raw"].response_metadata["finish_reason"] == "length"


def test_only_json_schema_tells_the_model_the_schema(folder: Path) -> None:
    def prompt(method: Any, messages: Any = "Plan it.") -> str:
        model = chat(folder)
        raw = model.with_structured_output(JSON_SCHEMA, method=method, include_raw=True).invoke(messages)["raw"]
        return model.engine.weights.decode(raw.response_metadata["token_trace"]["prompt_token_ids"])

    assert '"by": {"enum": ["train", "bus"]}' in prompt("json_schema")
    assert "train" not in prompt("json_mode")
    told = prompt("json_schema", [SystemMessage("Be kind."), HumanMessage("Plan it.")])
    assert told.startswith("<|im_start|>system\nBe kind.\n\n# Answer format\n\n")


def test_json_mode_without_a_schema_gives_any_object(folder: Path) -> None:
    assert isinstance(chat(folder).with_structured_output(method="json_mode").invoke("Plan it."), dict)
    reply = chat(folder).invoke("Plan it.", response_format={"type": "json_object"})
    assert isinstance(json.loads(str(reply.content)), dict)


@tool
def look(city: str) -> str:
    """Look."""
    return city


def test_answers_and_tools_go_together(folder: Path) -> None:
    bound = chat(folder).bind_tools([look], response_format=Trip)
    for seed in range(4):
        reply = bound.invoke("Plan it.", seed=seed)
        assert reply.invalid_tool_calls == []
        assert reply.tool_calls or Trip.model_validate_json(str(reply.content))
    chain = chat(folder).with_structured_output(Trip, method="json_schema", tools=[look], include_raw=True)
    assert chain.invoke("Plan it.")["raw"].response_metadata["token_trace"]["constrained"]


def test_a_class_given_as_response_format_is_a_schema(folder: Path) -> None:
    assert Trip.model_validate_json(str(chat(folder).invoke("Plan it.", response_format=Trip).content))


@pytest.mark.parametrize(
    ("schema", "options", "says"),
    [
        (Trip, {"method": "magic"}, "Known: function_calling, json_schema, json_mode"),
        (None, {}, "needs a schema"),
        (7, {}, "Tool 1 of 1"),
        (7, {"method": "json_schema"}, "is no schema"),
        (Trip, {"tools": [look]}, "json_schema"),
        ({"title": "A", "type": "object", "properties": {"x": {"not": {}}}}, {"method": "json_schema"}, '"not"'),
    ],
)
def test_a_schema_that_is_none_is_refused(folder: Path, schema: Any, options: Any, says: str) -> None:
    with pytest.raises(ConstraintError, match=says):
        chat(folder).with_structured_output(schema, **options).invoke("Plan it.")


def test_unknown_arguments_are_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="temperature"):
        chat(folder).with_structured_output(Trip, temperature=0)
