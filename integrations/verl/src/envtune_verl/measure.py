"""Test tasks measured with verl's own validation: base and trained model, greedily and without hints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from envtune_agents.curriculum import Solved
from envtune_agents.errors import CurriculumError
from envtune_agents.types import Task
from envtune_verl.log import merged, read_log
from envtune_verl.overrides import hydra_lines
from envtune_verl.run_folder import StageFolder
from envtune_verl.settings import VerlSettings
from envtune_verl.table import Table
from envtune_verl.trainer_process import run_script

FOLDER = "test"
"""Folder of the measurements in a run's folder."""


def measured(
    folder: StageFolder,
    dataset: Path,
    weights: Path | str,
    log: Path,
    test: Sequence[Task],
    lock: int,
    settings: VerlSettings,
    table: Table,
) -> dict[str, Solved]:
    """What `weights` solve of the test tasks, by category; measured once with the script of the stage in `folder`."""
    if solved_in(log, test) is None:
        table.note(f"measuring {weights} on {len(test)} test tasks; see {log.with_suffix('.txt')}")
        run_script(measuring_command(folder, dataset, weights, log), log.with_suffix(".txt"), lock, settings)
    found = solved_in(log, test)
    if found is None:
        raise CurriculumError(f"The trainer ended without measuring the test tasks; see {log.with_suffix('.txt')}.")
    return found


def measuring_command(folder: StageFolder, dataset: Path, weights: Path | str, log: Path) -> list[str]:
    """The command that only validates `weights` on a dataset and writes the metrics to `log`."""
    values: dict[str, object] = {
        "data.val_files": dataset,
        "actor_rollout_ref.model.path": weights,
        "trainer.resume_mode": "disable",
        "trainer.val_only": True,
        "trainer.val_before_train": True,
        "trainer.logger": ["console", "file"],  # not a step of the stage whose script it is
    }
    return ["bash", str(folder.script), "1", str(log), *hydra_lines(values)]


def solved_in(log: Path, tasks: Sequence[Task]) -> dict[str, Solved] | None:
    """What a log says was solved of the test tasks, by category; None when nothing was measured yet.

    Raises `CurriculumError` when a category is missing.
    """
    counts = Counter(task.category for task in tasks)
    for line in merged([read_log(log)[0]]).values():
        shares = {category: line.validated("acc", category) for category in counts}
        if all(share is None for share in shares.values()):
            continue
        missing = sorted(category for category, share in shares.items() if share is None)
        if missing:
            raise CurriculumError(f"The test in {log} does not report {', '.join(missing)}; look at its output.")
        return {name: Solved(round((shares[name] or 0.0) * total), total) for name, total in counts.items()}
    return None
