from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from light import Light, always_on, light_tasks

from envtune_agents import ChatTransformers, Playground, evaluate, playground_tasks
from envtune_agents.errors import RecordError, TaskError
from envtune_agents.evaluate import Report, read_report
from envtune_agents.rollout import read_rollouts
from envtune_agents.testing import ScriptedChatModel, calls_message, tiny_qwen
from envtune_agents.types import StopReason, Task

# --- against a baseline ---


def scored(correct: int, total: int) -> Report:
    tasks = [Task(f"t{i}", "on", ("x",), {"on": i < correct}) for i in range(total)]
    return evaluate(always_on(), tasks, Light)


def test_proof_and_alarm_are_two_questions() -> None:
    report = scored(18, 25)
    assert report.score >= 0.8 - 0.1
    assert not report.not_worse_than(0.8, margin=0.1)
    assert report.not_worse_than(0.8, margin=0.3)
    assert not report.worse_than(0.8)
    assert report.worse_than(0.95)
    assert repr(report.not_worse_than(0.8, margin=0.1)) == (
        "no: score 0.720 (18 of 25), one-sided 95% lower bound 0.538 < 0.700"
    )
    for wrong in ({"baseline": 63.5}, {"baseline": 0.5, "margin": 5}):
        with pytest.raises(TaskError, match="share in"):
            report.not_worse_than(**wrong)


def switching(on: set[str]) -> Report:
    def reply(messages: list[BaseMessage]) -> AIMessage:
        first = str(messages[0].text)
        return calls_message(("switch", {"on": first in on})) if len(messages) == 1 else AIMessage("Done.")

    return evaluate(
        ScriptedChatModel(script=reply), [Task(f"t{i}", "on", (str(i),), {"on": True}) for i in range(12)], Light
    )


def test_two_runs_are_paired_by_task() -> None:
    better, worse = switching(set("0123456789")), switching(set("2345"))
    comparison = better.compare(worse)
    assert (comparison.tasks, comparison.better, comparison.worse) == (12, 6, 0)
    assert comparison.difference == pytest.approx(0.5)
    assert str(comparison).startswith("better by 50.0 points, 95% interval 25.0–75.0 (12 shared tasks: 6 solved")
    assert str(worse.compare(better)).startswith("worse by 50.0 points, 95% interval 25.0–75.0")
    assert worse.worse_than(better)
    assert better.not_worse_than(worse)
    assert "equal, 95% interval 0.0 to 0.0, so no clear difference" in str(better.compare(better))


def test_only_shared_and_unchanged_tasks_are_compared() -> None:
    here = evaluate(always_on(), light_tasks(6), Light)
    there = evaluate(always_on(), [*light_tasks(3), Task("light_3", "off", ("changed",), {"on": False})], Light)
    comparison = here.compare(there)
    assert (comparison.tasks, comparison.only_here, comparison.only_there, comparison.changed) == (3, 2, 0, 1)
    assert str(comparison).endswith("; left out: 2 only in this run, 1 with other messages or data")
    nothing = here.compare(evaluate(always_on(), light_tasks(2, "lamp"), Light))
    assert str(nothing).startswith("nothing to compare: no task is in both runs; left out: 6 only in this run")
    with pytest.raises(TaskError, match="share no task"):
        here.not_worse_than(evaluate(always_on(), light_tasks(2, "lamp"), Light))


# --- files ---


def test_a_report_reads_back_as_it_was(tmp_path: Path) -> None:
    report = evaluate(always_on(), light_tasks(), Light, out=tmp_path)
    again = read_report(tmp_path)
    assert (list(again.entries), again.manifest, again.folder) == (list(report.entries), report.manifest, tmp_path)
    fields = json.loads((tmp_path / "report.json").read_text())
    assert fields["summary"]["OVERALL"]["correct"] == 2
    assert json.loads((tmp_path / "evaluation.json").read_text())["data_sha256"] == report.manifest.data_sha256
    assert {rollout.stage for rollout in read_rollouts(tmp_path)} == {"evaluation"}
    assert {rollout.stop_reason for rollout in read_rollouts(tmp_path)} == {StopReason.DONE}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No report at"),
        ("{", "not a report"),
        ("[]", "not a report"),
        ('{"a": 1}', "not a report"),
        ('{"report_version": 0, "written_by": "envtune-agents 0.0.9"}', "version 0, written by envtune-agents 0.0.9"),
        ('{"report_version": 1}', "damaged"),
        ('{"report_version": 1, "manifest": {}, "entries": [], "flagged": {}}', "damaged"),
    ],
)
def test_what_is_not_a_report_is_said_to_be_none(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(RecordError, match=says):
        read_report(tmp_path)


def test_pages_show_words_of_tasks_and_models_as_text() -> None:
    def fails(messages: list[BaseMessage]) -> AIMessage:
        raise ValueError("<img src=x onerror=alert(1)> | `x`")

    report = evaluate(ScriptedChatModel(script=fails), [Task("<b>1</b>", "a|b", ("x",), {"on": True})], Light)
    page = report.html()
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img src=x" in page
    assert "http" not in page.replace("https://", "http").partition("<body")[0]
    assert "a\\|b" in report.markdown()


# --- local weights ---


def local(folder: Path) -> ChatTransformers:
    return ChatTransformers(model=folder, temperature=0, max_tokens=8, precision="fp32")


def test_a_local_checkpoint_is_known_by_its_files_and_its_template(tmp_path: Path) -> None:
    checkpoint = tiny_qwen(tmp_path / "tiny")
    tasks = playground_tasks(2, 1)
    options: dict[str, Any] = {"max_steps": 1, "out": tmp_path / "run"}
    report = evaluate(local(checkpoint), tasks, Playground, **options)
    assert evaluate(local(checkpoint), tasks, Playground, **options).entries == report.entries
    model = report.manifest.model
    assert (len(model.sha256), len(model.template_hash), model.precision) == (64, 16, "fp32")
    assert (model.decoding["temperature"], model.decoding["max_tokens"]) == (0, 8)
    assert report.entries[0].output_tokens > 0

    with (checkpoint / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(RecordError, match="model sha256 was"):
        evaluate(local(checkpoint), tasks, Playground, **options)
