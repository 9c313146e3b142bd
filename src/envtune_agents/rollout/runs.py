"""Runs on disk -> what each was made with, what came out, and in what they differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envtune_agents.errors import RecordError
from envtune_agents.rollout.files import FILE_NAME, ZSTD_NAME, read_lines
from envtune_agents.rollout.manifest import RunManifest, read_manifest

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Run:
    """One run, summed up."""

    folder: Path
    manifest: RunManifest | None
    rollouts: int = 0
    tasks: int = 0
    """Tasks with at least one rollout."""
    solved: int = 0
    """Rollouts in which every turn scored 1."""
    errors: int = 0
    reward: float | None = None
    """Mean over the rollouts that have one."""
    drifted: int = 0
    """Model calls whose prompt did not go on exactly from the tokens sampled before."""
    models: tuple[str, ...] = ()
    """More than one for a file that mixes runs."""
    problem: str = ""
    """Why the run could not be read to its end."""


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """The runs in these folders and below them, oldest first; a damaged run is listed with its problem.

    Raises `RecordError` when there is none at all.
    """
    places = [Path(folder) for folder in folders]
    files = {
        file.parent for place in places for name in (FILE_NAME, ZSTD_NAME) for file in sorted(place.glob(f"**/{name}"))
    }
    if not files:
        raise RecordError(
            f"No runs in {', '.join(map(str, places))}. A run writes {FILE_NAME}: envtune collect --out runs/first"
        )
    return sorted(
        (sum_up(folder) for folder in files), key=lambda run: (run.manifest.started if run.manifest else "", run.folder)
    )


def sum_up(folder: str | Path) -> Run:
    """One run, read as a stream; only what is summed up is looked at."""
    folder, manifest, problem = Path(folder), None, ""
    try:
        manifest = read_manifest(folder)
    except RecordError as error:
        problem = str(error)
    count = solved = errors = drifted = 0
    rewards: list[float] = []
    tasks: set[str] = set()
    models: dict[str, None] = {}
    try:
        for number, line in read_lines(folder):
            record = _record(line, number)
            count += 1
            solved += _solved(record)
            errors += record.get("error") is not None
            drifted += (record.get("tape") or {}).get("drifted", 0)
            rewards += [record["reward"]] if record.get("reward") is not None else []
            tasks.add(record["task_id"])
            models[record["model"]] = None
    except RecordError as error:
        problem = str(error)
    reward = sum(rewards) / len(rewards) if rewards else None
    return Run(folder, manifest, count, len(tasks), solved, errors, reward, drifted, tuple(models), problem)


def differences(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Name of a setting -> its value in each run, for the settings in which runs with a manifest differ."""
    made = {str(run.folder): _made_with(run.manifest) for run in runs if run.manifest}
    names = {name for values in made.values() for name in values}
    return {
        name: shown
        for name in sorted(names)
        if len(set((shown := {run: values.get(name, "-") for run, values in made.items()}).values())) > 1
    }


def runs_table(runs: Sequence[Run]) -> Table:
    """The runs as a table, one line each."""
    from rich.table import Table

    table = Table(box=None, header_style="bold cyan", padding=(0, 1, 0, 0))
    for name in ("run", "started", "model", "stage", "dial"):
        table.add_column(name, overflow="fold")
    for name in ("tasks", "rollouts", "solved", "reward", "errors", "drifted"):
        table.add_column(name, justify="right")
    for run in runs:
        settings = run.manifest.settings if run.manifest else {}
        table.add_row(
            str(run.folder),
            (run.manifest.started if run.manifest else "")[:16],
            " + ".join(run.models),
            str(settings.get("stage") or ""),
            str((settings.get("dial") or {}).get("level", "")),
            f"{run.tasks}",
            f"{run.rollouts}",
            f"{run.solved}",
            "-" if run.reward is None else f"{run.reward:.3f}",
            f"{run.errors}",
            f"{run.drifted}",
        )
    return table


def _record(line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or "task_id" not in record or "model" not in record:
            raise ValueError("not a rollout record")
    except (ValueError, RecursionError) as error:
        raise RecordError(f"line {number} is damaged: {error}; what follows was not counted") from error
    return record


def _solved(record: dict[str, Any]) -> bool:
    scores = [turn.get("score") for turn in record.get("turns") or []]
    return record.get("stop_reason") == "done" and all(score is not None and score["value"] == 1.0 for score in scores)


def _made_with(manifest: RunManifest) -> dict[str, str]:
    values = {
        "model": manifest.model.name,
        "weights": manifest.model.sha256[:16],
        "precision": manifest.model.precision,
        "template": manifest.model.template_hash,
        "tasks": f"{manifest.n_tasks} ({manifest.data_sha256[:16]})",
        "samples": manifest.samples,
        **{f"decoding.{name}": value for name, value in manifest.model.decoding.items()},
        **{f"version of {name}": value for name, value in manifest.versions.items()},
        **manifest.settings,
    }
    return {name: json.dumps(value) for name, value in values.items()}
