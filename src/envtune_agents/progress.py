"""Turn evidence -> score in [0, 1]; turns -> episode reward; the paper's format reward for the first stage.

Pure arithmetic on records: no environment, no model, no ground truth. Events (`CallOutcome.failure`) and scores
(`TurnScore`) are different types and never share a list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envtune_agents.errors import ScorerError
from envtune_agents.types import (
    FailureKind,
    ProgressScorer,
    Rollout,
    TurnEvidence,
    TurnScore,
)


def strict_score(evidence: TurnEvidence) -> TurnScore:
    """The paper's turn score: state times response, each 0 or 1 (section 3.4; BFCL's state and response checks).

    A turn in which calls were needed and none was made scores 0; a turn in which nothing is asked for scores 1.
    """
    state = float(all(evidence.state_checks.values()))
    response = float(all(evidence.response_checks.values()))
    return _turn_score(evidence, state, response)


def partial_score(evidence: TurnEvidence) -> TurnScore:
    """A finer turn score: the share of state checks that hold times the share of needed results obtained (ours)."""
    return _turn_score(evidence, _share(evidence.state_checks), _share(evidence.response_checks))


def _turn_score(evidence: TurnEvidence, state: float, response: float) -> TurnScore:
    if not evidence.judged:
        return TurnScore(state, response, 1.0)
    return TurnScore(state, response, state * response if evidence.answered else 0.0)


def _share(checks: Mapping[str, bool]) -> float:
    return sum(checks.values()) / len(checks) if checks else 1.0


def checked_score(scorer: ProgressScorer, evidence: TurnEvidence) -> TurnScore:
    """`scorer(evidence)`; a scorer that raises or leaves [0, 1] is a `ScorerError`, never a silent 0."""
    try:
        score = scorer(evidence)
    except Exception as error:
        raise ScorerError(f"The scorer raised on turn {evidence.turn}: {type(error).__name__}: {error}") from error
    if not isinstance(score, TurnScore):
        raise ScorerError(f"A scorer returns a TurnScore; turn {evidence.turn} got {type(score).__name__}.")
    for part in ("state", "response", "value"):
        number = getattr(score, part)
        if not isinstance(number, int | float) or math.isnan(number) or not 0 <= number <= 1:
            raise ScorerError(f"A turn score lies in [0, 1]; turn {evidence.turn} got {part}={number!r}.")
    return score


def episode_reward(scores: Iterable[TurnScore], n_turns: int) -> float:
    """The progress reward R_P = (1/T) · sum of the turn scores, in [0, 1] (paper section 3.4).

    `n_turns` is T, the task's own number of turns: turns that were never reached count as 0, so an episode that stops
    after one good turn of four is worth 0.25.
    """
    values = [score.value for score in scores]
    if n_turns < 1 or len(values) > n_turns:
        raise ScorerError(f"{len(values)} turn scores do not fit a task of {n_turns} turns.")
    return sum(values) / n_turns


def format_reward(rollout: Rollout) -> float:
    """The first stage's reward R = I_tool · (R_format + R_tool), in [0, 2] (paper section 3.4).

    R_format is the share of replies without a malformed call, R_tool the share of calls that did their job, and I_tool
    is 0 for an episode without a single call.
    """
    steps = [step for turn in rollout.turns for step in turn.steps]
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    calls = [outcome for outcome in outcomes if not _malformed(outcome.failure)]
    if not calls:
        return 0.0
    broken = sum(any(_malformed(outcome.failure) for outcome in step.outcomes) for step in steps)
    correct = sum(outcome.failure is None for outcome in calls)
    return (len(steps) - broken) / len(steps) + correct / len(calls)


def _malformed(failure: object) -> bool:
    return getattr(failure, "kind", None) is FailureKind.MALFORMED_CALL


@dataclass(frozen=True, slots=True)
class RewardMix:
    """An episode's number for a trainer: a weighted sum of parts, each a property of its rollout.

    RewardMix(progress=1.0)(rollout)                       # the paper's progress reward, in [0, 1]
    RewardMix(progress=1.0, format=0.1).parts(rollout)     # {"format": 0.15, "progress": 0.5}
    """

    format: float = 0.0
    """Weight of `format_reward`, which lies in [0, 2]."""
    progress: float = 0.0
    """Weight of the mean turn score, in [0, 1] (`Rollout.reward`)."""
    solved: float = 0.0
    """Weight of the binary verdict: 1 when every turn scored 1, else 0."""

    def __post_init__(self) -> None:
        weights = (self.format, self.progress, self.solved)
        if not all(math.isfinite(weight) for weight in weights) or not any(weights):
            raise ScorerError(f"A reward needs finite weights, at least one of them not 0; got {weights}.")

    def parts(self, rollout: Rollout) -> dict[str, float]:
        """Each part that has a weight, already weighted. A rollout with an error has no reward: `ScorerError`."""
        if rollout.error is not None or rollout.reward is None:
            raise ScorerError(f"The rollout {rollout.rollout_id} has no reward, it ended with: {rollout.error}.")
        worth = {
            "format": format_reward(rollout) if self.format else 0.0,
            "progress": rollout.reward,
            "solved": float(rollout.solved),
        }
        return {name: weight * worth[name] for name in worth if (weight := getattr(self, name))}

    def __call__(self, rollout: Rollout) -> float:
        """The sum of the parts."""
        return sum(self.parts(rollout).values())


FORMAT_REWARD = RewardMix(format=1.0)
"""Stage 1: R = I_tool · (R_format + R_tool), in [0, 2] (paper section 3.4)."""
PROGRESS_REWARD = RewardMix(progress=1.0)
"""Stages 2 to 4: R_P, in [0, 1] (paper section 3.4)."""
BINARY_REWARD = RewardMix(solved=1.0)
"""All or nothing; the paper's ablation, under which it learns almost nothing on the hard categories."""
