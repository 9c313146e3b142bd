from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.errors import EnvTuneError
from envtune_agents.hints import HintEngine
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import collect
from envtune_agents.testing import ScriptedChatModel, calls_message

TASKS = playground_tasks(0, 2)
GOOD_RULES = (
    "rules:\n  - {name: my.rule, when: {tool: [f, g_*], message_contains: nope}, problem: No., pointer: Look.}\n"
)


def clumsy() -> ScriptedChatModel:
    return ScriptedChatModel(
        script=[calls_message(("pick_items", {"item": "lamp"}), ("ship_parcel", {"city": "Rome"})), "I give up."]
    )


def writer() -> ScriptedChatModel:
    def script(messages: list[BaseMessage]) -> AIMessage:
        if "You judge" in str(messages[0].text):
            return AIMessage('{"leaks": false, "explores": true, "actionable": true, "reason": "fine"}')
        return AIMessage(
            '{"problem": "The parcel is empty.", "constraint": "Pick first.", "pointer": "See pick_item."}'
        )

    return ScriptedChatModel(script=script, model_name="pen")


def no_model() -> str:
    return "x"


def envtune(*arguments: Any) -> tuple[int, str]:
    """The exit code and output of a command; a user error counts as the command line makes it, 2."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, EnvTuneError):
        return 2, str(done.exception)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def answer(*arguments: Any) -> Any:
    """What a command prints under --json."""
    code, text = envtune(*arguments, "--json")
    assert code in (0, 1)
    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(line)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return collected(tmp_path / "run")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def collected(folder: Path, **options: Any) -> Path:
    hints = options.pop("hints", 3)
    asyncio.run(collect(TASKS, clumsy(), Playground, out=folder, hints=hints, **options))
    return folder


def test_report_prints_a_line_for_each_rule(run: Path) -> None:
    code, text = envtune("hints", "report", run)
    assert code == 0
    assert "2 rollouts, 4 calls, 4 failures" in text
    assert "schema.unknown_tool" in text
    assert "(estimated)" in text
    report = answer("hints", "report", run)
    assert report["tokens_exact"] is False
    assert report["rules"][0].keys() >= {"rule", "shown", "uptake", "steps_saved", "tokens", "tasks"}


def test_a_run_without_hints_has_a_report_too(tmp_path: Path) -> None:
    code, text = envtune("hints", "report", collected(tmp_path / "bare", hints=0))
    assert (code, "no hint was shown" in text) == (0, True)


def test_a_baseline_joins_the_comparison(run: Path, tmp_path: Path) -> None:
    bare = collected(tmp_path / "bare", hints=0)
    rows = answer("hints", "report", run, "--baseline", bare)["rules"]
    assert rows
    assert all(row["steps_saved"] is not None for row in rows)


def test_an_audit_fails_by_its_exit_code(tmp_path: Path) -> None:
    clean = collected(tmp_path / "clean", hints=0, stage="4_alignment")
    assert envtune("hints", "audit", clean)[0] == 0
    hinted = collected(tmp_path / "hinted", stage="evaluation")
    code, text = envtune("hints", "audit", hinted)
    assert code == 1
    assert "hint tokens in" in text
    assert "recorded with the dial above 0" in text
    assert answer("hints", "audit", hinted)["clean"] is False
    lines = (clean / "rollouts.jsonl").read_text()
    tampered = lines.replace(
        r'"content":"{\"error\": \"nothing to ship\"}"', r'"content":"{\"error\": \"nothing.\"}"', 1
    )
    assert tampered != lines
    (clean / "rollouts.jsonl").write_text(tampered)
    assert envtune("hints", "audit", clean)[0] == 1


def test_an_audit_of_other_stages_says_so(run: Path) -> None:
    code, text = envtune("hints", "audit", run)
    assert (code, "nothing to audit" in text) == (0, True)
    assert envtune("hints", "audit", run, "--all")[0] == 1


def test_check_sums_up_or_says_the_line(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(GOOD_RULES)
    code, text = envtune("hints", "check", rules)
    assert code == 0
    assert "my.rule" in text
    assert "1 rule" in text
    rules.write_text(GOOD_RULES.replace("pointer", "ponter"))
    code, text = envtune("hints", "check", rules)
    assert code == 2
    assert "line 2" in text
    assert "ponter" in text
    assert envtune("hints", "check", tmp_path / "nowhere.yaml")[0] == 2


def test_mine_drafts_what_check_points_at(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    asyncio.run(collect(TASKS, clumsy(), Playground, out=bare, hints=HintEngine(rules=())))
    drafts = tmp_path / "drafts.yaml"
    code, text = envtune("hints", "mine", bare, "--out", drafts)
    assert code == 0
    assert "4 of 4 failures were answered by no rule" in text
    code, text = envtune("hints", "check", drafts)
    assert code == 1
    assert 'problem: "TODO say precisely what went wrong.' in text
    assert "drafts.yaml, line " in text
    code, text = envtune("hints", "mine", bare, "--out", drafts)
    assert (code, "is there already" in text) == (2, True)
    assert answer("hints", "mine", bare, "--limit", 1)["unanswered"] == 4
    code, text = envtune("hints", "mine", collected(tmp_path / "zero", hints=0))
    assert "--all takes them in" in text


def test_replay_writes_gaps_and_pairs(run: Path, here: None) -> None:
    code, text = envtune("hints", "replay", run, "--model", "test_cli_hints:clumsy", "--limit", 1)
    assert code == 0
    assert "1 failures replayed now, 1 in all" in text
    assert (run / "replay" / "pairs.jsonl").read_text() == ""
    assert answer("hints", "replay", run, "--model", "test_cli_hints:clumsy")["rules"][0]["gap"] == 0.0


def test_write_leaves_a_file_to_review(tmp_path: Path, here: None) -> None:
    bare = tmp_path / "bare"
    asyncio.run(collect(TASKS, clumsy(), Playground, out=bare, hints=HintEngine(rules=())))
    drafts = tmp_path / "drafts.yaml"
    code, text = envtune("hints", "write", bare, "--model", "test_cli_hints:writer", "--out", drafts, "--limit", 2)
    assert code == 0
    assert "2 accepted" in text
    assert "written by pen, accepted by pen" in drafts.read_text()
    code, text = envtune("hints", "check", drafts)
    assert (code, "TODO review" in text) == (1, True)
    written = answer("hints", "write", bare, "--model", "test_cli_hints:writer", "--out", tmp_path / "other.yaml")
    assert written["fates"] == {"accepted": written["accepted"]}
    refused = tmp_path / "refused.yaml"
    code, text = envtune("hints", "write", bare, "--model", "test_cli_hints:clumsy", "--out", refused)
    assert (code, "Nothing was accepted" in text, refused.exists()) == (0, True, False)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["report", "{empty}"], "No rollouts at"),
        (["report", "{blank}"], "holds no rollouts"),
        (["report", "{broken}"], "line 1: Not a rollout record"),
        (["audit", "{empty}"], "No rollouts at"),
        (["audit", "{blank}"], "nothing to audit"),
        (["mine", "{broken}"], "line 1"),
        (["replay", "{blank}", "--model", "x:y"], "holds no rollouts"),
        (["replay", "{run}", "--model", "test_cli_hints:nobody"], "Cannot make the chat model"),
        (["replay", "{run}", "--model", "test_cli_hints:no_model"], "must return a LangChain chat model"),
        (["replay", "{run}", "--model", "x:y", "--tasks", "moon"], "Unknown task source 'moon'"),
        (["replay", "{other}", "--model", "x:y"], "Which source has the task 'moon_1'"),
        (["write", "{other}", "--model", "x:y", "--out", "{empty}/x.yaml"], "Which source has the task 'moon_1'"),
        (["report", "{run}", "--tokenizer", "./nowhere"], "There is no checkpoint"),
    ],
)
def test_a_user_error_says_what_to_do(command: list[str], says: str, run: Path, tmp_path: Path, here: None) -> None:
    folders = {name: tmp_path / name for name in ("empty", "blank", "broken", "other")}
    for folder in folders.values():
        folder.mkdir()
    (folders["blank"] / "rollouts.jsonl").write_text("")
    (folders["broken"] / "rollouts.jsonl").write_text('{"rollout_id": 1}\n')
    lines = (run / "rollouts.jsonl").read_text().replace('"task_id":"playground', '"task_id":"moon').splitlines(True)
    first = json.loads(lines[0])
    (folders["other"] / "rollouts.jsonl").write_text(json.dumps({**first, "task_id": "moon_1"}) + "\n")
    arguments = [part.format(run=run, **folders) for part in command]
    code, text = envtune("hints", *arguments)
    assert code == 2
    assert says in text


def test_models_that_are_made_are_chat_models(here: None) -> None:
    assert isinstance(clumsy(), BaseChatModel)
