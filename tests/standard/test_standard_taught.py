"""LangChain's own integration suite on two subjects that fail nothing: a teacher who knows the answers, and a pupil.

The teacher stands in the engine's place and answers by rules; everything else is the real path: template, prompt,
grammar, parser, messages. The pupil is a real checkpoint, a tiny Qwen3 trained on what the teacher said to every prompt
of the suite, with the real engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from standard_flags import Flags

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.qwen import format_call
from envtune_agents.testing import TaughtModel, overfit, random_adapter, tiny_qwen

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("llguidance")
Suite: Any = pytest.importorskip("langchain_tests.integration_tests").ChatModelIntegrationTests

TOOL_LINE = re.compile(r'^\{"type": "function", "function": .*\}$', re.MULTILINE)


def taught_reply(prompt: str) -> str:
    """What a good model says to a prompt of the suite: it calls a tool until there is a result, then it talks."""
    tools = [json.loads(line)["function"] for line in TOOL_LINE.findall(prompt)]
    last = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    if "# Answer format" in prompt or "JSON" in last:
        return '{"setup": "Why do cats purr?", "punchline": "They run on love."}'
    if not tools or last.startswith("<tool_response>"):
        return "Hello, you!"
    tool = next((tool for tool in tools if tool["name"] in last), tools[0])
    properties = tool["parameters"].get("properties", {})
    return format_call(tool["name"], {name: _value(schema, last) for name, schema in properties.items()})


def _value(schema: dict[str, Any], question: str) -> Any:
    if schema.get("type") == "integer":
        return int(next(iter(re.findall(r"\d+", question)), 3))
    return next(iter(re.findall(r"'([^']+)'", question)), "Pirate")


@functools.cache
def base() -> Path:
    """A tiny checkpoint that has learned nothing."""
    return tiny_qwen(tempfile.mkdtemp())


@functools.cache
def adapter() -> str:
    return str(random_adapter(tempfile.mkdtemp(), base(), scale=0.01))


@functools.cache
def pupil() -> Path:
    """A checkpoint that has learned every prompt of the suite by heart."""
    subject = TestTeacher()
    methods = [method for name, method in inspect.getmembers(subject, inspect.ismethod) if name.startswith("test_")]
    lessons = {prompt: reply for method in methods for prompt, reply in attend(subject, method).items()}
    return overfit(base(), tempfile.mkdtemp(), lessons.items())


def attend(subject: Any, method: Any) -> dict[Any, Any]:
    """The prompts, with replies, that one test of the suite makes with each of its parameters."""
    parameters = inspect.signature(method).parameters
    lessons: dict[Any, Any] = {}
    if {"benchmark", "vcr"} & set(parameters):
        return lessons
    adder = type(subject).my_adder_tool._get_wrapped_function()(subject)
    marks = [mark for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
    names, values = (marks[0].args[0], marks[0].args[1]) if marks else ("model", [{}])
    for value in values:
        model = subject.chat_model_class(**subject.chat_model_params, **(value if names == "model" else {}))
        given = {"model": model, "my_adder_tool": adder} | ({} if names == "model" else {names: value})
        with contextlib.suppress(pytest.skip.Exception):
            done = method(**{name: given[name] for name in parameters if name in given})
            if inspect.iscoroutine(done):
                asyncio.run(done)
        lessons |= model.lessons
    return lessons


class Cached(Flags, Suite):  # type: ignore[misc]
    """A subject that has been asked the same before."""

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        model.invoke("Hello")
        if not stream:
            return model.invoke("Hello")
        total: AIMessageChunk = functools.reduce(lambda left, right: left + right, model.stream("Hello"))
        return total


class TestTeacher(Cached):
    """Rules in the engine's place."""

    chat_model_class = TaughtModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(base()), "answer": taught_reply, "temperature": 0, "adapters": {"tuned": adapter()}}


class TestPupil(Cached):
    """Real weights, real engine."""

    chat_model_class = ChatTransformers

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(pupil()), "precision": "fp32", "temperature": 0, "adapters": {"tuned": adapter()}}
