from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.errors import RecordError
from envtune_agents.hints import HintDial, RuleRetirement, attach_hint
from envtune_agents.ledger import (
    ESTIMATE,
    TokenCounter,
    audit_run,
    failure_events,
    hint_report,
    is_hint_free_stage,
    token_counter,
    tokenizer_of_run,
)
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import collect, read_rollouts, to_line
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

LETTERS = TokenCounter("letters", len)


def good(name: str = "pick") -> CallOutcome:
    return CallOutcome(name, {}, "ok", "ok")


def bad(name: str = "pick", kind: FailureKind = FailureKind.TOOL_ERROR, hint: str = "") -> CallOutcome:
    failure = ToolFailure(kind, "no")
    content = attach_hint("no", hint, failure) if hint else "no"
    return CallOutcome(name, {}, content, "no", failure, Hint(f"rule.{hint}", 3, hint) if hint else None)


def rollout(*turns: list[list[CallOutcome]], task: str = "t", stage: str = "", level: int = 3) -> Rollout:
    played = [RolloutTurn("go", tuple(RolloutStep("", outcomes=tuple(step)) for step in steps)) for steps in turns]
    return Rollout(
        f"{task}/0/0", task, "base", 0, 0, "m", stage, level, tuple(played), len(turns), 0.0, StopReason.DONE
    )


