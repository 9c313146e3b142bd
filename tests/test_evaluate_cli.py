from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from envtune_agents.cli import app
from envtune_agents.errors import EnvTuneError, MissingDependencyError

pytest_plugins = ["pytester"]

MODELS = """
from pathlib import Path

from envtune_agents import Playground, playground_tasks
from envtune_agents.task_source import TaskSource, Verdict
from envtune_agents.testing import ScriptedChatModel, solution_model

CHECKER = "7"
TASKS = playground_tasks(2, 3, "base")

def solver():
    return solution_model(TASKS)

def silent():
    return ScriptedChatModel(script=[])

def export(rollouts, folder):
    Path(folder).mkdir(parents=True)
    Path(folder, "ids.txt").write_text("\\n".join(sorted(rollout.task_id for rollout in rollouts)))

def own_tasks():
    judge = None if CHECKER == "7" else lambda task, rollout: Verdict(False, "strict")
    return TaskSource(
        lambda split, categories: TASKS,
        Playground,
        export=export,
        judge=judge,
        fingerprint=lambda: {"checker": CHECKER},
    )
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A user's module, in the current folder."""
    (tmp_path / "mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return import_module("mine")


def envtune(*arguments: str) -> int:
    """What `envtune` would exit with; user errors are raised."""
    code = app(list(arguments), standalone_mode=False)
    return int(code or 0)


def test_from_the_command_line_to_a_verified_and_compared_report(
    mine: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("evaluate", "--tasks", "mine:own_tasks", "--limit", "3", "--model")
    assert envtune(*few, "mine:silent", "--out", "worse") == 0
    monkeypatch.setattr(sys, "argv", ["envtune", *few, "mine:solver", "--endpoint", "https://me:secret@host/v1"])
    assert envtune(*few, "mine:solver", "--out", "better", "--compare", "worse", "--export-bfcl", "x") == 0
    printed = capsys.readouterr().out
    assert "OVERALL" in printed
    assert "100.00%" in printed
    assert "against worse: better by 100.0 points" in printed
    assert Path("x/ids.txt").read_text().splitlines() == [f"playground_base_2_{n}" for n in range(3)]

    report = json.loads(Path("better/report.json").read_text())
    assert report["manifest"]["source"] == "mine:own_tasks"
    assert report["manifest"]["command"].startswith("envtune evaluate --tasks mine:own_tasks")
    assert "secret" not in Path("better/report.json").read_text()
    assert report["manifest"]["fingerprint"] == {"checker": "7"}
    assert Path("better/report.html").read_text().startswith("<!doctype html>")

    assert envtune("evaluate", "--verify", "better") == 0
    assert "3 verdicts recomputed: all as reported\n" in capsys.readouterr().out
    monkeypatch.setattr(mine, "CHECKER", "8")
    assert envtune("evaluate", "--verify", "better/report.json") == 1
    printed = capsys.readouterr().out
    assert "was solved, is strict" in printed
    assert "checker was 7, is 8" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--out runs/first"),
        (["--out", "x", "--tasks", "playground", "--model", "mine:silent", "--export-bfcl", "y"], "--tasks bfcl"),
        (["--out", "x", "--compare", "nowhere"], "No report at nowhere"),
        (["--verify", "nowhere"], "No report at nowhere"),
        (["--out", "x", "--endpoint", "localhost:8000", "--model", "m"], "http://localhost:8000/v1"),
        (["--out", "x", "--model", "mine:nothing"], "Cannot make the chat model 'mine:nothing'"),
    ],
)
def test_a_user_error_names_the_next_step_and_leaves_nothing(mine: ModuleType, arguments: list[str], says: str) -> None:
    with pytest.raises(EnvTuneError, match=says):
        envtune("evaluate", *arguments)
    assert not Path("x").exists()


def test_an_endpoint_needs_a_package_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    with pytest.raises(MissingDependencyError, match="pip install langchain-openai"):
        envtune("evaluate", "--out", "x", "--endpoint", "http://localhost:1/v1", "--model", "m")


TEST_FILE = """
from envtune_agents import Playground, playground_tasks
from envtune_agents.testing import ScriptedChatModel, solution_model

TASKS = playground_tasks(2, 4)

def test_good(evaluation):
    report = evaluation(solution_model(TASKS), TASKS, Playground)
    assert report.score >= 0.9

def test_bad(evaluation):
    report = evaluation(ScriptedChatModel(script=[]), TASKS, Playground)
    assert not report.worse_than(0.9)
"""


def test_the_pytest_fixture_shows_the_table_of_a_failing_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST_FILE)
    done = pytester.runpytest_subprocess("-p", "envtune_agents.pytest_plugin", "--evaluation-out", "kept")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*assert not yes: score 0.000 (0 of 4), one-sided 95% upper bound 0.527 < 0.900"])
    done.stdout.fnmatch_lines(["*Captured evaluation call*", "OVERALL *0 * 4 * 0.00%*"])
    assert (pytester.path / "kept" / "test_good" / "report.json").exists()


def test_the_pytest_plugin_loads_nothing_before_it_is_used() -> None:
    program = "import sys, envtune_agents.pytest_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"langgraph", "langchain_core", "pydantic", "torch"} == set()
