"""The JSON lines that verl's `file` logger writes -> what the curriculum and the table want to know."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envtune_agents.curriculum import Evaluation, LearningSignal, Silence
from envtune_agents.errors import CurriculumError
from envtune_verl.dataset import HINTED

_VALIDATION = re.compile(r"val-(?:core|aux)/(?P<source>.+)/(?P<name>acc|progress)/mean@\d+")
_MUST_BE_NUMBERS = ("actor/grad_norm", "actor/loss", "actor/pg_loss")
"""Metrics whose NaN ends a run; the logger writes NaN and infinities as null."""

_DIFFERS = 0.5
"""Smallest absolute advantage that tells of rewards that differ."""


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One line: all metrics of one training step, or of one validation."""

    step: int
    metrics: Mapping[str, float]
    """NaN where the logger wrote null."""

    @property
    def grad_norm(self) -> float | None:
        """Gradient norm before clipping; NaN when this or the loss is no number, None without a training step."""
        found = [self.metrics[name] for name in _MUST_BE_NUMBERS if name in self.metrics]
        broken = any(not math.isfinite(value) for value in found)
        return math.nan if broken else self.metrics.get("actor/grad_norm")

    @property
    def teaches_nothing(self) -> bool:
        """True when in each group all rewards are equal.

        Advantages are normalised by the group's deviation, so the largest of a group that differs is at least 0.7; verl
        leaves rounding noise of up to 0.2 where all are equal.
        """
        ends = [self.metrics.get(f"critic/advantages/{end}") for end in ("max", "min")]
        return all(end is not None and abs(end) < _DIFFERS for end in ends)

    def validated(self, name: str, source: str) -> float | None:
        """The mean of `acc` or `progress` over the validation rows of one `data_source`; None when it is not there."""
        for key, value in self.metrics.items():
            found = _VALIDATION.fullmatch(key)
            if found and (found["source"], found["name"]) == (source, name):
                return value
        return None


def read_log(path: Path, start: int = 0) -> tuple[list[LoggedStep], int]:
    """The whole lines from byte `start` on, and where the next one begins; a line still being written is left."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [_line(path, line) for line in whole.splitlines() if line.strip()], start + len(whole)


def _line(path: Path, line: bytes) -> LoggedStep:
    try:
        plain: dict[str, Any] = json.loads(line)
        metrics = {name: _number(value) for name, value in plain["data"].items() if _is_number(value)}
        return LoggedStep(int(plain["step"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CurriculumError(
            f"'{path}' is not a log of verl's file logger: {error}. Remove it and run the same command again."
        ) from error


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def merged(logs: Iterable[Iterable[LoggedStep]]) -> dict[int, LoggedStep]:
    """The lines of several attempts by step; a later attempt did the step again, so its numbers hold."""
    steps: dict[int, LoggedStep] = {}
    for log in logs:
        for line in log:
            before = steps[line.step].metrics if line.step in steps else {}
            steps[line.step] = LoggedStep(line.step, {**before, **line.metrics})
    return steps


def evaluation_at(
    steps: Mapping[int, LoggedStep], target: int, since: int, counts: Mapping[str, int]
) -> Evaluation | None:
    """What was measured at step `target`, with the gradient norms of the steps after `since`; None before validation.

    `counts` says how many validation tasks each category has; the score is the share of all that were solved.
    """
    line = steps.get(target)
    if line is None or all(line.validated("acc", category) is None for category in counts):
        return None
    norms = [steps[step].grad_norm for step in sorted(steps) if since < step <= target]
    plain, helped = (_mean(line, "progress", counts, suffix) for suffix in ("", HINTED))
    return Evaluation(
        step=target,
        score=_needed(_mean(line, "acc", counts), target),
        grad_norms=tuple(norm for norm in norms if norm is not None),
        hint_gap=helped - plain if helped is not None and plain is not None else None,
    )


def finding_in(steps: Mapping[int, LoggedStep], since: int, target: int) -> Silence | None:
    """Steps in a row that taught nothing, if they became a finding after step `since` and up to `target`."""
    signal = LearningSignal()
    found = None
    for step in sorted(steps):
        line = steps[step]
        reward = line.metrics.get("critic/score/mean")
        if reward is None or step > target:  # a validation alone
            continue
        silence = signal.observe(step, 0.0 if line.teaches_nothing else 1.0, reward)
        if silence is not None and signal.finding(silence) and step > since:
            found = silence
    return found


def _mean(line: LoggedStep, name: str, counts: Mapping[str, int], suffix: str = "") -> float | None:
    values = {category: line.validated(name, category + suffix) for category in counts}
    if any(value is None for value in values.values()):
        return None
    return sum((values[category] or 0.0) * count for category, count in counts.items()) / sum(counts.values())


def _needed(score: float | None, target: int) -> float:
    if score is None:
        raise CurriculumError(
            f"The validation of step {target} does not report every category; look at the trainer's output for errors."
        )
    return score
