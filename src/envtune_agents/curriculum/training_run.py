"""What every trainer needs of a run: its tasks, its budgets, that nothing has changed, and what it leaves behind.

In: a source's tasks, settings as plain values. Out: the two lists, budgets of steps, one file that a later call of the
same run is held against, and `Trained`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from envtune_agents.curriculum.curriculum import Curriculum
from envtune_agents.curriculum.settings import LearningSettings
from envtune_agents.curriculum.stages import Stage
from envtune_agents.errors import CurriculumError, MissingDependencyError
from envtune_agents.types import Task

if TYPE_CHECKING:
    from envtune_agents.task_source import TaskSource

_SAMPLES, _SAMPLE_BYTES = 64, 4096
"""Of a large file: two trainings of one model differ in nearly every number, and reading all takes minutes."""
VALIDATION = "validation"
"""The split that validation tasks come from, where a source has it."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left behind."""

    weights: Path
    """Folder of the trained weights: an adapter with LoRA, else a whole checkpoint. Where a run was stopped before it
    had any, what the stage began with."""
    curriculum: Curriculum
    """Every decision and evaluation."""
    finished: bool
    """False when a stage was stopped because its numbers broke; `weights` are the last good ones then."""


def check_version(
    package: str, low: tuple[int, int], high: tuple[int, int], *, feature: str, install: str, extra: str = ""
) -> None:
    """Raises `MissingDependencyError` unless `package` is installed in a version from `low` to before `high`.

    `feature` completes the sentence "… needs …"; `install` is the command that installs it, `extra` what follows the
    name where another version replaces the one that is there.
    """
    bounds = f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise MissingDependencyError(
            f"{feature[0].upper()}{feature[1:]} needs {package}{bounds}. Install it with:\n  {install}"
        ) from None
    if not low <= Version(found).release[:2] < high:
        raise MissingDependencyError(
            f"{package} {found} is installed, and {feature} is known to work with {bounds}. Install it with:\n"
            f"  pip install '{package}{extra}{bounds}'"
        )


def split_tasks(
    source: TaskSource,
    count: int,
    *,
    tasks: Sequence[Task] | None = None,
    validation: Sequence[Task] | None = None,
) -> tuple[list[Task], list[Task], str]:
    """The tasks to train on, at most `count` to validate with, of all categories alike, and the latter's split.

    `tasks` and `validation` replace the source's "train" and "validation" splits. A source without the latter has a
    part of its training tasks held out. Raises `TaskError` when the source gives no tasks, and `CurriculumError` when
    there are too few to hold some out.
    """
    training = list(tasks) if tasks is not None else source.tasks("train")
    split = VALIDATION
    if validation is None and (validation := source.tasks_if_any(VALIDATION)) is None:
        training, validation = _held_out(training, count)
        split = "train"
    if not training or not validation:
        raise CurriculumError(
            f"Training needs tasks to train on and to validate with; got {len(training)} and {len(validation)}."
        )
    return training, _evenly(list(validation), count), split


def _held_out(training: list[Task], count: int) -> tuple[list[Task], list[Task]]:
    """Every fourth task held out, or fewer of many; up to `count`."""
    every = max(2, min(4, len(training) // count or 4))
    validation = training[::every][:count]
    held = {task.task_id for task in validation}
    return [task for task in training if task.task_id not in held], validation


def _evenly(tasks: list[Task], count: int) -> list[Task]:
    """At most `count` tasks, of all categories alike."""
    by_category: dict[str, list[Task]] = {}
    for task in tasks:
        by_category.setdefault(task.category, []).append(task)
    found: list[Task] = []
    while len(found) < min(count, len(tasks)):
        for group in by_category.values():
            if group and len(found) < count:
                found.append(group.pop(0))
    return found


def with_budget(stage: Stage, tasks: Sequence[Task]) -> Stage:
    """The stage with its epochs turned into a budget of steps, unless it names one."""
    if stage.max_steps is not None:
        return stage
    return replace(stage, max_steps=math.ceil(stage.epochs * len(stage.tasks(tasks)) / stage.prompts))


def run_identity(
    model: str | Path,
    tasks: Sequence[Task],
    validation: Sequence[Task],
    stages: Sequence[Stage],
    settings: LearningSettings,
) -> dict[str, Any]:
    """What a run depends on, for `check_unchanged`: settings in `FREE` are left out."""
    return {
        "model": str(model),
        "model files": checkpoint_digest(model),
        "tasks": task_digest(tasks),
        "validation tasks": task_digest(validation),
        "stages": [asdict(stage) for stage in stages],
        **{key: value for key, value in asdict(settings).items() if key not in settings.FREE},
    }


def check_unchanged(path: Path, now: Mapping[str, Any]) -> None:
    """Writes what a run depends on, or raises `CurriculumError` that names what differs from what is there."""
    values = json.loads(json.dumps(now))
    if not path.exists():
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CurriculumError(f"Cannot read {path}: {error}. Choose another folder.") from error
    changed = [key for key in sorted({*known, *values}) if known.get(key) != values.get(key)]
    if changed:
        raise CurriculumError(
            f"{path.parent} holds a run that began with another {', '.join(changed)}. Use the same, or another folder."
        )


def task_digest(tasks: Sequence[Task]) -> str:
    """What tells one list of tasks from another: their names, what is said in them, and the data of their worlds."""
    plain = [[task.task_id, task.category, list(task.turns), dict(task.data)] for task in tasks]
    text = json.dumps(plain, skipkeys=True, default=lambda value: type(value).__name__)
    return f"{len(tasks)} tasks, {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def checkpoint_digest(model: str | Path) -> str:
    """What tells one checkpoint from another: the names, sizes and samples of its files, or its name for a hub id."""
    path = Path(model).expanduser()
    if not path.exists():
        return str(model)
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file()):
        size = file.stat().st_size
        found.update(f"{file.name}:{size}|".encode())
        with file.open("rb") as content:
            for at in range(0, size, max(size // _SAMPLES, _SAMPLE_BYTES)):
                content.seek(at)
                found.update(content.read(_SAMPLE_BYTES))
    return found.hexdigest()[:16]
