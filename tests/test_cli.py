from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import envtune_agents
from envtune_agents.call_text import parse_call_text
from envtune_agents.cli import app
from envtune_agents.cli.hints import hints_app
from envtune_agents.errors import EnvTuneError, TaskError
from envtune_agents.rollout import read_rollouts, run_settings
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.testing import ScriptedChatModel
from envtune_agents.types import Task, ToolCall

Envtune = Callable[..., Any]

TOOLS = {"f": {"parameters": {"properties": {"a": {}, "b": {}}}}}


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


def test_playing_shows_what_the_agent_would_see(envtune: Envtune) -> None:
    typed = 'list_items(room="attic")\npick_items()\nlist_items("attic")\nf(\n\n'
    done = envtune("play", "playground_base_0_0", "--hints", "3", "--json", typed=typed)
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["event"] for event in events] == ["user", *["outcome"] * 4, "score", "user", "end"]
    outcomes = [event["value"] for event in events if event["event"] == "outcome"]
    assert "items" in outcomes[0]["content"]
    assert outcomes[1]["hint"]["rule"] == "schema.unknown_tool"
    assert outcomes[2]["content"] == outcomes[0]["content"]
    assert outcomes[3]["failure"]["kind"] == "malformed_call"
    assert events[-1]["value"] == "left"
    assert done.code == 0


