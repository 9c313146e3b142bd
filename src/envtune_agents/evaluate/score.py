"""A share that knows how sure it is, and what can be said about it against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from envtune_agents.evaluate.statistics import CONFIDENCE, Interval, effective_trials, exact_bounds, wilson


class Score(float):
    """A share of solved episodes in [0, 1]: a plain number in comparisons, with its interval when printed.

    print(report.score)                     # 0.720 (18 of 25, 95% interval 0.524-0.857)
    assert report.score >= 0.7
    """

    __slots__ = ("_solved", "high", "low", "samples")

    samples: int
    """Episodes of each task."""
    _solved: tuple[int, ...]
    low: float
    """Lower end of Wilson's 95% interval; with several samples a task, on the effective number of trials."""
    high: float
    """Upper end of it."""

    def __new__(cls, solved: Sequence[int], samples: int = 1) -> Self:
        """The score of tasks of which `solved[i]` of `samples` episodes were solved."""
        shares = [count / samples for count in solved]
        score = super().__new__(cls, fmean(shares) if shares else 0.0)
        score._solved, score.samples = tuple(solved), samples
        trials = effective_trials(shares, samples)
        score.low, score.high = wilson(score * trials, trials)
        return score

    @property
    def correct(self) -> int:
        """Episodes solved."""
        return sum(self._solved)

    @property
    def total(self) -> int:
        """Episodes asked for, played or not."""
        return len(self._solved) * self.samples

    def one_sided(self, confidence: float = CONFIDENCE) -> Interval:
        """The two one-sided bounds: exact for one sample a task, Wilson's on the effective trials for more."""
        if self.samples == 1:
            return exact_bounds(self.correct, self.total, confidence)
        trials = effective_trials([count / self.samples for count in self._solved], self.samples)
        return wilson(self * trials, trials, 2 * confidence - 1)

    def __repr__(self) -> str:
        return f"{float(self):.3f} ({self.correct} of {self.total}, 95% interval {self.low:.3f}-{self.high:.3f})"

    __str__ = __repr__

    def __getnewargs__(self) -> tuple[tuple[int, ...], int]:  # type: ignore[override]
        return self._solved, self.samples


@dataclass(frozen=True, slots=True, repr=False)
class Finding:
    """An answer to a yes-or-no question about a score: true or false, and the reason in words."""

    holds: bool
    reason: str

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        return f"{'yes' if self.holds else 'no'}: {self.reason}"
