"""Episodes played by the weights that are being trained: one, or many at the same time.

In: an engine over the trainer's own model, tasks and their source. Out: rollouts. A training episode keeps the length
limits of its stage; validation and warm-up know only the context of the checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from pydantic import PrivateAttr

from envtune_agents import ChatTransformers, run_episode
from envtune_agents.chat_model import TokenEngine
from envtune_agents.curriculum import Stage
from envtune_agents.engine import GenerationRequest, GenerationResult
from envtune_agents.errors import ContextOverflowError, EngineError, TaskError
from envtune_agents.rollout import failed_rollout
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task
from envtune_agents.weights import Weights
from envtune_trl.settings import TrainSettings

Told: TypeAlias = Callable[[int, int], None]
"""Is told how many episodes are done, and of how many."""


class PolicyModel(ChatTransformers):
    """The chat model over weights that are being trained: its engine runs the trainer's own model."""

    _trained: Any = PrivateAttr(default=None)

    @classmethod
    def over(cls, engine: TokenEngine, **settings: Any) -> PolicyModel:
        """A chat model whose replies `engine` decodes."""
        model = cls(model="policy", **settings)
        model._trained = engine
        return model

    @property
    def engine(self) -> Any:
        """The engine around the trainer's model."""
        if self._trained is None:
            raise EngineError("This chat model belongs to a training run; make it with PolicyModel.over(engine).")
        return self._trained


@dataclass(slots=True)
class LimitedEngine:
    """In the engine's place for one episode: it ends where the stage's limits do, as one that fills the context."""

    engine: TokenEngine
    stage: Stage
    _first: int | None = None
    """Tokens of the first prompt."""

    @property
    def weights(self) -> Weights:
        """The tokenizer and template."""
        return self.engine.weights

    async def aweights(self) -> Weights:
        """As `weights`."""
        return await self.engine.aweights()

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        """One reply, cut at the limit. Raises `ContextOverflowError` when no token is left for it."""
        prompt = len(request.prompt_ids)
        self._first = prompt if self._first is None else self._first
        room = self._first + self.stage.max_response_tokens - prompt
        if room < 1:
            raise ContextOverflowError(
                f"{prompt - self._first} tokens follow the first prompt, and stage {self.stage.name!r} allows "
                f"{self.stage.max_response_tokens}, the next reply included."
            )
        return await self.engine.agenerate(replace(request, max_new_tokens=min(request.max_new_tokens, room)))

    def generate(self, request: GenerationRequest) -> Any:
        """Not offered: episodes are played from an event loop."""
        raise NotImplementedError

    stream = astream = generate


def first_prompt_tokens(engine: TokenEngine, source: TaskSource, task: Task) -> int:
    """Length of a task's first prompt, its tools included."""
    environment = source.environment_of(task)
    first = HumanMessage(environment.open_turn() or "")
    return PolicyModel.over(engine).get_num_tokens_from_messages([first], tools=environment.tools())


async def play_episode(
    model: BaseChatModel,
    source: TaskSource,
    settings: TrainSettings,
    task: Task,
    level: int = 0,
    **options: Any,
) -> Rollout:
    """One episode under the source's own terms, as in evaluation and deployment; `options` are `run_episode`'s.

    A task whose environment cannot be made gives a rollout with an error.
    """
    try:
        environment = source.environment_of(task)
    except TaskError as error:
        return failed_rollout(task, error, "policy", hints=level, **options)
    return await run_episode(
        model,
        environment,
        hints=source.hint_engine(level),
        scorer=source.scorer,
        malformed_ends_turn=source.malformed_ends_turn,
        max_steps=settings.max_steps_per_turn,
        **options,
    )


def play_at_once(
    most: int, episodes: Sequence[Callable[[], Coroutine[Any, Any, Rollout]]], told: Told | None = None
) -> list[Rollout]:
    """The rollouts in order, with at most `most` episodes at the same time; from code without an event loop.

    `told(done, total)` is called after each episode.
    """
    return _run(_at_once(most, episodes, told))


async def _at_once(
    most: int, episodes: Sequence[Callable[[], Coroutine[Any, Any, Rollout]]], told: Told | None
) -> list[Rollout]:
    open_places, done = asyncio.Semaphore(most), count(1)

    async def one(episode: Callable[[], Coroutine[Any, Any, Rollout]]) -> Rollout:
        async with open_places:
            rollout = await episode()
        if told is not None:
            told(next(done), len(episodes))
        return rollout

    return list(await asyncio.gather(*map(one, episodes)))


def _run(work: Coroutine[Any, Any, list[Rollout]]) -> list[Rollout]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:  # a notebook has a loop already
        return pool.submit(asyncio.run, work).result()
