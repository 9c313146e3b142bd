from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from envtune_agents.call_text import parse_call_text
from envtune_agents.errors import TaskError
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.types import Task, ToolCall

TOOLS = {"f": {"parameters": {"properties": {"a": {}, "b": {}}}}}


def envtune(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from envtune_agents.cli import main; main()", *arguments]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('f(a="x", b=[1, None, {"k": -2.5}])', ToolCall("f", {"a": "x", "b": [1, None, {"k": -2.5}]})),
        ("f('x', b=True)", ToolCall("f", {"a": "x", "b": True})),
        ("g()", ToolCall("g", {})),
        ("g(1)", ToolCall("g", {"argument_0": 1})),
        ('{"name": "f", "arguments": {"a": 1}}', ToolCall("f", {"a": 1})),
        ('{"name": "f"}', ToolCall("f", {})),
    ],
)
def test_a_typed_call_is_read(text: str, call: ToolCall) -> None:
    assert parse_call_text(text, TOOLS) == call


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f",
        "f(",
        "f(x)",
        "f(a=__import__('os').system('true'))",
        "f(1, 2, 3)",
        "f(1, a=2)",
        "f(**{})",
        "(" * 10_000,
        "f(a=" + "[" * 10_000 + ")",
        "f(a=1)" + " " * 30_000 + "x",
        '{"name": 3}',
        '{"arguments": {}}',
        "{",
        "\x00",
    ],
)
def test_what_is_not_a_call_is_an_error_and_nothing_runs(text: str) -> None:
    with pytest.raises(TaskError):
        parse_call_text(text, TOOLS)


def test_playing_shows_what_the_agent_would_see() -> None:
    typed = 'list_items(room="attic")\npick_items()\nlist_items("attic")\nf(\n\n'
    done = envtune("play", "playground_base_0_0", "--hints", "3", "--json", typed=typed)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["user", *["outcome"] * 4, "score", "user", "end"]
    outcomes = [event["value"] for event in events if event["event"] == "outcome"]
    assert "items" in outcomes[0]["content"]
    assert outcomes[1]["hint"]["rule"] == "schema.unknown_tool"
    assert outcomes[2]["content"] == outcomes[0]["content"]
    assert outcomes[3]["failure"]["kind"] == "malformed_call"
    assert events[-1]["value"] == "left"
    assert done.returncode == 0


def test_playing_without_json_is_readable() -> None:
    done = envtune("play", "playground_base_0_0", "--hints", "0", typed="nothing()\n")
    assert "user" in done.stdout
    assert '"hint"' not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["play", "playground_base_99_0"], "Unknown task id"),
        (["play", "x", "--tasks", "nowhere"], "Known: playground"),
        (["play", "x", "--tasks", "json:nothing"], "module:factory"),
        (["collect", "--out", "x", "--tasks", "playground", "--split", "tset"], "Unknown split 'tset'. Known: train"),
        (["collect", "--out", "x", "--tasks", "playground", "--categories", "bass"], "Unknown playground category"),
    ],
)
def test_a_user_error_is_one_sentence_and_exit_code_2(arguments: list[str], says: str) -> None:
    done = envtune(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in envtune("--debug", *arguments).stderr


def test_help_teaches() -> None:
    assert "rollouts" in envtune("collect", "--help").stdout
    assert "collect" in envtune("--help").stdout


def own_tasks() -> TaskSource:
    return TaskSource(lambda split, categories: [Task("t", "base", ("hi",))], lambda task: None)  # type: ignore[arg-type, return-value]


def test_your_own_tasks_are_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert find_task_source("test_cli:own_tasks").load("train", None) == [Task("t", "base", ("hi",))]
    with pytest.raises(TaskError, match="must return a TaskSource"):
        find_task_source("builtins:dict")
