"""Run many episodes at once, write each as it ends, and pick up where a killed run stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from langchain_core.language_models import BaseChatModel

from envtune_agents.errors import RecordError, TaskError
from envtune_agents.hints import as_engine
from envtune_agents.rollout.episode import EpisodeOptions, model_name, one_line, rollout_id, run_episode
from envtune_agents.rollout.store import RolloutStore
from envtune_agents.types import Environment, Rollout, StopReason, Task

if TYPE_CHECKING:
    from rich.progress import Progress

MANIFEST_NAME = "run.json"
_DECODING = ("precision", "temperature", "max_tokens", "top_p", "top_k")


@dataclass(frozen=True, slots=True)
class Collected:
    """What one call of `collect` did."""

    path: Path
    """The file that holds the rollouts."""
    written: int
    """Rollouts added by this call."""
    skipped: int
    """Rollouts that an earlier call had finished."""
    errors: int
    """Rollouts among `written` that ended with an error."""


async def collect(
    tasks: Sequence[Task],
    model: BaseChatModel,
    environment: Callable[[Task], Environment],
    *,
    out: str | Path,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 4,
    progress: bool = False,
    **options: Unpack[EpisodeOptions],
) -> Collected:
    """Plays every task `samples` times and appends each rollout to `out/rollouts.jsonl` as it ends.

    `environment` makes a fresh environment for a task; `concurrency` episodes run at the same time. A rollout that is
    already in the file is skipped, so the same call after a crash goes on where it stopped. `progress` shows a bar with
    rate and time left. Raises `RecordError` before any work when `out` cannot be written, is full, belongs to another
    running process, or holds rollouts of other settings.
    """
    if samples < 1 or concurrency < 1:
        raise TaskError(f"samples and concurrency are at least 1, got {samples} and {concurrency}.")
    with RolloutStore(out) as store:
        _check_manifest(store.folder, _settings(model, seed, options))
        wanted = [(task, sample) for task in tasks for sample in range(samples)]  # a group shares its first prompt
        open_jobs = [(task, n) for task, n in wanted if rollout_id(task.task_id, seed, n) not in store.finished]
        run = _Run(store, model, environment, seed, options)
        with _bar(len(wanted), len(wanted) - len(open_jobs)) if progress else nullcontext() as bar:
            await run.play(iter(open_jobs), min(concurrency, len(open_jobs)), bar)
    return Collected(store.path, len(open_jobs), len(wanted) - len(open_jobs), run.errors)


class _Run:
    """The workers of one `collect` call and what they share."""

    def __init__(
        self,
        store: RolloutStore,
        model: BaseChatModel,
        environment: Callable[[Task], Environment],
        seed: int,
        options: EpisodeOptions,
    ) -> None:
        self._store = store
        self._model = model
        self._environment = environment
        self._seed = seed
        self._options = options
        self.errors = 0
        self._solved = 0

    async def play(self, jobs: Iterator[tuple[Task, int]], workers: int, bar: Progress | None) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(jobs, bar))
        except* RecordError as failed:
            raise failed.exceptions[0] from None

    async def _work(self, jobs: Iterator[tuple[Task, int]], bar: Progress | None) -> None:
        for task, sample in jobs:
            rollout = await self._episode(task, sample)
            self._store.append(rollout)
            self.errors += rollout.error is not None
            self._solved += rollout.solved
            if bar:
                shown = bar.tasks[0]
                rate = f"{60 * shown.speed:.1f}/min" if shown.speed else ""
                bar.update(shown.id, advance=1, solved=self._solved, errors=self.errors, rate=rate)

    async def _episode(self, task: Task, sample: int) -> Rollout:
        try:
            return await run_episode(
                self._model, self._environment(task), seed=self._seed, sample=sample, **self._options
            )
        except Exception as error:
            return self._failed(task, sample, error)

    def _failed(self, task: Task, sample: int, error: Exception) -> Rollout:
        return Rollout(
            rollout_id=rollout_id(task.task_id, self._seed, sample),
            task_id=task.task_id,
            category=task.category,
            seed=self._seed,
            sample=sample,
            model=model_name(self._model),
            stage=self._options.get("stage", ""),
            hint_level=as_engine(self._options.get("hints", 3)).dial.level,
            turns=(),
            n_turns=len(task.turns),
            reward=None,
            stop_reason=StopReason.ERROR,
            error=one_line(error),
        )


def _settings(model: BaseChatModel, seed: int, options: EpisodeOptions) -> dict[str, Any]:
    engine = as_engine(options.get("hints", 3))
    scorer = options.get("scorer")
    plain = {key: value for key, value in options.items() if key not in ("hints", "scorer")}
    decoding = {name: getattr(model, name) for name in _DECODING if hasattr(model, name)}
    return {
        "model": model_name(model),
        "decoding": decoding,
        "seed": seed,
        "dial": asdict(engine.dial),
        "rules": [rule.name for rule in engine.rules],
        "scorer": getattr(scorer, "__name__", type(scorer).__name__) if scorer else "strict_score",
        **plain,
    }


def _check_manifest(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings beside the rollouts, or compares them with those already there."""
    path = folder / MANIFEST_NAME
    text = json.dumps(settings, indent=1, sort_keys=True)
    if not path.exists():
        path.write_text(text + "\n", encoding="utf-8")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"Cannot read {path}: {error}. Choose another folder.") from error
    now = json.loads(text)
    changed = [key for key in sorted({*known, *now}) if known.get(key) != now.get(key)]
    if changed:
        differences = "; ".join(f"{key} was {known.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise RecordError(f"{folder} holds rollouts of other settings: {differences}. Choose another folder.")


def _bar(total: int, finished: int) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("rollouts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[solved]} solved, {task.fields[errors]} errors"),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        speed_estimate_period=600,
    )
    bar.add_task("rollouts", total=total, completed=finished, solved=0, errors=0, rate="")
    return bar
