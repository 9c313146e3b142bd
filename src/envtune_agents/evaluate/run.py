"""`evaluate`: an agent and tasks in, a report out, whatever happens in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from langchain_core.language_models import BaseChatModel

from envtune_agents.errors import TaskError
from envtune_agents.evaluate.app import App, Graph, run_app_episode
from envtune_agents.evaluate.entry import Entry, entry_of, missing_entry
from envtune_agents.evaluate.files import resumed, write_manifest, write_report
from envtune_agents.evaluate.manifest import Manifest, fingerprint_of, settings_of
from envtune_agents.evaluate.report import Report
from envtune_agents.graph import MAX_STEPS
from envtune_agents.rollout import (
    EpisodeOptions,
    RolloutStore,
    collect,
    read_rollouts,
    run_episode,
    set_aside_errors,
)
from envtune_agents.rollout.episode import rollout_id
from envtune_agents.rollout.manifest import command_line, data_hash, print_of, task_hash, versions
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.types import Environment, Rollout, Task

Agent = BaseChatModel | Graph | Callable[[Environment], Graph]
"""A chat model, a compiled graph, or a function that compiles one around an environment."""

Tasks = str | TaskSource | Sequence[Task]
"""The name of a source as on the command line, a source, or tasks."""

STAGE = "evaluation"


def evaluate(
    agent: Agent,
    tasks: Tasks,
    environment: Callable[[Task], Environment] | None = None,
    **options: Any,
) -> Report:
    """Plays every task with the agent, without hints, and gives the report.

        report = evaluate(model, playground_tasks(seed=2, n=40), Playground)
        assert report.score >= 0.8

    `agent`: a LangChain chat model, which plays in the deployment graph with BFCL's turn loop; or a compiled LangGraph
    graph, or a function from an environment to one, which are an application of yours. `tasks`: tasks together with
    their `environment`, a `TaskSource`, or its name, such as "bfcl". The options are those of `aevaluate`, which is
    this function for callers inside an event loop. An interrupt (Ctrl-C) still leaves a report in `out`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(aevaluate(agent, tasks, environment, **options))
    raise TaskError("evaluate() cannot run inside an event loop; write `await aevaluate(...)` with the same arguments.")


async def aevaluate(
    agent: Agent,
    tasks: Tasks,
    environment: Callable[[Task], Environment] | None = None,
    *,
    out: str | Path | None = None,
    split: str = "test",
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 4,
    progress: bool = False,
    retry_errors: bool = False,
    name: str = "",
    **options: Unpack[EpisodeOptions],
) -> Report:
    """Plays every task `samples` times and gives the report; see `evaluate`.

    `out` keeps rollouts, report and manifest in a folder and makes the run resumable: the same call goes on where an
    earlier one stopped, and `retry_errors` plays its errors again. Without `out` only the report is left. `split` is
    for sources; `name` is what the manifest calls the tasks' source. The other options are those of `run_episode`;
    hints are off. A model call that fails for a passing reason is made again (`model_retry`). Nothing that an episode
    does raises: whatever ends it is in its entry, and its entry is in the total.
    """
    source, chosen, name = _tasks(tasks, environment, split, name)
    if options.get("hints", 0) != 0:
        raise TaskError("Evaluation plays without hints. To play with hints, use `collect`.")
    settings: EpisodeOptions = {
        "scorer": source.scorer,
        "max_steps": MAX_STEPS,
        "malformed_ends_turn": source.malformed_ends_turn,
        **options,
        "hints": 0,
        "stage": STAGE,
    }
    player: Any = agent if isinstance(agent, BaseChatModel) else App(agent)
    evaluation = _Evaluation(player, source, chosen, samples, seed, settings)
    manifest = evaluation.manifest(name, split)
    with _folder(out) as folder:
        manifest = _prepare(folder, manifest, retry_errors)
        try:
            await evaluation.play(folder, concurrency, progress)
        except (asyncio.CancelledError, KeyboardInterrupt):
            if out is not None:
                write_report(evaluation.report(folder, manifest, kept=True), folder)
            raise
        report = evaluation.report(folder, manifest, kept=out is not None)
        if out is not None:
            write_report(report, folder)
    return report


