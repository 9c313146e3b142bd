"""`DifficultyController`: how much help each task gets, so that its group of rollouts is worth learning from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Self

from envtune_agents.errors import CurriculumError
from envtune_agents.hints import HintDial
from envtune_agents.hints.fades import MAX_LEVEL


@dataclass(slots=True)
class DifficultyController:
    """A hint level for each task, moved so that the group's success stays in a band.

    GRPO learns nothing from a group in which all fail or all succeed. A task whose success stays below the band gets
    one level more help, one above it one level less; it takes `patience` groups in a row, so that luck does not move
    it. `ceiling` fades all help: lower it as the agent needs less, 0 turns every hint off (ours).

        controller = DifficultyController(start=2)
        level = controller.level("task_7")
        controller.observe("task_7", [0.0, 0.0, 0.0, 0.25])
    """

    start: int = MAX_LEVEL
    """Level of a task that was not seen yet, 0 to 3."""
    band: tuple[float, float] = (0.2, 0.8)
    """Mean reward of a group, in [0, 1]."""
    patience: int = 2
    """Groups in a row outside the band before the level moves."""
    ceiling: int = MAX_LEVEL
    """No task gets more than this."""
    _levels: dict[str, int] = field(default_factory=dict)
    _streaks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        HintDial(self.start)
        HintDial(self.ceiling)
        low, high = self.band
        if not 0 <= low < high <= 1 or self.patience < 1:
            raise CurriculumError(
                f"A band lies in [0, 1] and patience is at least 1, got {self.band}, {self.patience}."
            )

    def level(self, task_id: str) -> int:
        """The level for the task's next group."""
        return min(self._levels.get(task_id, self.start), self.ceiling)

    def observe(self, task_id: str, rewards: Iterable[float]) -> int:
        """Takes in the rewards of one group, each in [0, 1], and gives the level for the next one."""
        found = list(rewards)
        if not found:
            return self.level(task_id)
        success = mean(found)
        low, high = self.band
        wanted = 1 if success < low else -1 if success > high else 0
        streak = self._streaks.get(task_id, 0)
        streak = 0 if wanted == 0 else wanted + (streak if streak * wanted > 0 else 0)
        if abs(streak) >= self.patience:
            self._levels[task_id] = min(max(self.level(task_id) + wanted, 0), self.ceiling)
            streak = 0
        self._streaks[task_id] = streak
        return self.level(task_id)

    @property
    def mean_level(self) -> float:
        """Mean level over the tasks seen so far: how much help the agent still needs."""
        return mean(self.level(task_id) for task_id in self._levels) if self._levels else float(self.level(""))

    def state(self) -> dict[str, Any]:
        """The controller as one JSON value."""
        return {
            "start": self.start,
            "band": list(self.band),
            "patience": self.patience,
            "ceiling": self.ceiling,
            "levels": dict(self._levels),
            "streaks": dict(self._streaks),
        }

    @classmethod
    def at(cls, state: Mapping[str, Any]) -> Self:
        """The controller at a saved state."""
        controller = cls(state["start"], tuple(state["band"]), state["patience"], state["ceiling"])
        controller._levels = dict(state["levels"])
        controller._streaks = dict(state["streaks"])
        return controller
