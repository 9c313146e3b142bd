from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from envtune_agents.ledger import failure_events
from envtune_agents.summary import next_call_worked, printable, reasons, rollout_text, summary_table, totals_by_category
from envtune_agents.types import (
    CallOutcome,
    FailureKind,
    Hint,
    Rollout,
    RolloutStep,
    RolloutTurn,
    StopReason,
    ToolFailure,
    TurnEvidence,
    TurnScore,
)


def outcome(name: str, kind: FailureKind | None = None, *, hinted: bool = False) -> CallOutcome:
    failure = ToolFailure(kind, "no") if kind else None
    return CallOutcome(name, {}, "shown", "raw", failure, Hint("rule", 3, "try this") if hinted else None)


def rollout(*outcomes: CallOutcome, category: str = "base", score: float = 1.0) -> Rollout:
    steps = tuple(RolloutStep("<tool_call>", outcomes=(each,)) for each in outcomes) or (RolloutStep("<tool_call>"),)
    turn = RolloutTurn("please", steps, TurnScore(1, score, score))
    return Rollout("r/0/0", "r", category, 0, 0, "m", "", 3, (turn,), 1, score, StopReason.DONE)


def shown(thing: Any) -> str:
    console = Console(width=200, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(thing)
    return captured.get()


def test_a_hint_worked_when_the_next_call_of_that_tool_did_its_job() -> None:
    wrong, right = outcome("cd", FailureKind.TOOL_ERROR, hinted=True), outcome("cd")
    steps = [RolloutStep("", outcomes=(outcome("ls"),)), RolloutStep("", outcomes=(right, wrong))]
    assert next_call_worked(wrong, steps) is True
    assert next_call_worked(wrong, steps[1:]) is True
    assert next_call_worked(wrong, [RolloutStep("", outcomes=(wrong, right))]) is False
    assert next_call_worked(wrong, steps[:1]) is None
    unknown = outcome("dc", FailureKind.UNKNOWN_TOOL, hinted=True)
    assert next_call_worked(unknown, steps[:1]) is True


def test_the_table_and_the_ledger_count_alike() -> None:
    """A call of the same reply was written before the hint was seen."""
    wrong, right = outcome("cd", FailureKind.TOOL_ERROR, hinted=True), outcome("cd")
    for steps, fixed in (([(wrong, right)], None), ([(wrong, right), (wrong,)], False), ([(wrong,), (right,)], True)):
        played = tuple(RolloutStep("", outcomes=outcomes) for outcomes in steps)
        one = dataclasses.replace(rollout(), turns=(RolloutTurn("go", played),))
        totals = totals_by_category([one])[one.category]
        (event, *_) = failure_events(one)
        assert event.next_call_succeeded is fixed
        assert totals.fixed == sum(event.next_call_succeeded is True for event in failure_events(one))
        assert totals.hints_followed == sum(event.next_call_succeeded is not None for event in failure_events(one))


def test_totals_and_table() -> None:
    wrong = outcome("cd", FailureKind.TOOL_ERROR, hinted=True)
    rollouts = [rollout(wrong, outcome("cd")), rollout(wrong, score=0.0), rollout(category="miss_func")]
    totals = totals_by_category(rollouts)
    base = totals["base"]
    assert (base.rollouts, base.solved, base.turns, base.turns_solved) == (2, 1, 2, 1)
    assert (base.calls, base.failures, base.hints, base.hints_followed, base.fixed) == (3, 2, 2, 1, 1)
    table = shown(summary_table(rollouts))
    assert "1 of 2" in table
    assert "miss_func" in table


def test_a_rollout_reads_like_a_conversation() -> None:
    text = shown(rollout_text(rollout(outcome("cd", FailureKind.TOOL_ERROR, hinted=True), score=0.5)))
    for part in (
        "r/0/0",
        "user   please",
        "tool   raw",
        "hint   [rule] try this",
        "score  0.50",
        "reward 0.50",
        "done",
    ):
        assert part in text


def test_a_failed_turn_says_why() -> None:
    evidence = TurnEvidence(0, {"Room": False, "Stock": True}, {"0:ls": False}, differences={"Room": "door: shut"})
    assert list(reasons(evidence)) == ["state Room: door: shut", "result 0:ls is not as it should be"]
    assert list(reasons(TurnEvidence(0, {"Room": False}, answered=False))) == ["calls were needed and none was made"]
    assert list(reasons(TurnEvidence(0, {"Room": True}))) == []


def test_a_terminal_is_told_nothing_by_a_model() -> None:
    assert printable("a\x1b]0;owned\x07\u202eb\ud800") == "a\ufffd]0;owned\ufffd\ufffdb\ufffd"
    assert printable("naïve 你好 🙂") == "naïve 你好 🙂"
