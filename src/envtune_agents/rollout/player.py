"""Who plays the episodes of a collection: this process, or workers elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from langchain_core.language_models import BaseChatModel

from envtune_agents.rollout.episode import EpisodeOptions, run_episode
from envtune_agents.rollout.manifest import ModelPrint, print_of
from envtune_agents.types import Environment, Rollout, Task

Play = Callable[..., Awaitable[Rollout]]
"""Plays one episode and is called as `run_episode` is."""


class Player(Protocol):
    """What `collect_with` asks of whoever plays. `LocalPlayer` is this process; a cluster is another.

    class Again:
        "Gives rollouts that are known already."
        async def model_print(self) -> ModelPrint:
            return ModelPrint("known", "records")
        async def play(self, task: Task, sample: int) -> Rollout:
            return known[task.task_id, sample]
    """

    async def model_print(self) -> ModelPrint:
        """Which model plays. Asked once, before the first episode."""
        ...

    async def play(self, task: Task, sample: int) -> Rollout:
        """The record of one episode; called for many at once. `CollectionError` ends the collection, any other
        exception becomes the `error` of this rollout."""
        ...


class LocalPlayer:
    """Plays in this process, each episode in a fresh environment."""

    def __init__(
        self,
        model: BaseChatModel,
        environment: Callable[[Task], Environment],
        *,
        seed: int = 0,
        play: Play = run_episode,
        options: EpisodeOptions | None = None,
    ) -> None:
        self._model = model
        self._environment = environment
        self._seed = seed
        self._play = play
        self._options = options or EpisodeOptions()

    async def model_print(self) -> ModelPrint:
        """Loads the model's weights if they are not yet."""
        return await asyncio.to_thread(print_of, self._model)

    async def play(self, task: Task, sample: int) -> Rollout:
        environment = self._environment(task)
        return await self._play(self._model, environment, seed=self._seed, sample=sample, **self._options)
