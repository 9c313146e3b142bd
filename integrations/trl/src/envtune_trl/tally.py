"""What rollouts add up to, in numbers that processes can exchange: each a sum and what it is divided by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from envtune_agents.progress import PROGRESS_REWARD, RewardMix
from envtune_agents.summary import CategoryTotals
from envtune_agents.tape import tape_of
from envtune_agents.types import FailureKind, Rollout

Tally: TypeAlias = dict[str, tuple[float, float]]
"""Name of a number -> its sum, and the count that its mean is taken over."""


def tally_of(rollouts: Sequence[Rollout], reward: RewardMix = PROGRESS_REWARD) -> Tally:
    """The sums of some rollouts: progress, success, hints, failures, and the groups in which `reward` differs."""
    total = CategoryTotals()
    for rollout in rollouts:
        total.add(rollout)
    scored = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    n, tapes = len(rollouts), [tape_of(rollout) for rollout in rollouts]
    taught = [one for one, tape in zip(rollouts, tapes, strict=True) if one.reward is not None and tape.branches]
    groups: dict[str, set[float]] = {}  # of what has a token: the rest has no advantage either
    parts = {name: 0.0 for name in ("format", "progress", "solved") if getattr(reward, name)}
    for rollout in taught:
        groups.setdefault(rollout.task_id, set()).add(round(reward(rollout), 6))  # the trainer counts in 32 bits
        parts = {name: parts[name] + worth for name, worth in reward.parts(rollout).items()}
    return {
        **{f"reward_{name}": (worth, len(taught)) for name, worth in parts.items()},
        "progress": (sum(scored), len(scored)),
        "solved": (total.solved, n),
        "errors": (total.errors, n),
        "calls": (total.calls, n),
        "failed_calls": (total.failures, total.calls),
        "format_errors": (_malformed(rollouts), total.calls),
        "hint_level": (sum(rollout.hint_level for rollout in rollouts), n),
        "hints": (total.hints, n),
        "hint_uptake": (total.fixed, total.hints),
        "mixed_groups": (sum(len(values) > 1 for values in groups.values()), len(groups)),
        "branches": (sum(len(tape.branches) for tape in tapes), n),
        "drifted": (sum(tape.drifted for tape in tapes), n),
    }


def means(tallies: Sequence[Tally]) -> dict[str, float]:
    """The mean of each number over all tallies; 0 where there was nothing to count."""
    return {name: sum(one[name][0] for one in tallies) / (_count(tallies, name) or 1) for name in tallies[0]}


def _count(tallies: Sequence[Mapping[str, tuple[float, float]]], name: str) -> float:
    return sum(one[name][1] for one in tallies)


def _malformed(rollouts: Sequence[Rollout]) -> int:
    return sum(
        outcome.failure is not None and outcome.failure.kind is FailureKind.MALFORMED_CALL
        for rollout in rollouts
        for turn in rollout.turns
        for step in turn.steps
        for outcome in step.outcomes
    )
