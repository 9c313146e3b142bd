"""The actors of one collection: started, watched, replaced when they die, and given episodes to play."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

from envtune_agents.deadline import await_with_deadline
from envtune_agents.errors import CollectionError, require
from envtune_agents.rollout import ModelPrint, transient
from envtune_agents.types import Rollout, Task
from envtune_ray.actor import EpisodeActor, Model, Orders

INSTALL = "pip install -e integrations/ray"
ray: Any = require("ray", feature="Collecting over a Ray cluster", install=INSTALL)
RayError: Any = ray.exceptions.RayError
RayTaskError: Any = ray.exceptions.RayTaskError

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Workers that may die under one episode before that is its record."""
STARTS = 3
"""Starts in a row that may fail before a worker is given up."""


class WorkersDiedError(RuntimeError):
    """An episode took down every worker that played it; it becomes the rollout's error."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One actor after another, all with the same model."""

    number: int
    model: Model
    actor: Any = None
    alive: bool = False
    given_up: bool = False
    load: int = 0
    """Episodes under way."""
    reserved: bool = False
    """True while an episode plays here alone, or waits to."""
    died: asyncio.Event = field(default_factory=asyncio.Event)


class RayWorkers:
    """A `Player` that plays in Ray actors. An episode stays in the worker where it began, and so does its prefix cache.

    An actor that dies, or whose node does, is replaced; its episodes begin again elsewhere. They then play alone in a
    worker, so that an episode which kills its worker takes no other with it; after `ATTEMPTS` workers that is its
    record. `actor_options` are those of `ray.remote`. Use it as an async context manager: leaving it ends the actors.
    """

    def __init__(
        self,
        models: Sequence[Model],
        orders: Orders,
        *,
        episodes_each: int,
        actor_options: Mapping[str, Any],
        start_timeout_s: float,
    ) -> None:
        self._workers = [_Worker(number, model) for number, model in enumerate(models)]
        self._orders = orders
        self._episodes_each = episodes_each
        self._options = {
            "num_cpus": 1,
            "scheduling_strategy": "SPREAD",
            **actor_options,
            "max_concurrency": episodes_each + 1,  # and ready()
            "max_restarts": 0,  # replaced here, where it is known which episodes it had
        }
        self._start_timeout_s = start_timeout_s
        self._print: ModelPrint | None = None
        self._problem: str = ""
        self._changed = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for worker in self._workers:
            _end(worker)

    # --- what `collect_with` asks ---

    async def model_print(self) -> ModelPrint:
        """Which model plays, as soon as one worker is ready; the others join when they are."""
        while self._print is None:
            await self._change()
        return self._print

    async def play(self, task: Task, sample: int) -> Rollout:
        """The record of one episode, begun again where its worker dies."""
        reason = ""
        for attempt in range(ATTEMPTS):
            async with self._place(alone=attempt > 0) as worker:
                actor = worker.actor
                try:
                    return await actor.play.remote(task, sample)  # type: ignore[no-any-return]
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    reason = _one_line(error)
                    log.warning("worker %d died under %s, sample %d: %s", worker.number, task.task_id, sample, reason)
                    if worker.actor is actor:  # not yet replaced
                        worker.alive = False
                        worker.died.set()
        raise WorkersDiedError(f"{ATTEMPTS} workers in a row died under this episode; the last one: {reason}")

    # --- who plays what ---

    @asynccontextmanager
    async def _place(self, *, alone: bool) -> AsyncIterator[_Worker]:
        self._check()
        worker = await (self._empty_worker() if alone else self._free_worker())
        worker.load += 1
        try:
            yield worker
        finally:
            worker.load -= 1
            if alone:
                worker.reserved = False
            self._tell()

    async def _free_worker(self) -> _Worker:
        """The alive worker with the fewest episodes."""
        while True:
            free = [w for w in self._workers if w.alive and not w.reserved and w.load < self._episodes_each]
            if free:
                return min(free, key=lambda worker: worker.load)
            await self._change()

    async def _empty_worker(self) -> _Worker:
        """A worker without episodes, which gets no other while it is reserved."""
        while True:
            open_ones = [worker for worker in self._workers if worker.alive and not worker.reserved]
            if not open_ones:
                await self._change()
                continue
            worker = min(open_ones, key=lambda worker: worker.load)
            worker.reserved = True
            try:
                while worker.alive and worker.load:
                    await self._change()
            except BaseException:
                worker.reserved = False
                raise
            if worker.alive:
                return worker
            worker.reserved = False

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        """Returns when something about a worker has changed."""
        self._check()
        await self._changed.wait()
        self._check()

    def _check(self) -> None:
        if self._problem:
            raise CollectionError(self._problem)

    # --- keeping workers alive ---

    async def _keep(self, worker: _Worker) -> None:
        """Starts a worker, and another actor in its place each time it dies, until that fails too often."""
        failures, reason = 0, ""
        while failures < STARTS:
            try:
                await self._start(worker)
            except Exception as error:  # whatever making a model raises must not end the others' work
                failures, reason = failures + 1, _one_line(error)
                _end(worker)
                if not (isinstance(error, RayError | TimeoutError) or transient(error)):
                    break
                log.warning("worker %d did not start: %s", worker.number, reason)
                await asyncio.sleep(2**failures)
                continue
            failures = 0
            worker.alive = True
            self._tell()
            await worker.died.wait()
            _end(worker)
        log.error("worker %d is given up: %s", worker.number, reason)
        worker.given_up = True
        if all(other.given_up for other in self._workers):
            self._problem = (
                f"No Ray worker is left that could play. The last one: {reason}. A worker asks for {self._wants()}, "
                f"the cluster has {_resources()}. Finished rollouts are safe; the same call again goes on."
            )
        self._tell()

    async def _start(self, worker: _Worker) -> None:
        worker.died.clear()
        actor_class: Any = ray.remote(**self._options)(EpisodeActor)
        worker.actor = actor_class.remote(worker.model, self._orders)
        try:
            found = await await_with_deadline(worker.actor.ready.remote(), self._start_timeout_s)
        except RayTaskError as error:
            raise error.cause from None
        if self._print is None:
            self._print = found
        elif _of_the_model(found) != _of_the_model(self._print):
            self._problem = (
                f"A run has one model, but its workers differ in name, files, template or decoding: {self._print} and, "
                f"in worker {worker.number}, {found}. Give models that are the same but for their address."
            )
            self._tell()

    def _wants(self) -> dict[str, Any]:
        return {name: self._options[name] for name in ("num_cpus", "num_gpus", "resources") if name in self._options}


def _of_the_model(found: ModelPrint) -> ModelPrint:
    """What must be equal for all workers: everything but the address."""
    return replace(found, endpoint="")


def _end(worker: _Worker) -> None:
    worker.alive = False
    if worker.actor is not None:
        with suppress(Exception):  # it may be dead already, or Ray shut down
            ray.kill(worker.actor)
        worker.actor = None


def _resources() -> dict[str, float]:
    try:
        return {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
    except Exception:
        return {}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