def test_playing_without_json_is_readable(envtune: Envtune) -> None:
    done = envtune("play", "playground_base_0_0", "--hints", "0", typed="nothing()\n")
    assert "user" in done.out
    assert '"hint"' not in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["play", "playground_base_99_0"], "Unknown task id"),
        (["play", "x"], "Which source has the task 'x'?"),
        (["play", "x", "--tasks", "nowhere"], "Known: playground"),
        (["play", "x", "--tasks", "json:nothing"], "module:factory"),
        (["collect", "--out", "x", "--tasks", ":nothing"], "module:factory"),
        (["collect", "--out", "x", "--tasks", "test_cli:own_tasks", "--split", "silent"], "'s' has no turns"),
        (["train", "--out", "x", "--tasks", "test_cli:own_tasks"], "gave NoneType as the environment of the task 't'"),
        (["collect", "--out", "x", "--tasks", "test_cli:own_tasks", "--split", "none"], "has no tasks in the split"),
        (["collect", "--out", "x", "--tasks", "test_cli:own_tasks", "--split", "twice"], "such as 't'"),
        (["evaluate", "--out", "x", "--tasks", "test_cli:own_tasks", "--split", "text"], "must return a list of Task"),
        (["evaluate", "--out", "x", "--tasks", "test_cli:own_tasks", "--split", "dicts"], "gave a list with dict"),
        (
            ["train", "--out", "x", "--tasks", "test_cli:own_tasks", "--categories", "raises"],
            "raised OSError for the split 'train': offline",
        ),
        (["collect", "--out", "x", "--split", "tset"], "Unknown split 'tset'. Known: train"),
        (["collect", "--out", "x", "--categories", "bass"], "Unknown playground category"),
        (["collect", "--out", "x", "--model", "./nowhere"], "There is no checkpoint at"),
        (["collect", "--out", "x", "--model", "json:nothing"], "Cannot make the chat model 'json:nothing'"),
        (["collect", "--out", "pyproject.toml", "--model", "test_cli:mute"], "Cannot write rollouts to pyproject.toml"),
        (
            ["evaluate", "--out", "pyproject.toml", "--model", "test_cli:mute"],
            "Cannot write rollouts to pyproject.toml",
        ),
        (["train", "--out", "x", "--model", "./nowhere"], "There is no checkpoint at"),
        (["train", "--out", "pyproject.toml/x"], "Cannot write to pyproject.toml/x"),
        (["train", "--out", "x", "--warm-up", "nowhere"], "No rollouts at nowhere"),
        (["memory", "./nowhere"], "is not on this disk"),
    ],
)
def test_a_user_error_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, envtune: Envtune, here: None
) -> None:
    before = set(sys.modules)
    done = envtune(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert says in done.err
    assert not (set(sys.modules) - before) & {"torch", "transformers", "trl"}
    assert not Path("x").exists()
    with pytest.raises(EnvTuneError):  # the interpreter shows its traceback
        envtune("--debug", *arguments)


def test_json_is_all_there_is_on_stdout(envtune: Envtune, here: None, tmp_path: Path) -> None:
    run, evaluation, rules = tmp_path / "runs" / "run", tmp_path / "runs" / "evaluation", tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - {name: my.rule, when: {tool: f}, problem: TODO say it.}\n")

    def answer(*arguments: object, code: int = 0) -> Any:
        done = envtune(*arguments, "--json")
        assert done.code == code, done.err
        (line,) = done.out.splitlines()
        return json.loads(line)

    some = ("--limit", 2, "--model", "test_cli:mute")
    collected = answer("collect", *some, "--print", 1, "--out", run)
    assert (collected["written"], collected["categories"]["base"]["solved"]) == (2, 0)
    report = answer("evaluate", *some, "--out", evaluation)
    assert (report["OVERALL"]["total"], report["compared"], report["folder"]) == (2, None, str(evaluation))
    compared = answer("evaluate", *some, "--out", evaluation, "--compare", evaluation)["compared"]
    assert (compared["tasks"], compared["difference"]) == (2, 0)
    assert answer("evaluate", "--verify", evaluation)["holds"]
    runs = answer("runs", tmp_path)
    assert {found["folder"] for found in runs["runs"]} == {str(run), str(evaluation)}
    assert runs["differences"]["stage"] == {str(run): '""', str(evaluation): '"evaluation"'}
    assert answer("export", run, "--to", "sft", "--out", tmp_path / "sft.jsonl")["rows"] == 2
    assert answer("hints", "report", run)["rollouts"] == 2
    assert answer("hints", "mine", run)["failures"] == 0
    assert answer("hints", "audit", run)["clean"]
    checked = answer("hints", "check", rules, code=1)
    assert (checked["rules"], checked["todos"][0]["line"]) == (["my.rule"], 2)


@pytest.mark.parametrize(("option", "told"), [([], ["malformed_call"]), (["--malformed-ends-turn"], [])])
def test_a_reply_that_cannot_be_read_is_told_or_ends_the_turn(
    option: list[str], told: list[str], envtune: Envtune, here: None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = envtune("collect", *option, "--limit", 1, "--model", "test_cli:unreadable", "--out", run)
    assert done.code == 0, done.err
    (rollout,) = read_rollouts(run)
    steps = rollout.turns[0].steps
    assert [str(outcome.failure.kind) for step in steps for outcome in step.outcomes if outcome.failure] == told
    assert len(steps) == 1 + len(told)
    assert run_settings(run).get("malformed_ends_turn", False) is bool(option)


def test_a_file_that_cannot_be_had_is_a_sentence_too(envtune: Envtune, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "/the/report.html")

    monkeypatch.setattr("envtune_agents.view.write_report", refused)
    done = envtune("view", "nowhere")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: /the/report.html: Permission denied.")


def test_ctrl_c_says_what_is_kept(envtune: Envtune, here: None, tmp_path: Path) -> None:
    done = envtune("collect", "--out", tmp_path / "run", "--model", "test_cli:impatient")
    assert done.code == 130
    assert f"stopped; every finished rollout is in {tmp_path / 'run'}" in done.err.replace("\n", " ")
    done = envtune("collect", "--out", tmp_path / "other", "--tasks", "test_cli:impatient_tasks")
    assert (done.code, done.err) == (130, "stopped; nothing was written\n")


def test_every_command_has_help_with_an_example(envtune: Envtune) -> None:
    commands = {str(command.name): command for command in app.registered_commands}
    commands |= {f"hints {command.name}": command for command in hints_app.registered_commands}
    assert len(commands) > 14
    assert [name for name, command in commands.items() if f"Example: envtune {name} " not in examples(command)] == []
    done = envtune("hints", "--help")
    assert (done.code, done.err) == (0, "")
    assert "Example: envtune hints report runs/demo" in done.out


def examples(command: Any) -> str:
    return " ".join(f"{command.callback.__doc__} ".split())


def test_the_version_is_the_packages(envtune: Envtune) -> None:
    assert envtune("--version") == (0, f"envtune-agents {envtune_agents.__version__}\n", "")


PROGRAM = [sys.executable, "-m", "envtune_agents"]


def test_a_terminal_that_wants_no_colour_gets_none() -> None:
    said = [
        subprocess.run([*PROGRAM, "memory", "./nowhere"], capture_output=True, env={**os.environ, **wish}).stderr
        for wish in ({"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, {})
    ]
    assert [b"\x1b[31m" in text for text in said] == [True, False, False]
    assert b"\x1b" not in said[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_a_full_disk_behind_stdout_is_a_sentence(argument: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, argument], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: Cannot write the results: No space left on device. Send stdout to another place.\n"


def test_a_reader_that_went_away_ends_the_command_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "--version"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_modules_of_the_current_folder_are_found_and_shadow_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from envtune_agents.task_source import TaskSource\n"
        "def own_tasks(): return TaskSource(lambda split, categories: [], None)\n"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the current folder hides a package')\n")
    command = [sys.executable, "-P", "-c", "from envtune_agents.__main__ import main; main()"]
    command += ["play", "x", "--tasks", "mine:own_tasks"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "has no tasks in the split 'all'" in done.stderr) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_offers_the_commands(shell: str) -> None:
    words = {"COMP_WORDS": "envtune hints re", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "envtune hints re"}
    environment = {**os.environ, **words, "_ENVTUNE_COMPLETE": f"complete_{shell}"}
    program = "import sys; sys.argv = ['envtune']; from envtune_agents.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert {"report", "replay"} <= set(re.findall(r"\w+", done.stdout))


def own_tasks() -> TaskSource:
    """One task, whose environment is none; and some splits with nothing usable in them."""
    task = Task("t", "base", ("hi",))
    splits: dict[str, Any] = {"none": [], "twice": [task, task], "text": "tasks", "dicts": [{"id": 1}]}
    splits["silent"] = [Task("s", "base", ())]

    def load(split: str, categories: Any) -> Any:
        if categories == ["raises"]:
            raise OSError("offline")
        return splits.get(split, [task])

    return TaskSource(load, lambda task: None)  # type: ignore[arg-type, return-value]


def test_all_tasks_of_a_source_are_those_of_its_splits() -> None:
    splits = {"train": [Task("a", "base", ("hi",))], "test": [Task("b", "base", ("hi",))]}
    source = TaskSource(lambda split, categories: splits[split], lambda task: None)  # type: ignore[arg-type, return-value]
    assert [task.task_id for task in source.tasks("all")] == ["a", "b"]
    with pytest.raises(TaskError, match="raised KeyError for the split 'validation'"):
        source.tasks("validation")
    assert source.tasks_if_any("validation") is None


def test_a_split_that_cannot_be_read_is_not_taken_for_one_that_is_not_there() -> None:
    def load(split: str, categories: Any) -> Any:
        raise OSError("offline")

    source = TaskSource(load, lambda task: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(TaskError, match="raised OSError for the split 'validation': offline"):
        source.tasks_if_any("validation")


def test_an_environment_that_fails_in_every_episode_is_said_with_its_error(
    envtune: Envtune, here: None, tmp_path: Path
) -> None:
    command = ("collect", "--tasks", "test_cli:own_tasks", "--model", "test_cli:mute", "--out", tmp_path / "run")
    said = "1 of 1 rollouts ended with an error, the last with AttributeError: 'NoneType'"
    assert said in envtune(*command).err
    assert said not in envtune(*command).err  # it counts as played
    assert said in envtune(*command, "--retry-errors").err


def mute() -> ScriptedChatModel:
    return ScriptedChatModel(script=[])


def unreadable() -> ScriptedChatModel:
    def reply(messages: list[Any]) -> str:
        return "Done." if messages[-1].type == "tool" else '<tool_call>\n{"name": "list_items", "arg\n</tool_call>'

    return ScriptedChatModel(script=reply)


def impatient() -> ScriptedChatModel:
    def press(messages: Any) -> str:
        raise KeyboardInterrupt

    return ScriptedChatModel(script=press)


def impatient_tasks() -> TaskSource:
    raise KeyboardInterrupt


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of this file can be named as module:factory."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_your_own_tasks_are_a_function(here: None) -> None:
    assert find_task_source("test_cli:own_tasks").load("train", None) == [Task("t", "base", ("hi",))]
    with pytest.raises(TaskError, match="must return a TaskSource"):
        find_task_source("builtins:dict")
