"""`collect` over a Ray cluster: the same signature, the same run on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import PicklingError
from typing import Any, Unpack

from langchain_core.language_models import BaseChatModel

from envtune_agents.errors import TaskError
from envtune_agents.rollout import Collected, EpisodeOptions, Play, collect_with, run_episode
from envtune_agents.types import Environment, Task
from envtune_ray.actor import Model, Orders
from envtune_ray.workers import RayWorkers, ray


async def collect(
    tasks: Sequence[Task],
    model: Model | Sequence[Model],
    environment: Callable[[Task], Environment],
    *,
    out: str | Path,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 4,
    progress: bool = False,
    zstd: bool = False,
    play: Play = run_episode,
    workers: int | None = None,
    actor_options: Mapping[str, Any] | None = None,
    start_timeout_s: float = 600.0,
    address: str | None = None,
    **options: Unpack[EpisodeOptions],
) -> Collected:
    """Plays every task `samples` times in Ray actors and appends each rollout to `out/rollouts.jsonl` as it ends.

    `model` is a chat model that can be pickled, a function that makes one in the worker (a checkpoint, or a client with
    open connections), or a list of these: one worker for each, such as one for each endpoint. `workers` is how many
    share a single model's work, one for each node unless given; `concurrency` counts the episodes of all workers.
    `actor_options` go to `ray.remote` (`{"num_gpus": 1}`); `start_timeout_s` bounds the wait for room and for loading.
    Ray is used as it is initialised, or connected to by `ray.init(address)` and left again at the end.

    Everything else is as in `envtune_agents.collect`: order, file, manifest, resuming, reports, errors. Raises
    `CollectionError` when no worker is left or their models differ.
    """
    with _connected(address):
        models = _models(model, workers)
        orders = Orders(environment, play, seed, options)
        _check_travels(models, orders)
        each = -(-concurrency // len(models))
        async with RayWorkers(
            models,
            orders,
            episodes_each=max(each, 1),
            actor_options=actor_options or {},
            start_timeout_s=start_timeout_s,
        ) as player:
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


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Ray, initialised; what was not before is shut down again."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address)
    try:
        yield
    finally:
        ray.shutdown()


def _models(model: Model | Sequence[Model], workers: int | None) -> list[Model]:
    if isinstance(model, Sequence):
        if not model or workers not in (None, len(model)):
            raise TaskError(f"A list of models gives one worker for each; got {len(model)} models, workers={workers}.")
        return list(model)
    if workers is None:
        workers = sum(bool(node["Alive"]) for node in ray.nodes())
    if workers < 1:
        raise TaskError(f"workers is at least 1, got {workers}.")
    return [model] * workers


def _check_travels(models: Sequence[Model], orders: Orders) -> None:
    """Refuses what cannot be sent to a worker, before any is started."""
    parts = {"The model": models[0], "The environment": orders.environment, "play": orders.play}
    for name, part in {**parts, **orders.options}.items():
        try:
            ray.cloudpickle.dumps(part)
        except (TypeError, PicklingError, AttributeError) as error:
            advice = (
                "Give a function that makes it in the worker: model=lambda: ChatOpenAI(…)"
                if isinstance(part, BaseChatModel)
                else "Give a function or class of a module that is installed on every node"
            )
            raise TaskError(f"{name} cannot be sent to a Ray worker: {error}. {advice}.") from error