def written(folder: Path, *rollouts: Rollout, manifest: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rollouts.jsonl").write_bytes(b"".join(to_line(rollout) for rollout in rollouts))
    if manifest is not None:
        (folder / "run.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("turns", "next_call", "steps"),
    [
        ([[[bad()], [good()]]], True, 1),
        ([[[bad()], [bad()], [good()]]], False, 2),
        ([[[bad()], [good("other")], [good()]]], True, 2),
        ([[[bad()], []], [[good()]]], True, None),  # repaired too late for its turn
        ([[[bad()], [good("other")]]], None, None),
        ([[[bad(), good()], []]], None, None),  # written before the answer was seen
        ([[[bad("pik", FailureKind.UNKNOWN_TOOL)], [good()]]], True, 1),
        ([[[bad("", FailureKind.MALFORMED_CALL)], [bad()], [good("x")]]], False, 2),
    ],
)
def test_an_event_says_what_followed(turns: Any, next_call: bool | None, steps: int | None) -> None:
    event = next(failure_events(rollout(*turns)))
    assert (event.next_call_succeeded, event.steps_to_success) == (next_call, steps)
    assert event.event_id == "t/0/0#0.0.0"


def test_the_report_adds_up_by_rule() -> None:
    run = [
        rollout([[bad(hint="a")], [good()], [bad(hint="bb")], []], task="t1"),
        rollout([[bad(hint="a")], [bad()], [bad()], [good()]], task="t2"),
    ]
    report = hint_report(run, LETTERS, horizon=6)
    assert (report.rollouts, report.calls, report.failures) == (2, 7, 5)
    # the two unhinted failures of t2 were repaired after 2 and 1 steps
    assert report.baseline_steps == {FailureKind.TOOL_ERROR: 1.5}
    assert report.baseline_failures == {FailureKind.TOOL_ERROR: 2}
    first, second = report.rules
    assert (first.rule, first.shown, first.fixed, first.followed, first.tasks) == ("rule.a", 2, 1, 2, 2)
    assert first.steps_saved == pytest.approx(1.5 - (1 + 3) / 2)
    assert first.uptake == 0.5
    assert (second.rule, second.tokens, second.steps_saved) == ("rule.bb", 2, 1.5 - 6)
    assert second.uptake == 0.0
    assert not hint_report(run).tokens_exact
    assert json.loads(json.dumps(report.to_plain()))["rules"][0]["uptake"] == 0.5


def test_steps_saved_need_something_to_compare_with() -> None:
    hinted = rollout([[bad(hint="a")], [good()]])
    (row,) = hint_report([hinted], LETTERS).rules
    assert row.steps_saved is None
    unhinted = rollout([[bad()], [bad()], [], []], level=0)
    (row,) = hint_report([hinted], LETTERS, baseline=[unhinted], horizon=4).rules
    assert row.steps_saved == 3.0
    other_kind = rollout([[bad(kind=FailureKind.TIMEOUT)], []], level=0)
    assert hint_report([hinted], LETTERS, baseline=[other_kind]).rules[0].steps_saved is None


def test_the_report_retires_rules() -> None:
    report = hint_report([rollout([[bad(hint="a")], [good()]])] * 30, LETTERS)
    dial = HintDial(3, retire=RuleRetirement())
    assert dial.at(uptake=report.uptake()).level_for("rule.a", "pick") < 3


@pytest.mark.parametrize(
    ("hint", "used", "suspects"),
    [
        ("It is A-17.", {"item": "A-17"}, ("A-17",)),
        ("It is A-171.", {"item": "A-17"}, ()),
        ("Use 'own'.", {"item": "own"}, ()),  # the agent's own value
        ("See the lamp.", {"item": "lamp"}, ()),  # the user's
        ("See B-2.", {"item": "B-2"}, ()),  # a tool's
        ("Give 42 of [rye].", {"item": ["rye", {"count": 42}], "b": True}, ("rye", "42")),
        ("Give 4 or no.", {"item": "no", "count": 4}, ()),  # too short to tell
        ("Look around.", {"item": "A-17"}, ()),
    ],
)
def test_a_value_that_only_the_hint_had_shown_is_suspect(hint: str, used: Any, suspects: tuple[str, ...]) -> None:
    failed = replace(bad(hint=hint), args={"item": "own"})
    steps = [[replace(good("list"), raw_content="B-2")], [failed], [replace(good(), args=used)]]
    found = rollout(steps)
    found = replace(found, turns=(replace(found.turns[0], user="A lamp, please."),))
    (event,) = failure_events(found)
    assert event.suspects == suspects
    assert hint_report([found]).rules[0].suspects == bool(suspects)


async def test_a_real_run_has_events_with_estimated_tokens(tmp_path: Path) -> None:
    wrong = calls_message(("pick_items", {"item": "lamp"}))
    model = ScriptedChatModel(script=[wrong, "I give up."])
    await collect(playground_tasks(0, 2), model, Playground, out=tmp_path, hints=3)
    assert tokenizer_of_run(read_rollouts(tmp_path)) is ESTIMATE
    (row,) = hint_report(read_rollouts(tmp_path)).rules
    texts = [event.hint.text for found in read_rollouts(tmp_path) for event in failure_events(found) if event.hint]
    assert row.rule == "schema.unknown_tool"
    assert row.shown == row.tasks == len(texts) == 2
    assert row.tokens == sum((len(text.encode()) + 3) // 4 for text in texts)


@pytest.mark.model
def test_tokens_are_counted_by_the_models_own_tokenizer() -> None:
    counter = token_counter("smollm2")
    traced = rollout([[]])
    step = RolloutStep("", prompt_token_ids=(1, 2))
    traced = replace(traced, model="smollm2", turns=(RolloutTurn("go", (step,)),))
    assert counter.exact
    assert tokenizer_of_run([traced]).name == counter.name == "tokenizer of smollm2"
    assert tokenizer_of_run([replace(traced, model="someone/served")]) is ESTIMATE
    assert counter.count("Only the tools listed for you can be called.") == 10
    assert counter.decode is not None


@pytest.mark.parametrize("stage", ["4", "stage 4", "stage_4", "4_alignment", "Alignment", "eval", "evaluation", "test"])
def test_stages_that_must_be_free_of_hints(stage: str) -> None:
    assert is_hint_free_stage(stage)


@pytest.mark.parametrize("stage", ["", "stage", "1", "2_basic", "3_complex", "14", "latest", "evaluated_hints"])
def test_stages_that_may_hold_hints(stage: str) -> None:
    assert not is_hint_free_stage(stage)


def clean() -> Rollout:
    return rollout([[bad(), good()], [good()]], stage="4_alignment", level=0)


def with_outcome(change: Callable[[CallOutcome], CallOutcome]) -> Rollout:
    found = clean()
    turn = found.turns[0]
    step = replace(turn.steps[0], outcomes=(change(turn.steps[0].outcomes[0]), *turn.steps[0].outcomes[1:]))
    return replace(found, turns=(replace(turn, steps=(step, *turn.steps[1:])),))


SHOWN = '{"error": "no", "hint": "Do it."}'
TAMPERED = {
    "hint": with_outcome(lambda outcome: replace(outcome, hint=Hint("r", 1, "Do it."))),
    "content": with_outcome(lambda outcome: replace(outcome, content=SHOWN)),
    "raw": with_outcome(lambda outcome: replace(outcome, content=SHOWN, raw_content=SHOWN)),
    "user": replace(clean(), turns=(replace(clean().turns[0], user=f"go\n{SHOWN}"),)),
}


def test_a_clean_run_passes(tmp_path: Path) -> None:
    audit = audit_run(written(tmp_path, clean()))
    assert audit.clean
    assert (audit.rollouts, audit.audited, audit.dial_on, audit.prompts_unread) == (1, 1, 0, 0)


@pytest.mark.parametrize("place", TAMPERED)
def test_a_hint_is_found_wherever_it_is_hidden(place: str, tmp_path: Path) -> None:
    audit = audit_run(written(tmp_path, clean(), TAMPERED[place]))
    (found,) = audit.findings
    assert (found.place, found.rollout_id, found.turn) == (place, "t/0/0", 0)
    assert found.tokens >= 1
    assert "Do it." in found.text


def test_one_added_byte_is_found(tmp_path: Path) -> None:
    changed = with_outcome(lambda outcome: replace(outcome, content=outcome.content + "!"))
    (found,) = audit_run(written(tmp_path, changed)).findings
    assert (found.place, found.text, found.tokens) == ("content", "!", 1)


BYTES = TokenCounter("bytes", len, decode=lambda ids: bytes(ids).decode())


def traced(prompts: list[str]) -> Rollout:
    """A rollout whose outcomes are clean and whose prompts hold these texts, a byte for a token."""
    steps = tuple(
        RolloutStep("", prompt_token_ids=tuple(text.encode()), completion_token_ids=(33,)) for text in prompts
    )
    return replace(clean(), turns=(RolloutTurn("go", steps),))


@pytest.mark.parametrize("shown", [SHOWN, json.dumps(SHOWN)])
def test_a_hint_in_the_prompt_tokens_is_found_though_the_record_was_cleaned(shown: str, tmp_path: Path) -> None:
    run = written(tmp_path, traced(["tools, go", "tools, go! no", f"tools, go! no! {shown}"]))
    (found,) = audit_run(run, BYTES).findings
    assert (found.place, found.turn, found.step) == ("prompt", 0, 2)
    unread = audit_run(run)
    assert unread.clean
    assert (unread.prompts_read, unread.prompts_unread) == (0, 3)
    assert audit_run(run, BYTES).prompts_read == 3


def test_a_tool_with_a_parameter_called_hint_is_no_hint(tmp_path: Path) -> None:
    schema = '{"name": "quiz", "parameters": {"properties": {"hint": {"type": "string"}}}}'
    assert audit_run(written(tmp_path, traced([schema])), BYTES).clean


def test_a_tool_that_gives_hints_itself_can_be_named(tmp_path: Path) -> None:
    run = written(tmp_path, TAMPERED["raw"], traced(["go", f"go! {SHOWN}"]))
    own = replace(traced(["go", f"go! {SHOWN}"]), rollout_id="t/0/1")
    step = replace(own.turns[0].steps[0], outcomes=(replace(bad(), content=SHOWN, raw_content=SHOWN),))
    own = replace(own, turns=(replace(own.turns[0], steps=(step, *own.turns[0].steps[1:])),))
    assert audit_run(written(tmp_path, own), BYTES, own_hint_tools=["pick"]).clean
    assert not audit_run(written(tmp_path, own), BYTES, own_hint_tools=["other"]).clean
    assert run.is_dir()


def test_only_runs_that_must_be_clean_are_audited(tmp_path: Path) -> None:
    hinted = rollout([[bad(hint="a")]], stage="2_basic")
    audit = audit_run(written(tmp_path, hinted))
    assert (audit.audited, audit.clean) == (0, True)
    assert not audit_run(tmp_path, everything=True).clean
    assert not audit_run(written(tmp_path, hinted, manifest={"stage": "evaluation"})).clean
    assert audit_run(tmp_path).dial_on == 1


def test_an_audit_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No rollouts at"):
        audit_run(tmp_path)
    with pytest.raises(RecordError, match="holds no rollouts"):
        audit_run(written(tmp_path))
    (tmp_path / "rollouts.jsonl").write_text('{"old": 1}\n')
    with pytest.raises(RecordError, match="line 1"):
        audit_run(tmp_path)
    written(tmp_path, clean())
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RecordError, match=r"run\.json"):
        audit_run(tmp_path)


async def test_a_run_at_level_0_is_clean_and_at_level_3_is_not(tmp_path: Path) -> None:
    model = ScriptedChatModel(script=[calls_message(("pick_items", {"item": "lamp"})), "I give up."])
    for level in (0, 3):
        out = tmp_path / str(level)
        await collect(playground_tasks(0, 2), model, Playground, out=out, hints=level, stage="alignment")
        audit = audit_run(out)
        assert audit.clean is (level == 0)
        assert audit.audited == 2
        assert audit.dial_on == (0 if level == 0 else 2)
