"""Run many episodes at once, write each as it ends, and pick up where a killed run stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from langchain_core.language_models import BaseChatModel

from envtune_agents.errors import CollectionError, RecordError, TaskError
from envtune_agents.hints import as_engine
from envtune_agents.rollout.bar import collection_bar, show
from envtune_agents.rollout.episode import EpisodeOptions, failed_rollout, rollout_id, run_episode
from envtune_agents.rollout.manifest import run_manifest, write_manifest
from envtune_agents.rollout.pace import Pace, Straggler
from envtune_agents.rollout.player import LocalPlayer, Play, Player
from envtune_agents.rollout.store import RolloutStore
from envtune_agents.types import Environment, Rollout, Task

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

_UNWRITTEN = ("hints", "scorer", "model_retry")
_WATCH_INTERVAL_S = 5.0


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
    stragglers: tuple[Straggler, ...] = ()
    """Rollouts among `written` that took more than four times the median."""
    drifted: int = 0
    """Model calls whose prompt did not go on exactly from the tokens sampled before: each opened a new branch."""
    untrainable: int = 0
    """Rollouts among `written` without a token to train on; `Rollout.tape.note` says why."""


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
    zstd: bool = False,
    play: Play = run_episode,
    **options: Unpack[EpisodeOptions],
) -> Collected:
    """Plays every task `samples` times and appends each rollout to `out/rollouts.jsonl` as it ends.

    `environment` makes a fresh environment for a task; `concurrency` episodes run at the same time. A rollout that is
    already in the file is skipped, so the same call after a crash goes on where it stopped. `progress` shows a bar with
    the share solved, the time left and the stragglers; `zstd` writes `rollouts.jsonl.zst`; `play` plays one episode and
    is called as `run_episode` is. `out/manifest.json` says what the run was made with. Raises `RecordError` before any
    work when `out` cannot be written, is full, belongs to another running process, or holds rollouts of other settings.
    """
    player = LocalPlayer(model, environment, seed=seed, play=play, options=options)
    return await collect_with(
        player,
        tasks,
        out=out,
        samples=samples,
        seed=seed,
        concurrency=concurrency,
        progress=progress,
        zstd=zstd,
        **options,
    )


async def collect_with(
    player: Player,
    tasks: Sequence[Task],
    *,
    out: str | Path,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 4,
    progress: bool = False,
    zstd: bool = False,
    **options: Unpack[EpisodeOptions],
) -> Collected:
    """`collect` with any player: the same order, file, manifest, resuming and reports.

    `seed` and `options` are those the player plays with; here they go into names, records of failures and the manifest.
    Raises what `collect` does, and `CollectionError` when the player cannot go on.
    """
    if samples < 1 or concurrency < 1:
        raise TaskError(f"samples and concurrency are at least 1, got {samples} and {concurrency}.")
    with RolloutStore(out, zstd=zstd) as store:
        model = await player.model_print()
        settings = _settings(seed, options)
        manifest = await asyncio.to_thread(run_manifest, model, tasks, settings=settings, samples=samples)
        write_manifest(store.folder, manifest)
        wanted = [(task, sample) for task in tasks for sample in range(samples)]  # a group shares its first prompt
        open_jobs = [(task, n) for task, n in wanted if rollout_id(task.task_id, seed, n) not in store.finished]
        run = _Run(store, player, model.name, seed, options)
        with collection_bar(len(wanted), len(wanted) - len(open_jobs)) if progress else nullcontext() as bar:
            await run.play(iter(open_jobs), min(concurrency, len(open_jobs)), bar)
    return run.result(len(wanted) - len(open_jobs))


class _Run:
    """The workers of one `collect_with` call and what they share."""

    def __init__(self, store: RolloutStore, player: Player, model: str, seed: int, options: EpisodeOptions) -> None:
        self._store = store
        self._player = player
        self._model = model
        self._seed = seed
        self._options = options
        self._pace = Pace()
        self._played = self._solved = self._errors = self._drifted = self._untrainable = 0

    def result(self, skipped: int) -> Collected:
        return Collected(
            path=self._store.path,
            written=self._played,
            skipped=skipped,
            errors=self._errors,
            stragglers=tuple(self._pace.stragglers),
            drifted=self._drifted,
            untrainable=self._untrainable,
        )

    async def play(self, jobs: Iterator[tuple[Task, int]], workers: int, bar: Progress | None) -> None:
        watcher = asyncio.create_task(self._watch(bar))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(jobs, bar))
        except* (RecordError, CollectionError) as failed:
            raise failed.exceptions[0] from None
        finally:
            watcher.cancel()

    async def _work(self, jobs: Iterator[tuple[Task, int]], bar: Progress | None) -> None:
        for task, sample in jobs:
            name = rollout_id(task.task_id, self._seed, sample)
            self._pace.start(name)
            rollout = await self._episode(task, sample)
            self._pace.end(name)
            self._count(self._store.append(rollout))
            self._show(bar)

    def _count(self, rollout: Rollout) -> None:
        self._played += 1
        self._errors += rollout.error is not None
        self._solved += rollout.solved
        if rollout.tape:
            self._drifted += rollout.tape.drifted
            self._untrainable += rollout.tape.broken or not rollout.tape.on_policy_tokens

    def _show(self, bar: Progress | None, advance: int = 1) -> None:
        if bar:
            slow = len(self._pace.slow())
            show(bar, played=self._played, solved=self._solved, errors=self._errors, slow=slow, advance=advance)

    async def _watch(self, bar: Progress | None) -> None:
        """Reports an episode that takes much longer than the rest, once, while it is still under way."""
        reported: set[str] = set()
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            for slow in self._pace.slow():
                if slow.rollout_id not in reported:
                    reported.add(slow.rollout_id)
                    log.warning(
                        "%s has run for %.0f s; the median is %.1f s", slow.rollout_id, slow.seconds, slow.median_s
                    )
            self._show(bar, advance=0)

    async def _episode(self, task: Task, sample: int) -> Rollout:
        try:
            return await self._player.play(task, sample)
        except CollectionError:
            raise
        except Exception as error:
            return failed_rollout(task, error, self._model, seed=self._seed, sample=sample, **self._options)


def _settings(seed: int, options: EpisodeOptions) -> dict[str, Any]:
    engine = as_engine(options.get("hints", 3))
    scorer = options.get("scorer")
    plain = {key: value for key, value in options.items() if key not in _UNWRITTEN}
    return {
        "seed": seed,
        "dial": asdict(engine.dial),
        "rules": [rule.name for rule in engine.rules],
        "scorer": getattr(scorer, "__name__", type(scorer).__name__) if scorer else "strict_score",
        **plain,
    }
