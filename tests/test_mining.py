from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import load_rules
from envtune_agents.hints import HintDial, HintEngine
from envtune_agents.mining import draft_rules, mine_failures, normalised, open_todos, rule_summary
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import run_episode
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import (
    CallOutcome,
    FailureKind,
    Hint,
    Rollout,
    RolloutStep,
    RolloutTurn,
    StopReason,
    ToolFailure,
)


def rollout(*turns: list[list[CallOutcome]], task: str = "t", level: int = 3) -> Rollout:
    played = [RolloutTurn("go", tuple(RolloutStep("", outcomes=tuple(step)) for step in steps)) for steps in turns]
    return Rollout(f"{task}/0/0", task, "base", 0, 0, "m", "", level, tuple(played), 1, 0.0, StopReason.DONE)


def failed(message: str, tool: str = "pick", hint: bool = False, kind: str = "tool_error", **args: Any) -> CallOutcome:
    failure = ToolFailure(FailureKind(kind), message)
    return CallOutcome(tool, args, message, message, failure, Hint("r", 3, "Do it.") if hint else None)


@pytest.mark.parametrize(
    ("message", "args", "wording"),
    [
        ("no item L0-525", {"item_id": "L0-525"}, "no item {item_id}"),
        ("No 'a b' in 'c d'", {}, "No '…' in '…'"),
        ("Booking 12 of user_7\n  is   gone", {}, "Booking # of # is gone"),
        ("with kwargs {'item': 'x', 'n': 3}: bad", {"item": "x"}, "with kwargs {…}: bad"),
        ("cat: notes.txt: no such file", {"name": "notes.txt"}, "cat: {name}: no such file"),
        ("a is wrong", {"x": "a"}, "a is wrong"),
        ("x" * 600, {}, "x" * 500),
        (r"no \1 here", {"path": r"\1"}, "no {path} here"),
    ],
)
def test_a_wording_keeps_what_cases_share(message: str, args: dict[str, Any], wording: str) -> None:
    assert normalised(message, args) == wording


def test_failures_that_no_rule_answered_are_clustered() -> None:
    run = [
        rollout([[failed("no item A-1", item="A-1")], [failed("no item B-2", item="B-2")]], task="t1"),
        rollout([[failed("no item C-3", item="C-3"), failed("locked", hint=True)], [failed("locked")]], task="t2"),
        rollout([[failed("no item D-4", item="D-4")]], task="t3", level=0),
    ]
    mined = mine_failures(run, examples=2)
    assert (mined.failures, mined.unanswered, mined.unasked) == (6, 4, 1)
    first, second = mined.clusters
    assert (first.message, first.count, first.tasks) == ("no item {item}", 3, {"t1", "t2"})
    assert [example.task_id for example in first.examples] == ["t1", "t2"]
    assert first.examples[0].call_text == 'pick(item="A-1")'
    assert (second.message, second.count) == ("locked", 1)
    assert mine_failures(run, unasked=True).clusters[0].count == 4


NASTY = [
    failed("no item A-1", item="A-1"),
    failed("no item A-1 here", item="A-1"),
    failed("12: 3", tool="count"),
    failed("it says {\"a\": 'b'} # and: - * & ! | > % @ `", tool="yaml"),
    failed("first\nsecond\x07\x1b[31m\u2028third \ud800 \U0001f600", tool="control"),
    failed("TODO", tool="todo"),
    failed("bad", tool="two words*[x]?"),
    failed("cut off", tool="", kind="malformed_call"),
    failed("no tool", tool="né.ïçé", kind="unknown_tool"),
]


def test_a_draft_loads_as_it_is_and_answers_what_it_was_drawn_from(tmp_path: Path) -> None:
    clusters = mine_failures([rollout([NASTY])]).clusters
    draft = draft_rules(clusters)
    (tmp_path / "drafts.yaml").write_text(draft, encoding="utf-8")
    rules = load_rules(tmp_path / "drafts.yaml")
    assert len(rules) == len(clusters) == len(NASTY)
    assert len({rule.name for rule in rules}) == len(rules)
    engine = HintEngine(rules, HintDial(1))
    for outcome in NASTY:
        answered = engine.outcome(outcome.call, outcome.raw_content, tools={}, failure=outcome.failure)
        assert answered.hint is not None, outcome.name
    other = engine.outcome(failed("no such").call, "no such", tools={}, failure=failed("something else").failure)
    assert other.hint is None


def test_values_of_the_run_stay_in_comments() -> None:
    draft = draft_rules(mine_failures([rollout([[failed("no item SECRET-1", item="SECRET-1")]])]).clusters)
    rules = [line for line in draft.splitlines() if not line.lstrip().startswith("#")]
    assert "SECRET-1" in draft
    assert "SECRET-1" not in "\n".join(rules)


def test_what_is_to_do_is_pointed_at(tmp_path: Path) -> None:
    path = tmp_path / "drafts.yaml"
    path.write_text(draft_rules(mine_failures([rollout([[failed("locked")]])]).clusters))
    lines = path.read_text().splitlines()
    todos = open_todos(path)
    assert [lines[number - 1].strip() for number, _ in todos] == [text for _, text in todos]
    assert [text.split(":")[0] for _, text in todos if not text.startswith("#")] == ["problem", "constraint", "pointer"]
    path.write_text("rules:\n  - {name: a, when: {tool: f}, problem: TODOS are no to-do.}\n")
    assert open_todos(path) == []
    assert rule_summary(path).row_count == 1
    with pytest.raises(HintRuleError, match="Cannot read"):
        open_todos(tmp_path / "nowhere.yaml")
    path.write_text("rules:\n  - {nam: a}\n")
    with pytest.raises(HintRuleError, match="line 2"):
        rule_summary(path)


def test_nothing_to_draft_is_a_file_too() -> None:
    assert load_rules(draft_rules([])) == ()


def test_a_run_of_the_playground_is_mined() -> None:
    model = ScriptedChatModel(
        script=[calls_message(("ship_parcel", {"city": "Oslo"}), ("list_items", {"room": "roof"})), "Done."]
    )
    task = playground_tasks(0, 1)[0]
    rollout = asyncio.run(run_episode(model, Playground(task), hints=HintEngine(rules=())))
    assert {(cluster.tool, cluster.message) for cluster in mine_failures([rollout]).clusters} == {
        ("ship_parcel", "nothing to ship"),
        ("list_items", "no room {room}"),
    }
