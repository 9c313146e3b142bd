"""Why a turn failed and what it changed, in words."""

from __future__ import annotations

from envtune_agents.types import ToolCall, TurnEvidence
from envtune_bfcl import BfclEnvironment, load_task, load_tasks, parse_call


def played(task_id: str, *calls: ToolCall) -> TurnEvidence:
    environment = BfclEnvironment(load_task(task_id))
    environment.open_turn()
    for call in calls:
        environment.run_call(call)
    return environment.close_turn()


def test_a_failed_turn_names_what_differs_and_what_is_missing() -> None:
    evidence = played(
        "multi_turn_base_0", ToolCall("cd", {"folder": "document"}), ToolCall("mkdir", {"dir_name": "foo"})
    )
    assert not evidence.state_checks["GorillaFileSystem"]
    why = evidence.differences["GorillaFileSystem"]
    assert "root/document/temp: wanted a directory, found nothing" in why
    assert "root/document/foo: wanted nothing, found a directory" in why
    missing = [key for key, holds in evidence.response_checks.items() if not holds]
    assert missing
    assert all(evidence.differences[key].startswith("never obtained: ") for key in missing)
    assert set(evidence.differences) == {"GorillaFileSystem", *missing}
    assert evidence.changes == {"GorillaFileSystem": "root/document/foo: nothing -> a directory"}


def test_a_turn_without_a_call_explains_itself() -> None:
    evidence = played("multi_turn_base_0")
    assert not evidence.answered
    assert evidence.differences == {}
    assert evidence.changes == {}


def test_the_ground_truth_has_nothing_to_explain_and_every_failed_check_has_a_reason() -> None:
    for task in load_tasks("all")[::40]:
        right, wrong = BfclEnvironment(task), BfclEnvironment(task)
        for texts in task.data["ground_truth"]:
            right.open_turn()
            wrong.open_turn()
            for text in texts:
                right.run_call(parse_call(text))
            for text in texts[1:] or ["nothing()"]:
                wrong.run_call(parse_call(text))
            assert right.close_turn().differences == {}
            evidence = wrong.close_turn()
            checks = {**evidence.state_checks, **evidence.response_checks}
            assert set(evidence.differences) == {name for name, holds in checks.items() if not holds}
            assert all(0 < len(text) <= 600 for text in evidence.differences.values())


def test_looking_does_not_change_the_world() -> None:
    environment = BfclEnvironment(load_task("multi_turn_base_0"))
    environment.open_turn()
    environment.run_call(ToolCall("cd", {"folder": "document"}))
    before = environment.snapshot()
    evidence = environment.close_turn()
    assert environment.fork({**before, "open": True}).close_turn() == evidence
