"""Two runs side by side: the same tasks, paired by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envtune_agents.evaluate.statistics import Interval, paired_bootstrap, sign_test


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one run does against another on the tasks that both played."""

    difference: float
    """Share solved by this run minus that of the other, in [-1, 1]."""
    differences: Sequence[float]
    """For each shared task, its share solved here minus there."""
    better: int
    """Shared tasks that this run solved more often."""
    worse: int
    """Shared tasks that the other run solved more often."""
    only_here: int = 0
    """Tasks left out because the other run has none of that id."""
    only_there: int = 0
    changed: int = 0
    """Tasks of the same id left out because their messages or data differ."""

    @property
    def interval(self) -> Interval:
        """95% interval of the difference, from the paired bootstrap over tasks; worked out at every call."""
        return paired_bootstrap(self.differences)

    @property
    def tasks(self) -> int:
        """Tasks that were compared."""
        return len(self.differences)

    @property
    def p_value(self) -> float:
        """Two-sided exact sign test: how often chance alone would split better and worse this unevenly."""
        return sign_test(self.better, self.worse)

    def __str__(self) -> str:
        if not self.tasks:
            return f"nothing to compare: no task is in both runs{self._left_out()}"
        low, high = self.interval
        if self.difference < 0:
            low, high = -high, -low
        size = f"{'better' if self.difference > 0 else 'worse'} by {abs(100 * self.difference):.1f} points"
        interval = f"95% interval {100 * low:.1f}{'–' if low > 0 else ' to '}{100 * high:.1f}"
        note = "" if low > 0 else ", so no clear difference"
        split = f"{self.tasks} shared tasks: {self.better} solved more often here, {self.worse} there"
        test = f"sign test p = {self.p_value:.2g}"
        return f"{size if self.difference else 'equal'}, {interval}{note} ({split}; {test}){self._left_out()}"

    def _left_out(self) -> str:
        parts = [
            f"{count} {what}"
            for count, what in (
                (self.only_here, "only in this run"),
                (self.only_there, "only in the other"),
                (self.changed, "with other messages or data"),
            )
            if count
        ]
        return f"; left out: {', '.join(parts)}" if parts else ""


def compared(
    here: Mapping[str, float],
    there: Mapping[str, float],
    hashes_here: Mapping[str, str],
    hashes_there: Mapping[str, str],
) -> Comparison:
    """The comparison of two runs, each given as task id -> share solved, and as task id -> hash of the task."""
    both = [task_id for task_id in here if task_id in there]
    shared = [task_id for task_id in both if hashes_here.get(task_id) == hashes_there.get(task_id)]
    differences = [here[task_id] - there[task_id] for task_id in shared]
    return Comparison(
        difference=sum(differences) / len(differences) if differences else 0.0,
        differences=differences,
        better=sum(difference > 0 for difference in differences),
        worse=sum(difference < 0 for difference in differences),
        only_here=len(here) - len(both),
        only_there=len(there) - len(both),
        changed=len(both) - len(shared),
    )
