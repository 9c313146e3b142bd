"""Replays -> how much the policy depends on each rule, with an interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from envtune_agents.counterfactual.store import Replay

_RESAMPLES = 2_000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class RuleGap:
    """What the hints of one rule are worth to the model that was replayed."""

    rule: str
    replays: int
    """Pairs of continuations."""
    tasks: int
    """Different tasks among them."""
    score_with: float
    """Mean score of the turn with the hint, in [0, 1]."""
    score_without: float
    """Mean score without it, the rule silent for the rest of the turn."""
    gap: float
    """Dependence gap: score with minus score without, in [-1, 1]; near 0 the rule can retire."""
    low: float | None
    """Lower end of the 95% interval of the gap; None with fewer than two tasks."""
    high: float | None
    errors: int = 0
    """Replays of this rule that ended with an error and are in no other number."""


def dependence_gaps(replays: Iterable[Replay], *, seed: int = 0) -> list[RuleGap]:
    """The dependence gap of each rule, the largest first; rules whose every replay failed come last, with gap 0.

    The interval is a percentile bootstrap over tasks (2,000 resamples): the replays of one task are alike, so whole
    tasks are drawn. It says how far the gap would move with other tasks, not with another model.
    """
    groups: dict[str, list[Replay]] = {}
    for replay in replays:
        groups.setdefault(replay.rule, []).append(replay)
    gaps = [_gap(rule, group, seed) for rule, group in groups.items()]
    return sorted(gaps, key=lambda gap: (not gap.replays, -gap.gap, gap.rule))


def _gap(rule: str, replays: Sequence[Replay], seed: int) -> RuleGap:
    by_task: dict[str, list[float]] = {}
    with_hint, without = [], []
    for replay in replays:
        if replay.gap is None or replay.with_hint is None or replay.without_hint is None:
            continue
        with_hint.append(replay.with_hint.score or 0.0)
        without.append(replay.without_hint.score or 0.0)
        by_task.setdefault(replay.task_id, []).append(replay.gap)
    low, high = _interval(list(by_task.values()), Random(f"{seed} {rule}"))
    gaps = [gap for group in by_task.values() for gap in group]
    return RuleGap(
        rule=rule,
        replays=len(gaps),
        tasks=len(by_task),
        score_with=fmean(with_hint) if with_hint else 0.0,
        score_without=fmean(without) if without else 0.0,
        gap=fmean(gaps) if gaps else 0.0,
        low=low,
        high=high,
        errors=len(replays) - len(gaps),
    )


def _interval(groups: Sequence[Sequence[float]], random: Random) -> tuple[float | None, float | None]:
    if len(groups) < 2:
        return None, None
    means = []
    for _ in range(_RESAMPLES):
        drawn = random.choices(groups, k=len(groups))
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    means.sort()
    tail = (1 - _CONFIDENCE) / 2
    return means[int(tail * _RESAMPLES)], means[int((1 - tail) * _RESAMPLES) - 1]
