"""The dial: caps, schedules, and a state that survives JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from envtune_agents.errors import HintRuleError
from envtune_agents.hints import HintDial, HintEngine, LinearFade, RuleRetirement, SuccessFade, Uptake
from envtune_agents.types import Task, ToolCall

TASK = Task("multi_turn_base_7", "multi_turn_base", ("Go.",))


def carried(dial: HintDial) -> HintDial:
    """The dial after a round trip through a file."""
    return HintDial.from_plain(json.loads(json.dumps(dial.to_plain())))


def test_a_cap_lowers_the_level_and_never_raises_it() -> None:
    dial = HintDial(2, tools={"cd": 1}, rules={"schema.unknown_tool": 0, "schema.wrong_type": 3})
    assert dial.level_for("schema.missing_argument", "cd") == 1
    assert dial.level_for("schema.unknown_tool", "x") == 0
    assert dial.level_for("schema.wrong_type", "tail") == 2
    assert HintEngine(dial=dial).outcome(ToolCall("cdd"), "Error: x", tools={"cd": {}}).hint is None


def test_a_cap_may_be_a_glob_and_the_lowest_counts() -> None:
    dial = HintDial(3, tools={"get_*": 2, "get_user": 1}, rules={"docs.*": 0})
    assert dial.level_for("schema.wrong_type", "get_user") == 1
    assert dial.level_for("schema.wrong_type", "get_room") == 2
    assert dial.level_for("docs.log_in_first", "post") == 0


def test_tasks_and_stages_have_caps_too() -> None:
    dial = HintDial(3, tasks={"multi_turn_base": 2, "*_7": 1}, stages={"alignment": 0})
    assert dial.for_episode(TASK).level == 1
    assert dial.for_episode(Task("multi_turn_base_8", "multi_turn_base", ())).level == 2
    assert dial.for_episode(TASK, stage="alignment").level == 0
    assert dial.for_episode(Task("x", "y", ()), stage="basic skill") is dial
    assert HintDial(0, tasks={"*": 3}).for_episode(TASK).level == 0


@pytest.mark.parametrize("level", [-1, 4, True, 1.5, "3", None])
def test_a_dial_has_four_levels(level: Any) -> None:
    for broken in ({"level": level}, {"tools": {"cd": level}}, {"stages": {"x": level}}):
        with pytest.raises(HintRuleError, match="0 to 3"):
            HintDial(**broken)
    with pytest.raises(HintRuleError, match="mapping"):
        HintDial(tools=["cd"])  # type: ignore[arg-type]


def test_a_linear_fade_gives_each_level_its_share() -> None:
    dial = HintDial(fade=LinearFade())
    assert [dial.at(progress=step / 8).level for step in range(9)] == [3, 3, 2, 2, 1, 1, 0, 0, 0]
    assert [LinearFade(2, 1, 100, 300).level(step) for step in (-5, 100, 199, 200, 300, 900)] == [2, 2, 2, 1, 1, 1]
    assert dial.at(success=1.0) == dial


def test_a_success_fade_steps_down_and_keeps_its_level_between_the_two_rates() -> None:
    dial = HintDial(fade=SuccessFade(fade_at=0.6, restore_at=0.3))
    levels = []
    for success in (0.2, 0.6, 0.5, 0.4, 0.7, 0.29, 0.35, 0.9, 0.9, 0.9, 0.0):
        dial = carried(dial.at(success=success))
        levels.append(dial.level)
    assert levels == [3, 2, 2, 2, 1, 2, 2, 1, 0, 0, 1]
    never = HintDial(1, fade=SuccessFade(restore_at=0.0, end=1))
    assert [never.at(success=rate).level for rate in (0.0, 1.0)] == [1, 1]


def test_a_rule_retires_step_by_step_as_its_hints_are_followed() -> None:
    dial = HintDial(retire=RuleRetirement(min_shown=10))
    caps = []
    for shown, fixed in ((6, 6), (6, 5), (10, 9), (10, 8), (10, 10)):
        dial = carried(dial.at(uptake={"docs.wrong_format": Uptake(shown, fixed)}))
        caps.append(dial.level_for("docs.wrong_format", "any"))
    assert caps == [3, 2, 1, 0, 0]
    assert dial.level_for("docs.out_of_range", "any") == 3


def test_a_rule_that_is_not_followed_gets_its_level_back() -> None:
    dial = HintDial(rules={"a": 1}, retire=RuleRetirement(min_shown=4))
    assert dial.at(uptake={"a": Uptake(4, 1)}).rules == {"a": 2}
    kept = dial.at(uptake={"a": Uptake(4, 2)})
    assert (kept.rules, kept.tally) == ({"a": 1}, {})
    assert dial.at(uptake={"a": Uptake(3, 3)}).tally == {"a": Uptake(3, 3)}
    assert HintDial(rules={"a": 1}).at(uptake={"a": Uptake(99, 99)}).rules == {"a": 1}


@pytest.mark.parametrize(
    "dial",
    [
        HintDial(),
        HintDial(1, {"a": 1}, {"b": 0}, {"c": 2}, {"d": 3}),
        HintDial(2, fade=LinearFade(finish=400)),
        HintDial(2, fade=SuccessFade(0.9, 0.1), retire=RuleRetirement(0.7), tally={"docs.x": Uptake(3, 2)}),
    ],
)
def test_a_dial_is_the_same_after_a_round_trip(dial: HintDial) -> None:
    assert carried(dial) == dial


def test_a_schedule_goes_on_where_it_stopped() -> None:
    measured = [(0.7, Uptake(6, 5)), (0.5, Uptake(6, 6)), (0.65, Uptake(9, 9)), (0.1, Uptake(12, 2))]
    straight = resumed = HintDial(fade=SuccessFade(), retire=RuleRetirement(min_shown=10))
    for success, uptake in measured:
        straight = straight.at(success=success, uptake={"r": uptake})
        resumed = carried(resumed).at(success=success, uptake={"r": uptake})
    assert straight == resumed
    assert straight.level < 3


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ({"level": 3, "speed": 1}, "speed: Unexpected"),
        ({"level": "3"}, "level: .*integer"),
        ({"level": 7}, "0 to 3, got 7"),
        ({"fade": {"kind": "cubic"}}, "fade.*'linear'"),
        ({"fade": {"kind": "linear", "finish": -1}}, "earlier to a later"),
        ({"rules": ["a"]}, "rules: .*object"),
        ({"tally": {"a": {"shown": 1, "fixed": 2}}}, "tally.a: .*fixed <= shown"),
        ({"retire": {"min_shown": 0}}, "min_shown >= 1"),
        ([1], "object"),
        ({"rules": {1, 2}}, "not JSON serializable"),
    ],
)
def test_what_is_no_dial_is_refused_by_name(plain: Any, says: str) -> None:
    with pytest.raises(HintRuleError, match=f"Not a hint dial: .*{says}"):
        HintDial.from_plain(plain)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: LinearFade(1, 2),
        lambda: LinearFade(begin=1.0, finish=1.0),
        lambda: LinearFade(4),
        lambda: SuccessFade(0.5, 0.5),
        lambda: SuccessFade(1.5),
        lambda: RuleRetirement(restore_at=0.9),
        lambda: Uptake(1, 2),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(broken: Any) -> None:
    with pytest.raises(HintRuleError, match="got"):
        broken()


def test_uptake_is_a_rate() -> None:
    assert Uptake().rate == 0.0
    assert Uptake(4, 3).rate == 0.75
    assert replace(Uptake(4, 3), fixed=4).rate == 1.0
