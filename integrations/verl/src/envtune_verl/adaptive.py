"""Hint levels that follow need: from the rewards of one chunk to the levels of the next, kept with the stage."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from envtune_agents.curriculum import DifficultyController, Stage
from envtune_agents.types import Task
from envtune_verl.rewards import reward_groups
from envtune_verl.run_folder import Help, StageFolder

DIFFICULTY = "difficulty.json"
"""File of a stage in which its levels are kept."""


class AdaptiveHelp:
    """The `DifficultyController` of an augmented stage, moved after each chunk, up to the stage's own level.

    It begins with what the stages `before` it found out.
    """

    def __init__(self, folder: StageFolder, stage: Stage, before: Sequence[StageFolder] = ()) -> None:
        self._folder = folder
        self._path = folder.path / DIFFICULTY
        self._step, limit = 0, stage.hint_level
        state = DifficultyController().state()
        for earlier in (*before, folder):
            if (path := earlier.path / DIFFICULTY).exists():
                known = json.loads(path.read_text(encoding="utf-8"))
                state, self._step = known["controller"], known["step"] if earlier == folder else 0
        self._controller = DifficultyController.at({**state, "start": limit, "ceiling": limit})

    def level(self, task: Task) -> int:
        """The task's level for the next chunk."""
        return self._controller.level(task.task_id)

    def next_chunk(self, log: Path) -> Help:
        """The help of the chunk whose metrics go to `log`."""
        return Help(self.level, log.with_suffix(".rewards"))

    def learn(self, target: int) -> str | None:
        """Takes in the chunk that ended at step `target`, once; gives what it found in words."""
        if target <= self._step:
            return None
        groups = reward_groups(self._folder.rewards(target), self._step, target)
        for task_id, rewards in groups:
            self._controller.observe(task_id, rewards)
        self._step = target
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps({"step": target, "controller": self._controller.state()}), encoding="utf-8")
        os.replace(part, self._path)
        if not groups:
            return "No rollout left its reward, so hint levels stay as they are; the workers must see the run's folder."
        return f"Help: mean hint level {self._controller.mean_level:.2f} after {len(groups)} groups."
