"""The report: every episode's entry, what it was made with, and every number that follows from them.

Numbers are worked out from the entries and never stored apart from them, so a report cannot disagree with itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from envtune_agents.errors import TaskError
from envtune_agents.evaluate.compare import Comparison, compared
from envtune_agents.evaluate.entry import NOT_PLAYED, Entry
from envtune_agents.evaluate.manifest import Manifest
from envtune_agents.evaluate.score import Finding, Score
from envtune_agents.evaluate.statistics import CONFIDENCE, paired_bounds, pass_at_k, pass_hat_k


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found.

    report = evaluate(model, tasks, environment)
    print(report)                                # the table
    report.score, report.categories["base"].low
    report.not_worse_than(0.8, margin=0.1)
    """

    manifest: Manifest
    entries: Sequence[Entry] = field(repr=False)
    """One for each episode asked for, task by task."""
    flagged: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Evaluated tasks with a bad label -> why it is; they count in every number but `score_without_flagged`."""
    folder: Path | None = None
    """Where the report and its rollouts are; None when they were not kept."""

    @property
    def score(self) -> Score:
        """The share of all episodes that were solved, with its interval."""
        return self.score_of(self.entries)

    @property
    def categories(self) -> dict[str, Score]:
        """The score of each category, in the order of the tasks."""
        names = list(dict.fromkeys(entry.category for entry in self.entries))
        return {name: self.score_of(entry for entry in self.entries if entry.category == name) for name in names}

    @property
    def category_mean(self) -> float:
        """The unweighted mean of the categories' scores, in [0, 1]: BFCL's overall accuracy."""
        return fmean(self.categories.values()) if self.entries else 0.0

    @property
    def score_without_flagged(self) -> Score:
        """The score of the tasks that are not flagged."""
        return self.score_of(entry for entry in self.entries if entry.task_id not in self.flagged)

    @property
    def complete(self) -> bool:
        """False when an interrupted run left episodes unplayed."""
        return not any(entry.ended == NOT_PLAYED for entry in self.entries)

    def score_of(self, entries: Iterable[Entry]) -> Score:
        """The score of some of the entries."""
        return Score(list(_solved_counts(entries).values()), self.manifest.samples)

    def solved_counts(self) -> dict[str, int]:
        """Task id -> how many of its episodes were solved."""
        return _solved_counts(self.entries)

    def pass_at(self, k: int) -> float:
        """The mean chance that at least one of k episodes solves a task, in [0, 1]; unbiased."""
        return self._mean_over_tasks(pass_at_k, k)

    def pass_hat(self, k: int) -> float:
        """The mean chance that all of k episodes solve a task, in [0, 1]; unbiased."""
        return self._mean_over_tasks(pass_hat_k, k)

    def compare(self, other: Report) -> Comparison:
        """This run against another on the tasks that both have, paired by id."""
        return compared(self._shares(), other._shares(), self.manifest.task_hashes, other.manifest.task_hashes)

    def not_worse_than(self, baseline: float | Report, margin: float = 0.0, confidence: float = CONFIDENCE) -> Finding:
        """Is it shown that the true score is at least `baseline - margin`? Demands proof: few tasks prove little.

        True when the one-sided lower bound reaches that far; wrong at most once in 1 / (1 - confidence) times. The
        bound is exact (Clopper-Pearson) for one sample a task. Against another report tasks are paired by id.
        """
        low, what = self._bound(baseline, confidence, upper=False)
        goal = _goal(baseline, margin)
        sign = "≥" if low >= goal else "<"
        return Finding(low >= goal, f"{what}, one-sided {confidence:.0%} lower bound {low:.3f} {sign} {goal:.3f}")

    def worse_than(self, baseline: float | Report, margin: float = 0.0, confidence: float = CONFIDENCE) -> Finding:
        """Is it shown that the true score is below `baseline - margin`? Raises few false alarms: chance alone is not
        enough.

        True when the one-sided upper bound stays below. `not_worse_than` and `worse_than` can both be false: then the
        tasks are too few to tell.
        """
        high, what = self._bound(baseline, confidence, upper=True)
        goal = _goal(baseline, margin)
        sign = "<" if high < goal else "≥"
        return Finding(high < goal, f"{what}, one-sided {confidence:.0%} upper bound {high:.3f} {sign} {goal:.3f}")

    def save(self, folder: str | Path) -> Path:
        """Writes report.json, evaluation.json, report.md and report.html, and gives the path of the first."""
        from envtune_agents.evaluate.files import write_report

        return write_report(self, Path(folder))

    def markdown(self) -> str:
        """The report as Markdown."""
        from envtune_agents.evaluate.pages import markdown

        return markdown(self)

    def html(self) -> str:
        """The report as one self-contained page."""
        from envtune_agents.evaluate.pages import html_page

        return html_page(self)

    def __str__(self) -> str:
        from envtune_agents.evaluate.pages import report_text

        return report_text(self)

    def _shares(self) -> dict[str, float]:
        return {task_id: solved / self.manifest.samples for task_id, solved in self.solved_counts().items()}

    def _mean_over_tasks(self, chance: Any, k: int) -> float:
        samples = self.manifest.samples
        if not 1 <= k <= samples:
            raise TaskError(f"k is 1 to {samples}, the number of samples of each task; got {k}.")
        counts = self.solved_counts().values()
        return fmean(chance(samples, solved, k) for solved in counts) if counts else 0.0

    def _bound(self, baseline: float | Report, confidence: float, *, upper: bool) -> tuple[float, str]:
        if isinstance(baseline, Report):
            comparison = self.compare(baseline)
            if not comparison.tasks:
                raise TaskError("The two reports share no task, so they cannot be compared.")
            bounds = paired_bounds(comparison.differences, confidence)
            what = f"difference {comparison.difference:+.3f} on {comparison.tasks} shared tasks"
        else:
            score = self.score
            bounds = score.one_sided(confidence)
            what = f"score {float(score):.3f} ({score.correct} of {score.total})"
        return (bounds.high if upper else bounds.low), what


def _goal(baseline: float | Report, margin: float) -> float:
    if not 0 <= margin <= 1:
        raise TaskError(f"margin is a share in [0, 1], got {margin}; 5 points are 0.05.")
    if isinstance(baseline, Report):
        return 0.0 - margin
    if not 0 <= baseline <= 1:
        raise TaskError(f"baseline is a share in [0, 1] or a Report, got {baseline}; 63.5% is 0.635.")
    return baseline - margin


def _solved_counts(entries: Iterable[Entry]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.task_id] = counts.get(entry.task_id, 0) + entry.solved
    return counts