class _Evaluation:
    """One evaluation: what is played, and the report of what a folder holds of it."""

    def __init__(
        self,
        player: Any,
        source: TaskSource,
        tasks: Sequence[Task],
        samples: int,
        seed: int,
        settings: EpisodeOptions,
    ) -> None:
        self._player = player
        self._source = source
        self._tasks = tasks
        self._samples = samples
        self._seed = seed
        self._settings = settings
        self._started = time.perf_counter()
        self._played = 0

    def manifest(self, name: str, split: str) -> Manifest:
        """What this evaluation is made with."""
        hashes = {task.task_id: task_hash(task) for task in self._tasks}
        if len(hashes) < len(self._tasks):
            raise TaskError(f"{len(self._tasks) - len(hashes)} tasks have the id of another; ids must be unique.")
        return Manifest(
            model=print_of(self._player),
            source=name,
            split=split if name else "",
            samples=self._samples,
            seed=self._seed,
            data_sha256=data_hash(hashes.values()),
            task_hashes=hashes,
            settings=settings_of(self._settings),
            fingerprint=fingerprint_of(self._source),
            versions=versions(),
            command=command_line(),
            started=_now(),
        )

    async def play(self, folder: Path, concurrency: int, progress: bool) -> None:
        """Plays what the folder does not hold yet."""
        await collect(
            self._tasks,
            self._player,
            self._source.environment,
            out=folder,
            samples=self._samples,
            seed=self._seed,
            concurrency=concurrency,
            progress=progress,
            play=self._episode,
            **self._settings,
        )

    async def _episode(self, player: Any, environment: Environment, **options: Any) -> Rollout:
        play = run_app_episode if isinstance(player, App) else run_episode
        rollout = await play(player, environment, **options)
        self._played += 1
        return rollout

    def report(self, folder: Path, manifest: Manifest, *, kept: bool) -> Report:
        """The report of what the folder holds; what it lacks is an entry too."""
        wanted = {
            rollout_id(task.task_id, self._seed, sample): (task, sample)
            for task in self._tasks
            for sample in range(self._samples)
        }
        found: dict[str, Entry] = {}
        for rollout in read_rollouts(folder):
            if rollout.rollout_id in wanted:
                found[rollout.rollout_id] = entry_of(wanted[rollout.rollout_id][0], rollout, self._source)
        entries = [found.get(key) or missing_entry(task, sample) for key, (task, sample) in wanted.items()]
        flagged = self._source.flagged() if self._source.flagged else {}
        wall_s = time.perf_counter() - self._started
        return Report(
            replace(manifest, finished=_now(), wall_s=wall_s, played=self._played),
            entries,
            {task.task_id: flagged[task.task_id] for task in self._tasks if task.task_id in flagged},
            folder if kept else None,
        )


def _tasks(
    tasks: Tasks, environment: Callable[[Task], Environment] | None, split: str, name: str
) -> tuple[TaskSource, list[Task], str]:
    if isinstance(tasks, str):
        source = find_task_source(tasks)
        chosen, name = source.tasks(split), tasks
    elif isinstance(tasks, TaskSource):
        source, chosen = tasks, tasks.tasks(split)
    elif environment is None:
        raise TaskError("Tasks need their environment: evaluate(agent, tasks, environment), or give a TaskSource.")
    else:
        chosen = list(tasks)
        source = TaskSource(load=lambda split, categories: chosen, environment=environment)
    if not chosen:
        raise TaskError("There are no tasks to evaluate: the list is empty.")
    return source, chosen, name


def _prepare(folder: Path, manifest: Manifest, retry_errors: bool) -> Manifest:
    with RolloutStore(folder):
        pass  # a folder that cannot be written is refused before anything else
    manifest = resumed(folder, manifest)
    if retry_errors:
        set_aside_errors(folder)
    write_manifest(manifest, folder)
    return manifest


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with TemporaryDirectory(prefix="envtune-evaluation-") as folder:
        yield Path(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
