from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool

from envtune_agents import Playground, evaluate, playground_tasks
from envtune_agents.errors import TaskError
from envtune_agents.evaluate import Report, verify
from envtune_agents.task_source import TaskSource, Verdict
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model
from envtune_agents.types import StopReason, Task, TurnEvidence, TurnScore

TASKS = playground_tasks(seed=2, n=4)


def source(tasks: list[Task] | None = None, **changes: object) -> TaskSource:
    plain = TaskSource(lambda split, categories: TASKS if tasks is None else tasks, Playground)
    return replace(plain, **changes)  # type: ignore[arg-type]


def mixed_model() -> ScriptedChatModel:
    """Makes every kind of reply: a good call, an unknown tool, a broken call, words; and never solves anything."""
    return ScriptedChatModel(
        script=[
            calls_message(("list_items", {"room": "attic"}), ("pick_item", {"item": "lamp"})),
            calls_message(("no_such_tool", {})),
            '<tool_call>\n{"name": "list_items", "arguments": {"room": \n</tool_call>',
            "I give up.",
            "And again.",
        ]
    )


@pytest.fixture
def solved(tmp_path: Path) -> Report:
    return evaluate(solution_model(TASKS), source(), out=tmp_path)


def test_every_verdict_comes_out_as_stored(solved: Report) -> None:
    verification = verify(solved, source())
    assert (verification.holds, verification.checked) == (True, 4)
    assert str(verification) == "4 verdicts recomputed: all as reported"
    assert verify(solved.folder, source()).holds  # type: ignore[arg-type]


@pytest.mark.parametrize("malformed_ends_turn", [False, True])
def test_failing_calls_are_played_again_as_they_were(tmp_path: Path, malformed_ends_turn: bool) -> None:
    report = evaluate(mixed_model(), source(malformed_ends_turn=malformed_ends_turn), out=tmp_path)
    assert report.score == 0
    assert any(entry.failures for entry in report.entries)
    verification = verify(report, source())
    assert (verification.holds, verification.answers) == (True, [])


def test_episodes_that_ended_early_are_played_to_where_they_ended(tmp_path: Path) -> None:
    endless = ScriptedChatModel(
        script=lambda messages: calls_message(("list_items", {"room": "attic"}), position=len(messages))
    )
    report = evaluate(endless, source(), out=tmp_path, max_steps=2)
    assert {entry.ended for entry in report.entries} == {"step_limit"}
    assert verify(report, source()).holds


def always_right(evidence: TurnEvidence) -> TurnScore:
    return TurnScore(1.0, 1.0, 1.0)


def test_another_checker_is_named_with_what_it_changes(tmp_path: Path) -> None:
    report = evaluate(mixed_model(), source(fingerprint=lambda: {"checker": "1"}), out=tmp_path)
    verification = verify(report, source(scorer=always_right, fingerprint=lambda: {"checker": "2"}))
    assert not verification.holds
    assert len(verification.verdicts) == 4
    assert verification.versions == ["checker was 1, is 2"]
    assert "NOT as reported" in str(verification)
    assert f"{TASKS[0].task_id}/0/0: was state_mismatch, is solved" in str(verification)


def test_another_judge_is_seen_even_where_the_scores_agree(solved: Report) -> None:
    strict = source(judge=lambda task, rollout: Verdict(False, "too many steps"))
    verification = verify(solved, strict)
    assert (len(verification.verdicts), verification.scores) == (4, [])
    assert verification.verdicts[0].now == Verdict(False, "too many steps")


def test_changed_and_missing_tasks_are_named(solved: Report) -> None:
    changed = replace(TASKS[0], turns=(*TASKS[0].turns[:-1], "Something else."))
    verification = verify(solved, source([changed, *TASKS[1:3]]))
    assert verification.tasks == [TASKS[0].task_id, TASKS[3].task_id]
    assert (verification.holds, verification.checked) == (False, 3)


def test_a_changed_number_and_a_lost_rollout_are_found(solved: Report) -> None:
    assert solved.folder is not None
    fields = json.loads((solved.folder / "report.json").read_text())
    fields["entries"][0].update(solved=False, error_type="state_mismatch")
    (solved.folder / "report.json").write_text(json.dumps(fields))
    lines = (solved.folder / "rollouts.jsonl").read_text().splitlines(keepends=True)
    (solved.folder / "rollouts.jsonl").write_text(
        "".join(line for line in lines if f'"{TASKS[1].task_id}"' not in line)
    )
    verification = verify(solved.folder, source())
    assert [str(change) for change in verification.verdicts] == [
        f"{TASKS[0].task_id}/0/0: was state_mismatch, is solved"
    ]
    assert verification.lost == [f"{TASKS[1].task_id}/0/0"]
    assert not verification.holds


def test_errors_stay_errors_and_an_unusable_environment_is_said(solved: Report) -> None:
    def broken(task: Task) -> Playground:
        raise OSError("no room")

    verification = verify(solved, source(environment=broken))
    assert set(verification.unreplayed.values()) == {"the environment raised OSError: no room"}
    assert not verification.holds


def test_an_application_with_tools_of_its_own_cannot_be_played_again(tmp_path: Path) -> None:
    @tool
    def look(room: str, config: RunnableConfig) -> str:
        """Look around."""
        return str(config["configurable"]["environment"].snapshot())

    model = ScriptedChatModel(script=[calls_message(("look", {"room": "attic"})), "Seen."])
    report = evaluate(create_agent(model, [look]), source(), out=tmp_path)
    assert {entry.ended for entry in report.entries} == {StopReason.DONE}
    assert "tools of the application" in str(verify(report, source()))


def test_a_report_that_was_not_kept_says_so() -> None:
    report = evaluate(solution_model(TASKS), source())
    with pytest.raises(TaskError, match="out="):
        verify(report, source())


def test_tasks_given_in_python_are_asked_for(solved: Report) -> None:
    with pytest.raises(TaskError, match="given in Python"):
        verify(solved)
