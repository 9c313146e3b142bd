"""What each training rollout earned, from the workers that play to the controller that chooses the help: one line each.

Workers run in many processes, on several machines, and share only the run's folder. So each process has a file of its
own, in a folder for each attempt at a chunk.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path


def note_reward(folder: Path, step: int, task_id: str, reward: float) -> None:
    """Adds one rollout of training step `step`; `reward` is its progress, in [0, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"step": step, "task_id": task_id, "reward": reward}) + "\n"
    with (folder / f"{socket.gethostname()}-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)


def reward_groups(attempts: Sequence[Path], since: int, target: int) -> list[tuple[str, list[float]]]:
    """Task and rewards of every group of the steps after `since` up to `target`, in the order of the steps.

    A step that a later attempt made again counts as that attempt made it. A line that a kill cut off is passed over.
    """
    steps: dict[int, dict[str, list[float]]] = {}
    for attempt in attempts:
        groups: dict[int, dict[str, list[float]]] = {}
        for file in sorted(attempt.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    found = json.loads(line)
                    tasks = groups.setdefault(int(found["step"]), {})
                    tasks.setdefault(found["task_id"], []).append(float(found["reward"]))
        steps |= groups
    wanted = [step for step in sorted(steps) if since < step <= target]
    return [(task_id, rewards) for step in wanted for task_id, rewards in sorted(steps[step].items())]
