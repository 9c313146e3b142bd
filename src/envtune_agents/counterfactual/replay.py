"""Many failures replayed: find them in a run, play both branches of each, write each pair as it ends."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage

from envtune_agents.counterfactual.branch import Branch, plain_messages, play_branch, without_rule
from envtune_agents.counterfactual.restore import Fork, RestoredPoint, forks_in, last_answers, restore, tool_message
from envtune_agents.counterfactual.store import Replay, ReplayStore
from envtune_agents.errors import RecordError, TaskError
from envtune_agents.hints import HintEngine, tool_schemas
from envtune_agents.rollout.episode import model_name, one_line
from envtune_agents.task_source import TaskSource
from envtune_agents.types import CallOutcome, DetectsFailures, Environment, Rollout, Task

if TYPE_CHECKING:
    from rich.progress import Progress

_DECODING = ("precision", "temperature", "max_tokens", "top_p", "top_k")
_SHOWN_TOOL = ("name", "description", "parameters")


class ReplayOptions(TypedDict, total=False):
    """The settings of a replay beside model and tasks; the first four are those of `build_agent_graph`."""

    system_prompt: str | None
    max_steps: int
    call_timeout_s: float | None
    malformed_ends_turn: bool
    timeout_s: float | None
    """Wall seconds for one continuation; 600 unless given."""


async def replay_run(
    rollouts: Iterable[Rollout],
    source: TaskSource,
    model: BaseChatModel,
    *,
    out: str | Path,
    level: int | None = None,
    samples: int = 1,
    limit: int | None = None,
    seed: int = 0,
    concurrency: int = 1,
    progress: bool = False,
    **options: Unpack[ReplayOptions],
) -> list[Replay]:
    """Replays the hinted failures of `rollouts` and appends each to `out/replays.jsonl`; gives those of this call.

    With `level` None a failure's own recorded hint is tried, at the rollout's level. With a level from 1 to 3 every
    failure is, those of a run without hints too: the hint is then what the rules of `source` say now. `limit` counts
    failures; the same call goes on where a stopped one ended, and tries again what had ended with an error. Both
    branches of a pair run under the same seed. Raises `RecordError` when `out` cannot be written or holds other
    settings, and `TaskError` when no task of the run is known to `source`.
    """
    if samples < 1 or concurrency < 1:
        raise TaskError(f"samples and concurrency are at least 1, got {samples} and {concurrency}.")
    if level is not None and level not in (1, 2, 3):
        raise TaskError(f"A replay is at level 1, 2 or 3, got {level!r}: at level 0 there is no hint to try.")
    decoding = {name: getattr(model, name) for name in _DECODING if hasattr(model, name)}
    settings = {"model": model_name(model), "decoding": decoding, "level": level, "seed": seed, **options}
    forks = list(_chosen(rollouts, level, limit))
    tasks = _tasks_of(forks, source)
    with ReplayStore(out, settings) as store:
        jobs = [(fork, sample) for fork in forks for sample in range(samples)]
        todo = [job for job in jobs if _replay_id(*job) not in store.finished]
        run = _Run(store, source, tasks, model, level, seed, dict(options))
        with _bar(len(jobs), len(jobs) - len(todo)) if progress else nullcontext() as bar:
            await run.play(iter(todo), min(concurrency, len(todo)), bar)
    return run.replays


class _Run:
    """The workers of one `replay_run` call and what they share."""

    def __init__(
        self,
        store: ReplayStore,
        source: TaskSource,
        tasks: Mapping[str, Task],
        model: BaseChatModel,
        level: int | None,
        seed: int,
        options: dict[str, Any],
    ) -> None:
        self._store = store
        self._source = source
        self._tasks = tasks
        self._model = model
        self._level = level
        self._seed = seed
        self._options = options
        self.replays: list[Replay] = []

    async def play(self, jobs: Iterator[tuple[Fork, int]], workers: int, bar: Progress | None) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(jobs, bar))
        except* RecordError as failed:
            raise failed.exceptions[0] from None

    async def _work(self, jobs: Iterator[tuple[Fork, int]], bar: Progress | None) -> None:
        for fork, sample in jobs:
            replay = await self._replayed(fork, sample)
            if replay is not None:
                self._store.append(replay)
                self.replays.append(replay)
            if bar:
                errors = sum(replay.error is not None for replay in self.replays)
                differ = sum(bool(replay.gap) for replay in self.replays)
                bar.update(bar.tasks[0].id, advance=1, differ=differ, errors=errors)

    async def _replayed(self, fork: Fork, sample: int) -> Replay | None:
        """Both branches of one fork; None when no rule has a hint for it."""
        blank = _blank(fork, sample)
        try:
            point = await asyncio.to_thread(self._point, fork)
            engine = self._source.hint_engine(self._level or max(fork.rollout.hint_level, 1))
            outcome = _hinted(fork, point, engine) if self._level else fork.outcome
            if outcome.hint is None:
                return None
            blank = replace(
                blank,
                rule=outcome.hint.rule,
                level=outcome.hint.level,
                hint=outcome.hint.text,
                prompt=(*self._system(), *plain_messages(point.messages)),
                tools=tuple(_shown_tools(point.environment)),
            )
            seen = await self._branch(_answered(point, fork, outcome), engine, sample, fork)
            unseen_point = _answered(await asyncio.to_thread(self._point, fork), fork, _bare(outcome))
            unseen = await self._branch(unseen_point, without_rule(engine, outcome.hint.rule), sample, fork)
        except Exception as error:  # one failure that cannot be replayed must not end the others
            return replace(blank, error=one_line(error))
        return replace(blank, with_hint=seen, without_hint=unseen, error=seen.error or unseen.error)

    def _system(self) -> list[dict[str, Any]]:
        prompt = self._options.get("system_prompt")
        return [{"role": "system", "content": prompt}] if prompt else []

    def _point(self, fork: Fork) -> RestoredPoint:
        task = self._tasks.get(fork.rollout.task_id)
        if task is None:
            raise TaskError(f"Unknown task id {fork.rollout.task_id!r}: the task source does not have it.")
        return restore(self._source.environment(task), fork.rollout, fork.turn, fork.step)

    async def _branch(self, point: RestoredPoint, engine: HintEngine, sample: int, fork: Fork) -> Branch:
        seed = zlib.crc32(f"{self._seed} {sample} {fork.fork_id}".encode()) % 2**31
        return await play_branch(self._model, point, engine, seed=seed, scorer=self._source.scorer, **self._options)


def _chosen(rollouts: Iterable[Rollout], level: int | None, limit: int | None) -> Iterator[Fork]:
    forks = (fork for rollout in rollouts for fork in forks_in(rollout, hinted=level is None))
    for count, fork in enumerate(forks):
        if limit is not None and count >= limit:
            return
        yield fork


def _tasks_of(forks: Sequence[Fork], source: TaskSource) -> dict[str, Task]:
    if not forks:
        return {}
    wanted = {fork.rollout.task_id for fork in forks}
    found = {task.task_id: task for task in source.tasks("all") if task.task_id in wanted}
    if not found:
        raise TaskError(
            f"None of the {len(wanted)} tasks of this run is known to the task source (such as {min(wanted)}). Name "
            "the source it was collected from."
        )
    return found


def _hinted(fork: Fork, point: RestoredPoint, engine: HintEngine) -> CallOutcome:
    """The failed call as the engine would answer it now."""
    environment, failed = point.environment, fork.outcome
    turns = fork.rollout.turns
    made = [step for turn in turns[: fork.turn] for step in turn.steps] + list(turns[fork.turn].steps[: fork.step])
    before = [outcome for step in made for outcome in step.outcomes]
    before += turns[fork.turn].steps[fork.step].outcomes[: fork.call]
    return engine.outcome(
        failed.call,
        failed.raw_content,
        tools=tool_schemas(environment.tools()),
        history=before,
        detect=environment.detect_failure if isinstance(environment, DetectsFailures) else None,
        failure=failed.failure,
    )


def _bare(outcome: CallOutcome) -> CallOutcome:
    return replace(outcome, content=outcome.raw_content, hint=None)


def _answered(point: RestoredPoint, fork: Fork, outcome: CallOutcome) -> RestoredPoint:
    """The point with the failed call answered by `outcome`."""
    messages: list[AnyMessage] = list(point.messages)
    index = last_answers(messages) + fork.call
    messages[index] = tool_message(outcome, getattr(messages[index], "tool_call_id", ""))
    return replace(point, messages=messages)


def _blank(fork: Fork, sample: int) -> Replay:
    outcome, hint = fork.outcome, fork.outcome.hint
    assert outcome.failure is not None
    return Replay(
        replay_id=_replay_id(fork, sample),
        rollout_id=fork.rollout.rollout_id,
        task_id=fork.rollout.task_id,
        turn=fork.turn,
        step=fork.step,
        call=fork.call,
        sample=sample,
        tool=outcome.name,
        kind=outcome.failure.kind,
        rule=hint.rule if hint else "",
        level=hint.level if hint else 0,
        hint=hint.text if hint else "",
    )


def _replay_id(fork: Fork, sample: int) -> str:
    return f"{fork.fork_id}/{sample}"


def _shown_tools(environment: Environment) -> Iterator[dict[str, Any]]:
    for schema in tool_schemas(environment.tools()).values():
        yield {"type": "function", "function": {key: schema[key] for key in _SHOWN_TOOL if key in schema}}


def _bar(total: int, finished: int) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("failures replayed"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[differ]} differ, {task.fields[errors]} errors"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=600,
    )
    bar.add_task("replays", total=total, completed=finished, differ=0, errors=0)
    return bar
