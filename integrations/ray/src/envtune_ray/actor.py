"""What runs in a Ray worker: one model, and as many episodes at the same time as the driver sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel

from envtune_agents.rollout import EpisodeOptions, LocalPlayer, ModelPrint, Play
from envtune_agents.types import Environment, Rollout, Task

Model = BaseChatModel | Callable[[], BaseChatModel]
"""A chat model that can be pickled, or a function that makes one where it is needed."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What every worker of a collection is told once."""

    environment: Callable[[Task], Environment]
    play: Play
    seed: int
    options: EpisodeOptions


class EpisodeActor:
    """An async Ray actor: `ready` makes the model, `play` plays an episode from beginning to end."""

    def __init__(self, model: Model, orders: Orders) -> None:
        self._model = model
        self._orders = orders
        self._player: LocalPlayer | None = None

    async def ready(self) -> ModelPrint:
        """Makes and loads the model, and says which one it is."""
        model, orders = self._model, self._orders
        if not isinstance(model, BaseChatModel):
            model = await asyncio.to_thread(model)
        self._player = LocalPlayer(
            model, orders.environment, seed=orders.seed, play=orders.play, options=orders.options
        )
        return await self._player.model_print()

    async def play(self, task: Task, sample: int) -> Rollout:
        """The record of one episode."""
        assert self._player is not None, "the driver awaits ready() first"
        return await self._player.play(task, sample)
