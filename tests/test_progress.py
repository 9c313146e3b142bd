from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from envtune_agents.errors import ScorerError
from envtune_agents.progress import (
    BINARY_REWARD,
    PROGRESS_REWARD,
    RewardMix,
    checked_score,
    episode_reward,
    format_reward,
    partial_score,
    strict_score,
)
from envtune_agents.types import (
    CallOutcome,
    FailureKind,
    Rollout,
    RolloutStep,
    RolloutTurn,
    StopReason,
    ToolFailure,
    TurnEvidence,
    TurnScore,
)

SCORERS = [strict_score, partial_score]


def evidence(state: tuple[bool, ...], response: tuple[bool, ...], **more: Any) -> TurnEvidence:
    def named(checks: tuple[bool, ...]) -> dict[str, bool]:
        return {str(index): check for index, check in enumerate(checks)}

    return TurnEvidence(0, named(state), named(response), **more)


def test_the_turn_score_is_state_times_response() -> None:
    for state, response in itertools.product((True, False), repeat=2):
        score = strict_score(evidence((state,), (response,)))
        assert score == TurnScore(state, response, state * response)


def test_partial_scores_are_shares() -> None:
    assert partial_score(evidence((True, False), (True,))).value == 0.5
    assert strict_score(evidence((True, False), (True,))).value == 0.0


@pytest.mark.parametrize("scorer", SCORERS)
def test_more_satisfied_checks_never_score_less(scorer: Any) -> None:
    for checks in itertools.product((False, True), repeat=4):
        before = scorer(evidence(checks[:2], checks[2:])).value
        for index in range(4):
            better = (*checks[:index], True, *checks[index + 1 :])
            assert scorer(evidence(better[:2], better[2:])).value >= before


@pytest.mark.parametrize("scorer", SCORERS)
def test_turns_that_need_nothing_and_turns_that_were_not_answered(scorer: Any) -> None:
    assert scorer(evidence((False,), (), judged=False)).value == 1.0
    assert scorer(evidence((True,), (True,), answered=False)).value == 0.0
    assert scorer(evidence((), ())).value == 1.0


def test_the_denominator_is_the_tasks_own_number_of_turns() -> None:
    assert episode_reward([TurnScore(1, 1, 1)], 4) == 0.25
    assert episode_reward([], 4) == 0.0
    with pytest.raises(ScorerError):
        episode_reward([TurnScore(1, 1, 1)] * 3, 2)
    with pytest.raises(ScorerError):
        episode_reward([], 0)


@pytest.mark.parametrize("value", [1.1, -0.1, float("nan"), None, "1"])
def test_a_score_outside_its_range_is_an_error_and_not_a_zero(value: Any) -> None:
    with pytest.raises(ScorerError, match="turn 0"):
        checked_score(lambda _: TurnScore(1.0, 1.0, value), evidence((), ()))


def test_a_scorer_that_raises_or_returns_something_else_is_an_error() -> None:
    with pytest.raises(ScorerError, match="ZeroDivisionError"):
        checked_score(lambda _: TurnScore(1, 1, 1 / 0), evidence((), ()))
    with pytest.raises(ScorerError, match="float"):
        checked_score(lambda _: 1.0, evidence((), ()))  # type: ignore[arg-type, return-value]


def rollout(*steps: tuple[FailureKind | None, ...]) -> Rollout:
    def outcome(kind: FailureKind | None) -> CallOutcome:
        return CallOutcome("f", {}, "", "", ToolFailure(kind, "") if kind else None)

    turn = RolloutTurn("hi", tuple(RolloutStep("", outcomes=tuple(map(outcome, kinds))) for kinds in steps))
    return Rollout("r", "t", "base", 0, 0, "m", "", 0, (turn,), 1, 0.0, StopReason.DONE)


def test_the_format_reward_of_the_first_stage() -> None:
    good, bad, broken = None, FailureKind.TOOL_ERROR, FailureKind.MALFORMED_CALL
    assert format_reward(rollout(())) == 0.0  # no call at all
    assert format_reward(rollout((broken,))) == 0.0
    assert format_reward(rollout((good,), ())) == 2.0
    assert format_reward(rollout((good,), (bad,), (broken,), ())) == pytest.approx(3 / 4 + 1 / 2)


def test_a_reward_mix_is_the_weighted_sum_of_its_parts() -> None:
    good, bad = None, FailureKind.TOOL_ERROR
    half = replace(rollout((good,), (bad,)), reward=0.5)
    assert RewardMix(format=0.1, progress=1.0).parts(half) == {"format": pytest.approx(0.15), "progress": 0.5}
    assert RewardMix(format=0.1, progress=1.0)(half) == pytest.approx(0.65)
    assert BINARY_REWARD(half) == 0.0
    turn = replace(half.turns[0], score=TurnScore(1.0, 1.0, 1.0))
    assert BINARY_REWARD(replace(half, turns=(turn,))) == 1.0


def test_a_failed_rollout_has_no_reward_and_weights_must_say_something() -> None:
    with pytest.raises(ScorerError, match="no reward"):
        PROGRESS_REWARD(replace(rollout(()), reward=None, error="boom"))
    for weights in ({}, {"progress": float("nan")}):
        with pytest.raises(ScorerError, match="finite weights"):
            RewardMix(**weights)
